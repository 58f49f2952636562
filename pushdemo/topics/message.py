"""A message: a body with its place in a topic, its event id, and the bytes of it that every client is written.

Nothing here knows a transport's format or does I/O. Made by whichever thread publishes; afterwards only the encoded
forms change, under the lock below.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Literal

from pushdemo.forking import call_in_child

EntryKind = Literal["message", "reset", "failing", "working"]

_DIGITS = 19  # of a message's number at most: int() refuses thousands of them, and no topic comes as far

# Held while a message is encoded for the first time in a format: threads that ask at once share one result. Reentrant,
# since one form can be made from another (a chunk from the bytes within it).
_encoding = threading.RLock()


def _begin_in_child() -> None:
    global _encoding
    _encoding = threading.RLock()


call_in_child(_begin_in_child)


def event_id(epoch: str, number: int) -> str:
    """The id of message `number` in the life `epoch` of a topic, as a client sees it and sends it back."""
    return f"{epoch}-{number}"


def parse_event_id(text: str) -> tuple[str, int] | None:
    """The epoch and the number of an event id, or None for a text that is none."""
    epoch, _, digits = text.rpartition("-")
    if not epoch or not digits.isascii() or not digits.isdigit() or len(digits) > _DIGITS:
        return None
    return epoch, int(digits)


def join_event_ids(ids: Mapping[str, str]) -> str:
    """The event ids of several topics, by their names, as one: `name:id,name:id`."""
    return ",".join(f"{name}:{id}" for name, id in ids.items())


def split_event_ids(text: str) -> dict[str, str]:
    """The event ids by their topics' names; what is no such pair is a name without an id."""
    return dict(part.partition(":")[::2] for part in text.split(",")) if text else {}


class Message:
    """One entry of a topic's history, shared by all its clients.

    `position` counts a topic's entries in this process; clients' cursors are positions. `number` counts its messages,
    and `id` (epoch and number) is what a client sees and sends back to resume. `topic` is the topic's name;
    `event` is the event's name where the publisher gave it one. An entry of another `kind` than "message" has no body:
    it tells every client the same thing at the same place in the order.
    """

    __slots__ = (
        "_epoch",
        "_forms",
        "_id",
        "body",
        "content_type",
        "event",
        "kind",
        "number",
        "position",
        "time",
        "topic",
    )

    def __init__(
        self,
        position: int,
        number: int,
        id: str,
        body: bytes,
        content_type: str,
        *,
        kind: EntryKind = "message",
        time: float = 0.0,
        topic: str = "",
        event: str = "",
        epoch: str = "",
    ) -> None:
        self.position = position
        self.number = number
        self._id = id
        self._epoch = epoch
        self.body = body
        self.content_type = content_type
        self.kind = kind
        self.time = time
        self.topic = topic
        self.event = event
        self._forms: dict[Hashable, bytes] | None = None  # most of a history is on its way to nobody

    @property
    def id(self) -> str:
        """What a client sees and sends back; made of `epoch` and number where none was given: it takes 64 bytes."""
        return self._id or event_id(self._epoch, self.number)

    @property
    def forms(self) -> dict[Hashable, bytes]:
        """The bytes that are kept, by their keys."""
        return dict(self._forms or {})

    def encoded(self, key: Hashable, encode: Callable[[Message], bytes]) -> bytes:
        """The bytes for `key`, made by `encode` when first asked for: once, however many threads and clients ask."""
        if (forms := self._forms) and (data := forms.get(key)) is not None:
            return data
        with _encoding:
            if (forms := self._forms) is None:
                forms = self._forms = {}
            if key not in forms:
                forms[key] = encode(self)
            return forms[key]

    def forget_encoded(self) -> None:
        """Nobody is on the way to this entry: whoever asks for its bytes after all has them made again."""
        self._forms = None
