"""What every cookiecutter application has: a page, a change to the database, a login."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from tests.fixtureapps.shop.models import Item


def home(request: Request) -> Response:
    """`/`: a page of HTML, into which the toolbar writes itself."""
    names = [item.name for item in request.dbsession.query(Item).order_by(Item.name)]
    return Response(f"<html><head></head><body><p>{', '.join(names)}</p></body></html>")


def item(request: Request) -> dict[str, Any]:
    """`/items/{name}`: an item as the database has it now."""
    found = request.dbsession.query(Item).filter_by(name=request.matchdict["name"]).one()
    return {"name": found.name, "price": found.price, "version": found.version}


def change(request: Request) -> dict[str, Any]:
    """`POST /items/{name}?price=`: set the price; with `?fail=` raise afterwards, which rolls it back."""
    found = request.dbsession.query(Item).filter_by(name=request.matchdict["name"]).one()
    found.price = int(request.params["price"])
    found.version += 1
    request.dbsession.flush()
    if "fail" in request.params:
        raise RuntimeError("failed on purpose")
    return {"name": found.name, "price": found.price, "version": found.version}


def login(request: Request) -> dict[str, Any]:
    """`/login?user=`: a session, in a cookie."""
    request.session["user"] = request.params["user"]
    return {"user": request.session["user"]}


def whoami(request: Request) -> dict[str, Any]:
    """`/whoami`: the user of the session, or null."""
    return {"user": request.session.get("user")}


def includeme(config: Configurator) -> None:
    """Add the views; each is a route of its own name."""
    config.add_route("home", "/")
    config.add_view(home, route_name="home")
    config.add_route("item", "/items/{name}")
    config.add_view(item, route_name="item", renderer="json", request_method="GET")
    config.add_view(change, route_name="item", renderer="json", request_method="POST")
    for view in (login, whoami):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__, renderer="json")
