"""`application/x-ndjson`: one JSON object a line.

Format: the NDJSON specification 1.0 (each line an RFC 8259 value, ended by LF). A line is a message when it has
`content`; a line with `state` says something about the stream.
"""

from __future__ import annotations

import json

from pushdemo.topics.content import is_text
from pushdemo.topics.message import Message
from pushdemo.transports.base import Names, Notice, json_object

name = "jsonlines"
media_types = ("application/x-ndjson", "application/jsonl")
response_type = "application/x-ndjson;charset=utf-8"

_STATES = {
    "heartbeat": "heartbeat",
    "begin": "begin",
    "reset": "reset",
    "failing": "failing",
    "working": "working",
    "end": "done",
}

carries = is_text


def preamble(retry: int) -> bytes:
    """A heartbeat: a line that readers pass over. No reader of this format keeps a reconnection time."""
    return notice("heartbeat")


def encode(message: Message, names: Names = "") -> bytes:
    """`{"id": ..., "content": ...}`, with `"topic"` where a stream carries several."""
    return (json_object(message, named=names != "") + "\n").encode()


def notice(kind: Notice, id: str = "", content_type: str = "", after: str = "", content: str = "") -> bytes:
    """`{"state": ...}`, with `"content"` and `"last_event_id"` where there is one; "end" is `"done"`."""
    last = f', "last_event_id": {json.dumps(id)}' if id else ""
    brought = f', "content": {content}' if content else ""
    return f'{{"state": "{_STATES[kind]}"{brought}{last}}}\n'.encode()


def retry(milliseconds: int) -> bytes:
    """`{"state": "waiting", "retry": ...}`: the server goes; ask again after so many milliseconds."""
    return f'{{"state": "waiting", "retry": {milliseconds:d}}}\n'.encode()
