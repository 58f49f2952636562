"""`text/event-stream`: Server-Sent Events, as HTML (WHATWG) section 9.2, "Server-sent events", has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pushdemo.transports.texts import is_text

if TYPE_CHECKING:
    from pushdemo.topics.message import Message

name = "sse"
media_types = ("text/event-stream",)
response_type = "text/event-stream"

_LINE = re.compile("\r\n|\r|\n")
_NOTICES = {
    "heartbeat": b": heartbeat\n",  # without an empty line, at which a reader might see another event
    "reset": b"event: reset\ndata:\n\n",
    "failing": b"event: failing\ndata:\n\n",
    "end": b"event: end\ndata:\n\n",
}

carries = is_text


def preamble() -> bytes:
    """A comment, which every reader ignores."""
    return b": stream\n\n"


def event(data: str, *, id: str = "", event: str = "", retry: int | None = None) -> bytes:
    """One event. Each line of `data` (ended by LF, CR or CRLF: the format cannot tell them apart) is a `data` line.

    `retry` is in milliseconds. Raises ValueError for an id or event name that the format cannot carry: one with a line
    break, or an id with NUL, which a reader would drop.
    """
    if _LINE.search(id) or "\0" in id:
        raise ValueError(f"an event's id cannot carry a line break or NUL: {id!r}")
    if _LINE.search(event):
        raise ValueError(f"an event's name cannot carry a line break: {event!r}")
    fields = [f"id: {id}"] if id else []
    if event:
        fields.append(f"event: {event}")
    if retry is not None:
        fields.append(f"retry: {retry:d}")
    fields += [f"data: {line}" for line in _LINE.split(data)]
    return ("\n".join(fields) + "\n\n").encode()


def encode(message: Message) -> bytes:
    """`id`, `event` (the topic's name, where a stream carries several) and the body as `data`."""
    return event(message.body.decode(), id=message.id, event=message.topic)


def notice(kind: Literal["heartbeat", "reset", "failing", "end"], id: str = "", content_type: str = "") -> bytes:
    """A comment for the heartbeat, an event of that name for the others."""
    return f"id: {id}\n".encode() + _NOTICES[kind] if id else _NOTICES[kind]


def retry(milliseconds: int) -> bytes:
    """A `retry` field: the reader's own reconnection time from now on."""
    return f"retry: {milliseconds:d}\n\n".encode()
