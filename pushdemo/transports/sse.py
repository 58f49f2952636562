"""`text/event-stream`: Server-Sent Events, as HTML (WHATWG) section 9.2, "Server-sent events", has them."""

from __future__ import annotations

import json
import re

from pushdemo.topics.content import is_text
from pushdemo.topics.message import Message
from pushdemo.transports.base import Names, Notice

name = "sse"
media_types = ("text/event-stream",)
response_type = "text/event-stream;charset=utf-8"

_LINE = re.compile("\r\n|\r|\n")

# Neither an empty line nor data follows a comment or `retry`: some readers (@microsoft/fetch-event-source) dispatch an
# event at each empty line, and pages parse the data of each event as JSON. So do notices have data that is JSON.
_HEARTBEAT = b": heartbeat\n"
_REASONS = {
    "reset": "messages may have been missed",
    "failing": "the source fails and is tried again",
    "working": "messages come again",
    "end": "nothing follows",
}

carries = is_text


def preamble(retry: int) -> bytes:
    """A `retry` field with the reader's ordinary reconnection time, which undoes that of a server that has stopped."""
    return f"retry: {retry:d}\n".encode()


def event(data: str, *, id: str = "", event: str = "", topic: str = "") -> bytes:
    """One event. Each line of `data` (ended by LF, CR or CRLF: the format cannot tell them apart) is a `data` line.

    `topic` is a field that an EventSource ignores. Raises ValueError for an id or a name that the format cannot carry:
    one with a line break, or an id with NUL, which a reader would drop.
    """
    if "\n" in id or "\r" in id or "\0" in id:
        raise ValueError(f"an event's id cannot carry a line break or NUL: {id!r}")
    if "\n" in event or "\r" in event:
        raise ValueError(f"an event's name cannot carry a line break: {event!r}")
    head = f"id: {id}\n" if id else ""
    if event:
        head += f"event: {event}\n"
    if topic:
        head += f"topic: {topic}\n"
    if "\n" in data or "\r" in data:  # most have none, and a regular expression takes longer than all the rest
        data = _LINE.sub("\ndata: ", data)
    return f"{head}data: {data}\n\n".encode()


def encode(message: Message, names: Names = "") -> bytes:
    """`id`, the topic's name as the field `topic` or as the event's name, and the body as `data`.

    An event that has a name of its own keeps it; the topic's is then the field.
    """
    is_named = names == "event" and not message.event
    return event(
        message.body.decode(),
        id=message.id,
        event=message.topic if is_named else message.event,
        topic=message.topic if names and not is_named else "",
    )


def notice(kind: Notice, id: str = "", content_type: str = "", after: str = "", content: str = "") -> bytes:
    """A comment for the heartbeat; for the others an event of that name with the reason and the id as a JSON object.

    For "place" the id alone: a block without data sets it and is no event (HTML section 9.2.6).
    """
    if kind == "heartbeat":
        return _HEARTBEAT
    if kind == "place":
        return f"id: {id}\n\n".encode()
    if kind == "begin":
        return event(json.dumps({"last_event_id": id}), id=id, event="begin")
    brought = f', "content": {content}' if content else ""
    told = json.dumps({"reason": _REASONS[kind], "last_event_id": id or after or None})
    return event(f"{told[:-1]}{brought}}}", id=id, event=kind)


def retry(milliseconds: int) -> bytes:
    """A `retry` field: the reader's own reconnection time until the next stream begins."""
    return f"retry: {milliseconds:d}\n".encode()
