"""The front page, and the topic `server` that it shows: the time, and how old the costly data beside it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config

from pushdemo.cache.memorize import memorize
from pushdemo.topics.content import BOUNDARY


@memorize(name="datetime_string")
def datetime_string() -> str:
    """Return the date and time. It stands for data that is large and costly to gather, so all callers share a value."""
    return now()


def now() -> str:
    """Return the date and time of this moment."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def data_stream() -> Iterator[bytes]:
    """Yield the topic's messages, for all its clients: the time, and when the data was gathered."""
    while True:
        gathered = datetime_string()
        yield f'<message gathered="{gathered}">{now()}</message>'.encode()


class ServerController:
    """The controller that the page's script subscribes to."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @view_config(route_name="server")
    def index(self) -> Response:
        """Stream the topic `server` by the transport that the client asks for."""
        return self.request.push("server")


@view_config(route_name="home", request_method="GET", renderer="pushdemo.demo:templates/home.jinja2")
def home(request: Request) -> dict[str, Any]:
    """Return what the front page's template shows."""
    settings = request.registry["pushdemo.settings"]
    return {
        "interval": settings.interval,
        "duration": settings.memorize_duration,
        "heartbeat": settings.heartbeat,
        "url": request.route_path("server"),
        "address": request.route_url("server"),
        "boundary": BOUNDARY,
    }
