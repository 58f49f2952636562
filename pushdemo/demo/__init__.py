"""The demo application, the add-on's first user: `[app:main] use = egg:pushdemo`."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.router import Router


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    """Return the demo application. Raises ModuleNotFoundError without the extra `demo`."""
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        try:
            config.include("pyramid_jinja2")
            config.include("pushdemo.demo.routes")
            config.scan("pushdemo.demo")
        except ModuleNotFoundError as error:
            message = f'the demo application needs {error.name}: pip install "pushdemo[demo]"'
            raise ModuleNotFoundError(message, name=error.name) from error
        return config.make_wsgi_app()
