"""A message: a body with its place in a topic, and the bytes of it that every client is written.

Nothing here knows a transport's format or does I/O. Made by whichever thread publishes; afterwards only the table of
encoded forms changes, under the lock below.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Literal

from pushdemo.forking import call_in_child

Kind = Literal["message", "reset", "failing"]

# Held while a message is encoded for the first time in a format: threads that ask at once share one result. Reentrant,
# since one form can be made from another (a chunk from the bytes within it).
_encoding = threading.RLock()


def _begin_in_child() -> None:
    global _encoding
    _encoding = threading.RLock()


call_in_child(_begin_in_child)


class Message:
    """One entry of a topic's history, shared by all its clients.

    `position` counts a topic's entries in this process; clients' cursors are positions. `number` counts its messages,
    and `id` (epoch and number) is what a client sees and sends back to resume. `topic` is the topic's name where one
    stream carries several, else empty. An entry of another `kind` than "message" has no body: it tells every client the
    same thing at the same place in the order.
    """

    __slots__ = ("_encoded", "body", "content_type", "id", "kind", "number", "position", "time", "topic")

    def __init__(
        self,
        position: int,
        number: int,
        id: str,
        body: bytes,
        content_type: str,
        *,
        kind: Kind = "message",
        time: float = 0.0,
        topic: str = "",
    ) -> None:
        self.position = position
        self.number = number
        self.id = id
        self.body = body
        self.content_type = content_type
        self.kind = kind
        self.time = time
        self.topic = topic
        self._encoded: dict[Hashable, bytes] = {}

    def encoded(self, key: Hashable, encode: Callable[[Message], bytes]) -> bytes:
        """The bytes for `key`, made by `encode` when first asked for: once, however many threads and clients ask."""
        try:
            return self._encoded[key]
        except KeyError:
            with _encoding:
                if key not in self._encoded:
                    self._encoded[key] = encode(self)
                return self._encoded[key]
