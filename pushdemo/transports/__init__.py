"""How a message travels to one client: one module a transport, bytes in and bytes out, no I/O, no state.

Each module of `STREAMS` offers what `Transport` says; `longpoll` answers with whole responses instead. The body of a
message belongs to its topic, the framing belongs here. Any thread may call them.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pushdemo.topics.message import Message
from pushdemo.transports import jsonlines, longpoll, multipart, sse

Notice = Literal["heartbeat", "reset", "failing", "end"]


class Kind(Protocol):
    """What all four have in common."""

    @property
    def name(self) -> str:
        """What `?transport=` calls it."""

    @property
    def media_types(self) -> tuple[str, ...]:
        """What `Accept` calls it, the type of the response first."""

    @property
    def response_type(self) -> str:
        """The Content-Type header of the response."""

    def carries(self, content_type: str) -> bool:
        """Whether bodies of this type can travel by it."""


class Transport(Kind, Protocol):
    """A streaming transport."""

    def preamble(self, retry: int) -> bytes:
        """The first bytes of every stream, so that the headers leave at once.

        `retry` is the ordinary reconnection time in milliseconds, for readers that keep the last one that they were
        told: a server that stops tells each client a short one.
        """

    def encode(self, message: Message) -> bytes:
        """The message (of kind "message") as it is written."""

    def notice(self, kind: Notice, id: str = "", content_type: str = "", after: str = "", content: str = "") -> bytes:
        """What tells a client that the stream lives, had to skip, has a failing source, or is complete.

        `id` goes with a "reset" that a message may be long to follow: to come back with it is to go on behind it.
        `content_type` goes with an "end": that of the topic's bodies. `after` is the id of the last message before
        the notice, and `content` the JSON that an "end" brings, for formats whose notices have data.
        """

    def retry(self, milliseconds: int) -> bytes:
        """What tells a client that the server goes, and when to come back; the stream ends behind it."""


# In the order in which the server prefers them.
STREAMS: dict[str, Transport] = {"multipart": multipart, "sse": sse, "jsonlines": jsonlines}
KINDS: dict[str, Kind] = {**STREAMS, "longpoll": longpoll}


def encode(transport: Transport, message: Message) -> bytes:
    """The entry `message` as `transport` writes it, whatever its kind; made once and kept with the message."""
    return message.encoded(transport.name, lambda entry: _encode(transport, entry))


def _encode(transport: Transport, message: Message) -> bytes:
    return transport.encode(message) if message.kind == "message" else transport.notice(message.kind, after=message.id)
