"""An application with a topic of orders for each user, which other processes publish to."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router


def _orders(request: Request) -> Response:
    response: Response = request.push("orders.{user}", user=request.matchdict["user"])
    return response


def main(global_config: dict[str, str], **settings: Any) -> Router:
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.add_topic("orders.{user}", content_type="application/json")
        config.add_route("orders", "/orders/{user}")
        config.add_view(_orders, route_name="orders")
        return config.make_wsgi_app()
