"""Login, logout, and the orders of a room: a page, its state as JSON, its stream, and what changes it."""

from __future__ import annotations

from typing import Any

from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPNoContent, HTTPNotFound, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import forbidden_view_config, view_config

from orders.models import Member, Order, User


class Room:
    """The context of a room's routes: its members may do everything, others nothing."""

    def __init__(self, request: Request) -> None:
        self.name: str = request.matchdict["room"]
        members = request.dbsession.query(Member).filter_by(room=self.name)
        self.__acl__ = [(Allow, member.user_name, "room") for member in members]


@view_config(route_name="login", renderer="templates/login.jinja2")
def login(request: Request) -> Any:
    if request.method == "GET":
        return {"wrong": False}
    user = request.dbsession.get(User, request.POST.get("name", ""))
    if user is None or not user.has_password(request.POST.get("password", "")):
        request.response.status_int = 403
        return {"wrong": True}
    request.session.invalidate()
    request.session["user"] = user.name
    return HTTPSeeOther(request.route_path("home"))


@view_config(route_name="logout", request_method="POST")
def logout(request: Request) -> Response:
    """First the streams, while the user is known: each comes back, and the view refuses it."""
    if request.authenticated_userid is not None:
        request.end_streams(owner=request.authenticated_userid)
    request.session.invalidate()
    return HTTPSeeOther(request.route_path("login"))


@forbidden_view_config()
def forbidden(request: Request) -> Response:
    """A stream or a POST gets its 403; a page leads to the login."""
    if (
        request.authenticated_userid is None
        and request.matched_route
        and request.matched_route.name in ("home", "room")
    ):
        return HTTPSeeOther(request.route_path("login"))
    return Response(status=403, text="You may not do this.", content_type="text/plain", charset="utf-8")


@view_config(route_name="home", renderer="templates/home.jinja2")
def home(request: Request) -> Any:
    if request.authenticated_userid is None:
        return HTTPSeeOther(request.route_path("login"))
    members = request.dbsession.query(Member).filter_by(user_name=request.authenticated_userid)
    return {"rooms": [member.room for member in members.order_by(Member.room)]}


def state_of(request: Request) -> dict[str, Any]:
    """The orders, and the id after which the stream goes on: a message between the two is not missed."""
    room = request.context.name
    orders = request.dbsession.query(Order).filter_by(room=room).order_by(Order.id)
    return {"orders": orders.all(), "last_event_id": request.newest_event_id("orders.{room}", room=room)}


@view_config(route_name="room", permission="room", renderer="templates/room.jinja2")
def room(request: Request) -> dict[str, Any]:
    return state_of(request) | {"room": request.context.name}


@view_config(route_name="orders", permission="room", renderer="json", request_method="GET")
def orders(request: Request) -> dict[str, Any]:
    return state_of(request)


@view_config(route_name="stream", permission="room")
def stream(request: Request) -> Response:
    """After at most five minutes the stream comes back, and the permission is asked anew."""
    return request.push("orders.{room}", room=request.context.name, expires=300)


@view_config(route_name="orders", permission="room", request_method="POST")
def order(request: Request) -> Response:
    item = request.POST.get("item", "").strip()
    if not 0 < len(item) <= 100:
        raise HTTPBadRequest("An order is a text of 1 to 100 characters.")
    made = Order(room=request.context.name, item=item)
    request.dbsession.add(made)
    return tell(request, made)


@view_config(route_name="order", permission="room", request_method="POST")
def done(request: Request) -> Response:
    found = request.dbsession.get(Order, int(request.matchdict["id"]))
    if found is None or found.room != request.context.name:
        raise HTTPNotFound()
    found.state = "done"
    return tell(request, found)


def tell(request: Request, changed: Order) -> Response:
    """Publish an order to its room; it waits for the commit, and is dropped if there is none."""
    request.dbsession.flush()  # now it has its id and version
    request.publish("orders.{room}", changed, room=changed.room)
    return HTTPNoContent()


def includeme(config: Configurator) -> None:
    for name, path in {"home": "/", "login": "/login", "logout": "/logout"}.items():
        config.add_route(name, path)
    for name, path in {"room": "", "orders": "/orders", "stream": "/stream", "order": r"/orders/{id:\d{1,9}}"}.items():
        config.add_route(name, "/rooms/{room}" + path, factory=Room)
    config.scan("orders.views")
