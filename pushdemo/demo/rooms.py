"""The rooms: visitors of `/rooms/{room}` write to each other. Each room is a topic of its own, made when first needed.

Anybody may write, so all that a visitor can make grow is bounded: lengths, messages in a time, addresses remembered.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pyramid.httpexceptions import (
    HTTPBadRequest,
    HTTPNotFound,
    HTTPSeeOther,
    HTTPServiceUnavailable,
    HTTPTooManyRequests,
)
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config, view_defaults

from pushdemo.topics.catalog import Catalog
from pushdemo.web.broker import Backend

MESSAGES, THERE = "room.{room}", "there.{room}"
FIRST_ROOM = "lobby"
LONGEST_NAME = 40  # characters, of a room and of a visitor
LONGEST_TEXT = 500  # characters
INTERVAL = 1.0  # seconds between two counts of who is there

_ROOM = re.compile(rf"[^\W_](?:[\w .-]{{0,{LONGEST_NAME - 2}}}\w)?")


def there(topics: Catalog, backend: Backend, room: str) -> int:
    """Return how many listen to a room, on all nodes: the source of its topic `there.{room}`."""
    reference = topics.refer(MESSAGES, {"room": room})
    topic = topics.find(reference)
    return backend.count_listeners(reference.name, topic.clients if topic else 0)


class Rate:
    """Allows each visitor `burst` messages at once, and one more each `seconds`. Any thread may call it."""

    def __init__(
        self, burst: int = 5, seconds: float = 2.0, limit: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._seconds = seconds
        self._limit = limit  # visitors remembered; the one who has been silent for longest is forgotten first
        self._clock = clock
        self._lock = threading.Lock()  # guards the table
        self._free: OrderedDict[str, float] = OrderedDict()  # when a visitor will have all messages to say again

    def wait(self, visitor: str) -> float:
        """Count a message. Return 0 where it is allowed, or after how many seconds the next one is."""
        with self._lock:
            now = self._clock()
            free = max(now, self._free.get(visitor, now))
            early = free - now - (self._burst - 1) * self._seconds
            if early > 0:
                return early
            self._free[visitor] = free + self._seconds
            self._free.move_to_end(visitor)
            if len(self._free) > self._limit:
                self._free.popitem(last=False)
            return 0


@view_config(route_name="rooms", request_method="GET")
def rooms(request: Request) -> Response:
    """Lead to the first room, or to the one that the visitor names."""
    room = request.GET.get("room", "").strip()
    return HTTPSeeOther(request.route_path("room", room=room or FIRST_ROOM))


@view_defaults(route_name="room")
class RoomViews:
    """One room: its page, its stream, and what a visitor says."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.room: str = request.matchdict["room"]
        if len(self.room) > LONGEST_NAME or not _ROOM.fullmatch(self.room):
            raise HTTPNotFound(f"A room's name has letters, digits, spaces, dots and dashes, up to {LONGEST_NAME}.")

    @view_config(request_method="GET", renderer="pushdemo.demo:templates/room.jinja2")
    def page(self) -> dict[str, Any]:
        """Return what the template shows."""
        return {
            "room": self.room,
            "url": self.request.route_path("room_stream", room=self.room),
            "heartbeat": self.request.registry["pushdemo.settings"].heartbeat,
            "longest_name": LONGEST_NAME,
            "longest_text": LONGEST_TEXT,
        }

    @view_config(route_name="room_stream")
    def stream(self) -> Response:
        """Stream what is said in the room, from the beginning of its history, and how many are there."""
        return self.request.push(MESSAGES, THERE, room=self.room, start="earliest")

    def _given(self, field: str) -> str:
        value = self.request.POST.get(field)
        return value if isinstance(value, str) else ""  # it may be a file

    @view_config(request_method="POST", require_csrf=True)
    def say(self) -> Response:
        """Publish what the visitor says. A form without a script is led back to the page."""
        name, text = (" ".join(self._given(field).split()) for field in ("name", "text"))
        if not 1 <= len(name) <= LONGEST_NAME or ":" in name:
            raise HTTPBadRequest(f"A name has 1 to {LONGEST_NAME} characters, and no colon.")
        if not 1 <= len(text) <= LONGEST_TEXT:
            raise HTTPBadRequest(f"A message has 1 to {LONGEST_TEXT} characters.")
        seconds = self.request.registry["pushdemo.demo.rate"].wait(self.request.client_addr or "")
        if seconds:
            headers = {"Retry-After": str(int(seconds) + 1)}
            raise HTTPTooManyRequests("That was a lot at once. Wait a moment.", headers=headers)
        if self.request.publish(MESSAGES, f"{name}: {text}", room=self.room) is None:
            raise HTTPServiceUnavailable("There are too many rooms at this moment.", headers={"Retry-After": "60"})
        if "text/html" in str(self.request.accept):
            return HTTPSeeOther(self.request.route_path("room", room=self.room))
        return Response(status=204)
