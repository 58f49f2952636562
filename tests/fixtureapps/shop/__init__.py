"""An application in the shape of the Pyramid cookiecutter: SQLAlchemy in pyramid_tm's transaction (zope.sqlalchemy),
pyramid_retry, the debug toolbar, sessions in signed cookies, and pushdemo among them.

A test adds views, topics and tweens of its own by `configure`:

    def configure(config):
        config.add_route("stock", "/stock")
        config.add_view(stock, route_name="stock", renderer="json")

    app = TestApp(make_app(tmp_path / "shop.sqlite", configure))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyramid.config import Configurator
from pyramid.router import Router
from pyramid.session import SignedCookieSessionFactory

from tests.fixtureapps.shop import models


def make_app(
    database: Path, configure: Callable[[Configurator], None] | None = None, *, toolbar: bool = True, **settings: Any
) -> Router:
    """The application at the SQLite file `database`, which is made with its first items where there is none yet.

    `settings` are ini keys, with `__` for the dots: `pushdemo__memorize__duration=60`.
    """
    ini = {"sqlalchemy.url": f"sqlite:///{database}", "retry.attempts": "3"}
    if toolbar:
        ini |= {"pyramid.includes": "pyramid_debugtoolbar", "debugtoolbar.hosts": "127.0.0.1 ::1"}
    ini |= {key.replace("__", "."): str(value) for key, value in settings.items()}
    return main({}, configure, **ini)


def main(
    global_config: dict[str, str], configure: Callable[[Configurator], None] | None = None, **settings: str
) -> Router:
    """For an ini's `use = call:tests.fixtureapps.shop:main`."""
    with Configurator(settings=settings) as config:
        config.set_session_factory(SignedCookieSessionFactory("only for tests"))
        config.include(models)
        config.include("pushdemo")
        config.include("tests.fixtureapps.shop.views")
        if configure:
            configure(config)
        return config.make_wsgi_app()
