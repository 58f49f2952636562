"""pushdemo: a page shows what the server knows, as the server learns it.

`config.include("pushdemo")` adds push to a Pyramid application; `main` is the demo application, its first user.
"""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.router import Router

from pushdemo.addon import includeme
from pushdemo.cache import memorize
from pushdemo.yielding import json_yield

__all__ = ["includeme", "json_yield", "main", "memorize"]


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    """The demo application: `[app:main] use = egg:pushdemo`. Raises ModuleNotFoundError without the extra `demo`."""
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        try:
            config.include("pyramid_jinja2")
            config.include("pushdemo.routes")
            config.scan("pushdemo.views")
        except ModuleNotFoundError as error:
            message = f'the demo application needs {error.name}: pip install "pushdemo[demo]"'
            raise ModuleNotFoundError(message, name=error.name) from error
        return config.make_wsgi_app()
