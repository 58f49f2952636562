"""`/server/index`: what the server knows, pushed; and `/`, the page that shows it."""

from __future__ import annotations

from typing import Any

from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config


class ServerController:
    """The controller that a page's script opens and listens to."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @view_config(route_name="server")
    def index(self) -> Response:
        """The topic `server`, by the transport that the client asks for."""
        return self.request.push("server")


@view_config(route_name="home", request_method="GET", renderer="pushdemo.demo:templates/index.jinja2")
def home(request: Request) -> dict[str, Any]:
    """The page that appends each message to a list."""
    settings = request.registry["pushdemo.settings"]
    return {
        "interval": settings.interval,
        "duration": settings.memorize_duration,
        "heartbeat": settings.heartbeat,
        "url": request.route_path("server"),
    }
