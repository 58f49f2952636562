"""The shop with a page that is rendered from the database, and a topic that tells of each change after its commit."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from tests.fixtureapps import shop
from tests.fixtureapps.shop.models import Item


def page(request: Request) -> dict[str, Any]:
    """The versions of all items, and the id of the newest message when the request began."""
    items = {str(item.id): item.version for item in request.dbsession.query(Item)}
    return {"items": items, "last_event_id": request.newest_event_id("items")}


def stream(request: Request) -> Response:
    return request.push("items")


def change(request: Request) -> dict[str, Any]:
    """One more item: a page that misses its message never shows it."""
    item = Item(name=request.params["name"], price=1, version=1)
    request.dbsession.add(item)
    request.dbsession.flush()
    request.publish("items", {"id": item.id, "version": item.version})
    return {}


def configure(config: Configurator) -> None:
    config.add_topic("items", content_type="application/json", history=100)
    for name, view in {"page": page, "stream": stream, "change": change}.items():
        config.add_route(name, "/" + name)
        config.add_view(view, route_name=name, renderer=None if view is stream else "json")


def main(global_config: dict[str, str], **settings: str) -> Router:
    """For an ini's `use = call:tests.fixtureapps.shop.live:main`."""
    return shop.main(global_config, configure, **settings)
