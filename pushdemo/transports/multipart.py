"""`multipart/x-mixed-replace`: each message a MIME part that replaces the one before it.

Grammar: RFC 2046 section 5.1. The boundary line of the next part follows each part at once, since readers show a part
only when they see its end. What is said between two messages is therefore a header line of the part to come: readers
ignore fields that they do not know (RFC 2046 section 5.1: only `Content-` fields have a defined meaning).
"""

from __future__ import annotations

from pushdemo.topics.content import BOUNDARY
from pushdemo.topics.message import Message
from pushdemo.transports.base import Names, Notice

name = "multipart"
media_types = ("multipart/x-mixed-replace",)

response_type = f"multipart/x-mixed-replace;boundary={BOUNDARY}"

_DELIMITER = f"--{BOUNDARY}\r\n".encode()
_NOTICES = {
    "heartbeat": b"X-Heartbeat: 1\r\n",
    "begin": b"",
    "reset": b"X-Reset: 1\r\n",
    "failing": b"X-Failing: 1\r\n",
    "working": b"X-Failing: 0\r\n",
    "end": f"\r\n--{BOUNDARY}--\r\n".encode(),
}


def carries(content_type: str) -> bool:
    """Every type: a part is binary."""
    return True


def preamble(retry: int) -> bytes:
    """The boundary line that opens the first part. No reader of this format keeps a reconnection time."""
    return _DELIMITER


def encode(message: Message, names: Names = "") -> bytes:
    """Headers, blank line, body, and the boundary line after it; `X-Message-Id` bears the id, `X-Topic` the name.

    `X-Event` bears the name of the event, where the message has one.
    """
    topic = f"X-Topic: {message.topic}\r\n" if names else ""
    event = f"X-Event: {message.event}\r\n" if message.event else ""
    head = (
        f"Content-Type: {_with_charset(message.content_type)}\r\nContent-Length: {len(message.body)}\r\n"
        f"X-Message-Id: {message.id}\r\n{topic}{event}\r\n"
    )
    return b"".join((head.encode(), message.body, b"\r\n", _DELIMITER))


def _with_charset(content_type: str) -> str:
    # RFC 2046 section 4.1.2: text without a charset is US-ASCII. XML and JSON have UTF-8 as their own default.
    if content_type.lower().startswith("text/") and "charset" not in content_type.lower():
        return f"{content_type};charset=utf-8"
    return content_type


def notice(kind: Notice, id: str = "", content_type: str = "", after: str = "", content: str = "") -> bytes:
    """A header line of the part to come, after one with the id where there is one; for "end" the closing boundary.

    The part before it, which is empty, bears the type: Chromium reads the last picture by it.
    """
    line = f"X-Last-Event-Id: {id}\r\n" if id else f"Content-Type: {content_type}\r\n" if content_type else ""
    return line.encode() + _NOTICES[kind]


def retry(milliseconds: int) -> bytes:
    """`X-Retry`, a header line of a part that never comes."""
    return f"X-Retry: {milliseconds}\r\n".encode()
