"""A topic whose order is that of a Redis Stream, and whose history in this process is a mirror of the stream's end.

A topic has two keys: a hash, its state, which says in which life (epoch) it is and how far, and the stream of that
life. An entry's id in the stream is `number-0`; a notice behind message `number` is `number-1` and so on. What an entry
consists of is the stream's; its position is this process's own. Run by: any thread; the state is under `changed`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, cast

from pushdemo.redis.connection import Fields, Link, RedisUnavailableError
from pushdemo.redis.scripts import LOOK, PUBLISH
from pushdemo.topics import content
from pushdemo.topics.message import EntryKind, Message, event_id, parse_event_id
from pushdemo.topics.topic import Beginning, Topic

ENDED_FOR = 24 * 3600  # seconds that an ended topic is remembered; then it begins anew
_LIVES = 5  # how often a topic may begin anew while one message is being published

Place = tuple[int, int]  # an entry's id in the stream
Known = tuple[str, str, int, str, bytes]  # see redis/scripts.py: the first of it is the epoch, or ""
Entry = tuple[bytes, Fields]  # as the client library gives it


class Lease(NamedTuple):
    """The right to be a topic's producer: `fence` is higher than that of all leases before it in the same epoch."""

    epoch: str
    fence: int


class LeaseLostError(RuntimeError):
    """Someone else has been given the lease, or the topic has begun a new life."""


class RedisTopic(Topic):
    """A topic that all nodes share; see Topic. Its reader (redis/listener.py) keeps the mirror up with the stream."""

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        content_type: str = content.XML,
        history: int = 100,
        history_bytes: int | None = None,
        pattern: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            name, content_type=content_type, history=history, history_bytes=history_bytes, pattern=pattern, clock=clock
        )
        self.key = link.key("topic", name)  # of its state, and in the news
        self._stream = link.key("stream", name)
        self._link = link
        self._look = link.script(LOOK)
        self._publish = link.script(PUBLISH)
        self._catching_up = threading.Lock()  # one at a time, so that what an earlier look has found is not the last
        self._notices = 0  # of the stream's, behind the last message; under the lock, as is all that follows
        self._nonce = b""  # of the newest entry, by which it is known again
        self._shared = False  # whether the epoch is one of Redis's
        self._told: tuple[int, bool] = self._mark()

    def begin_in_child(self) -> None:
        """See Topic. The life of a topic that Redis knows is Redis's."""
        epoch, history = self.epoch, self._history
        super().begin_in_child()
        self._catching_up = threading.Lock()
        if self._shared:
            self.epoch, self._history = epoch, history

    # -- what publishers and sources do

    def _append(self, body: bytes, kind: EntryKind) -> Message:
        message = self.append(body, kind)
        assert message is not None
        return message

    def end(self) -> None:
        """See Topic. Raises RedisUnavailableError."""
        self.append(b"", "end")

    def append(
        self, body: bytes, kind: EntryKind | Literal["end"], lease: Lease | None = None, nonce: str = ""
    ) -> Message | None:
        """Add an entry to the stream and to the mirror, and tell everyone here; None for an end.

        Raises LeaseLostError where `lease` has been given to someone else; RedisUnavailableError, after which the entry
        may be in the stream or not: asked for again with the same `nonce`, it is added once, unless someone else's came
        in between. Raises RuntimeError once the topic has ended.
        """
        nonce = nonce or os.urandom(8).hex()
        for _ in range(_LIVES):
            if self.ended or self.closed:
                break
            known = self.known()
            epoch = known[0]  # of the same look, as the reader may find a new life meanwhile
            if lease and lease.epoch != epoch:
                raise LeaseLostError
            answer = self._publish(
                [self.key, self.stream(epoch)],
                [*known, nonce, kind, body, lease.fence if lease else "", self.kept, ENDED_FOR, self._link.channel],
            )
            if answer[0] == b"added":
                place = int(answer[1]), int(answer[2])
                return self._added(epoch, place, nonce, kind, body, before=answer[3] if answer[3:] else None)
            if answer[0] == b"lost":
                raise LeaseLostError
            self.catch_up()
            self.tell()
        raise RuntimeError(f"topic {self.name} has ended: nothing can be published to it")

    def _added(
        self, epoch: str, place: Place, nonce: str, kind: str, body: bytes, *, before: bytes | None
    ) -> Message | None:
        with self.changed:
            same = epoch == self.epoch
            here = same and place <= (self.number, self._notices)  # the news may have been faster
            if same and not here and before == self._nonce:
                self._take(place, nonce.encode(), kind, body, self.clock())
                here = True
        if not here:  # others have published meanwhile
            with suppress(RedisUnavailableError):  # which the reader will bring: this entry is in the stream
                self.catch_up()
        self.tell()
        if kind == "end":
            return None
        with self.changed:
            id = event_id(epoch, place[0])
            for entry in reversed(self._history.values()):
                if entry.id == id and entry.kind == kind:
                    return entry
            return self._message(self.head, place[0], id, body, kind, self.clock())

    # -- what clients do

    def begin(self, last_event_id: str = "") -> Beginning:
        """See Topic. An id that another node has given out a moment ago may be ahead of this mirror.

        Clients that come back by the thousand do not wait for a Redis that is gone: then as far as the mirror goes.
        """
        parsed = parse_event_id(last_event_id)
        if parsed and (parsed[0] != self.epoch or parsed[1] > self.number):
            with suppress(RedisUnavailableError):
                self.catch_up(patient=False)
        return super().begin(last_event_id)

    # -- the mirror

    def stream(self, epoch: str) -> str:
        """The key of the stream of one of the topic's lives."""
        return f"{self._stream}:{epoch}"

    def known(self) -> Known:
        """What the scripts begin with: by it they tell whether this Redis is the one that the mirror is of."""
        with self.changed:
            epoch = self.epoch if self._shared else ""
            return epoch, os.urandom(4).hex(), self.number, f"{self.number}-{self._notices}", self._nonce

    def newest_message(self) -> Message | None:
        """The newest message in the mirror; under the lock."""
        return next((entry for entry in reversed(self._history.values()) if entry.kind == "message"), None)

    def tell(self) -> None:
        """Tell the listeners, unless they know."""
        with self.changed:
            mark = self._mark()
            if mark == self._told:
                return
            self._told = mark
        self._tell()

    def catch_up(self, *, patient: bool = True) -> None:
        """Take over what the stream has and the mirror has not, without telling anyone.

        Finds out whether the topic has begun a new life: in a Redis that was flushed or that went back to an older
        copy of its data, the numbers begin again. Does nothing while Redis is known to be gone, unless `patient`.
        Raises RedisUnavailableError.
        """
        with self._catching_up:
            if not patient and self._link.trouble:  # whoever held the lock may have waited for that in vain
                return
            found, number, notices = self._look([self.key, self.stream(self.epoch)], self.known())
            epoch = found.decode()
            with self.changed:
                same = self._shared and epoch == self.epoch
                if same and (number, notices) <= (self.number, self._notices):
                    return
                place = f"({self.number}-{self._notices}" if same else "-"
            key = self.stream(epoch)
            entries = self._link.call(lambda: self._link.client.xrange(key, place))
            with self.changed:
                if not same:
                    self._begin_life(epoch, entries)
                self._absorb(entries)

    def absorb(self, news: Fields) -> bool:
        """Take over the entry that the news tell of, unless the mirror has it.

        False where it does not follow what the mirror has, or is of another life.
        """
        with self.changed:
            if news[b"e"].decode() != self.epoch:
                return False
            place = _place(news[b"i"])
            if place > (self.number, self._notices):
                if news[b"p"] != self._nonce:
                    return False
                self._take_entry(place, news)
        return True

    def _absorb(self, entries: Sequence[Entry]) -> None:
        """Take entries over as the stream has them, behind a reset where they do not follow what the mirror has."""
        for id, fields in entries:
            place = number, notice = _place(id)
            if place <= (self.number, self._notices):
                continue
            missed = number > self.number + (notice == 0)  # what was in between has left the stream
            if missed or self._nonce not in (b"", fields[b"p"]):
                self._reset(number - (notice == 0))
            self._take_entry(place, fields)

    def _begin_life(self, epoch: str, entries: Sequence[Entry]) -> None:
        """Forget the life before this one; under the lock, which is held until its entries are taken over."""
        before = 0
        if entries:
            number, notice = _place(entries[0][0])
            before = number - (notice == 0)
        told = self._shared or self.head > 0
        self._forget_history()
        self.epoch, self._shared, self.ended, self._nonce = epoch, True, False, b""
        if told:
            self._reset(before)
            return
        self.number, self._notices = before, 0
        if any(fields.get(b"k") != b"end" for _, fields in entries):
            # Who has waited here since before Redis was there begins at the newest message, as any new client does:
            # the first position is left out, and who is in front of it has a gap to jump.
            self.head += 1

    def _reset(self, number: int) -> None:
        """Tell everyone that the messages up to `number` are not all here."""
        id = event_id(self.epoch, number)
        self._keep(self._message(self.head + 1, number, id, b"", "reset", self.clock()))
        self._notices = 0

    def _take_entry(self, place: Place, fields: Fields) -> None:
        """The mirror's next entry, as Redis has it; under the lock."""
        ago = time.time() - int(fields[b"t"]) / 1000
        kind = fields.get(b"k", b"message").decode()
        self._take(place, fields[b"n"], kind, fields[b"b"], self.clock() - max(0.0, ago))

    def _take(self, place: Place, nonce: bytes, kind: str, body: bytes, at: float) -> None:
        """The mirror's next entry; under the lock."""
        number, self._notices = place
        self._nonce = nonce
        if kind == "end":
            self.ended = True
            self.changed.notify_all()
            return
        id = event_id(self.epoch, number)
        self._keep(self._message(self.head + 1, number, id, body, kind, at))

    def _message(self, position: int, number: int, id: str, body: bytes, kind: str, at: float) -> Message:
        known = cast(EntryKind, kind)
        return Message(position, number, id, body, self.content_type, kind=known, time=at, topic=self.name)

    def _mark(self) -> tuple[int, bool]:
        return self.head, self.ended


def _place(id: bytes) -> Place:
    number, notice = map(int, id.split(b"-"))
    return number, notice
