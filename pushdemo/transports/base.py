"""What the transports have in common: their protocols, what they tell besides messages, and a message as JSON."""

from __future__ import annotations

import json
from typing import Literal, Protocol

from pushdemo.topics.content import is_json
from pushdemo.topics.message import Message

# "place" is a beginning that a reader who keeps the id by itself need not hear of: an EventSource.
Notice = Literal["heartbeat", "begin", "place", "reset", "failing", "working", "end"]
Names = Literal["", "topic", "event"]  # how a message bears its topic's name: not, as a field, as the event's name


class Transport(Protocol):
    """What all four offer."""

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


class StreamTransport(Transport, Protocol):
    """A transport whose response goes on."""

    def preamble(self, retry: int) -> bytes:
        """The first bytes of every stream, so that the headers leave at once.

        `retry` is the ordinary reconnection time in milliseconds, for readers that keep the last one that they were
        told: a server that stops tells each client a short one.
        """

    def encode(self, message: Message, names: Names = "") -> bytes:
        """The message (of kind "message") as it is written, with its topic's name where `names` says so."""

    def notice(self, kind: Notice, id: str = "", content_type: str = "", after: str = "", content: str = "") -> bytes:
        """What tells that the stream lives, where it begins, had to skip, whose source fails or works again, or ends.

        `id` goes with a "begin", and with a "reset" that no message follows at once: a client that comes back with it
        goes on from there.
        `content_type` goes with an "end": that of the topic's bodies. `after` is the id of the last message before
        the notice, and `content` the JSON that an "end" brings, for formats whose notices have data.
        """

    def retry(self, milliseconds: int) -> bytes:
        """What tells a client that the server stops, and when to come back; nothing follows it."""


def json_object(message: Message, *, named: bool = False) -> str:
    """`{"id": ..., "content": ...}`, with the topic's name where `named`, and the event's where it has one.

    A JSON body is the value that it is, any other a string.
    """
    text = message.body.decode()
    content = text if is_json(message.content_type) else json.dumps(text)
    topic = f', "topic": {json.dumps(message.topic)}' if named else ""
    event = f', "event": {json.dumps(message.event)}' if message.event else ""
    return f'{{"id": {json.dumps(message.id)}, "content": {content}{topic}{event}}}'
