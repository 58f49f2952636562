"""The front page, and the topic `server` that it shows: the server's date and time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config

from pushdemo.cache.memorize import memorize


@memorize(name="datetime_string")
def datetime_string() -> str:
    """Return the date and time. It stands for data that is large and costly to gather, so all callers share a value."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def data_stream() -> Iterator[str]:
    """Yield the topic's messages, for all its clients."""
    while True:
        yield datetime_string()


class ServerController:
    """The controller that the page's script subscribes to."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @view_config(route_name="server")
    def index(self) -> Response:
        """Stream the topic `server` by the transport that the client asks for."""
        return self.request.push("server")


@view_config(route_name="home", request_method="GET", renderer="pushdemo.demo:templates/index.jinja2")
def home(request: Request) -> dict[str, Any]:
    """Return what the front page's template shows."""
    settings = request.registry["pushdemo.settings"]
    return {
        "interval": settings.interval,
        "duration": settings.memorize_duration,
        "heartbeat": settings.heartbeat,
        "url": request.route_path("server"),
    }
