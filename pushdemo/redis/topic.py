"""A topic whose order is that of a Redis Stream, and whose history in this process is a mirror of the stream's end.

Theory of operation. A topic has two keys at Redis: its state, a hash that says in which life (epoch) it is and how far,
and the stream of that life. An entry's id in the stream is `number-0`; a notice after message `number` is `number-1`
and so on. Each entry names its own nonce and that of the entry before it, so that a mirror knows whether something is
missing, and whether the Redis that it asks is the one that it is a mirror of.

While the topic has clients here, the reader keeps the mirror current. Otherwise the mirror stays where it is: a client
that begins looks for itself, and a message that is published here does not have to be taken over.

What is in the stream may not be ours, or be of a later version: the mirror says so once, passes it over, and tells a
reset where a message is missing.

Run by: any thread; the state is under `lock`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Protocol, cast

from pushdemo.redis.connection import Argument, Call, Fields, Link
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.scripts import FORMAT, LOOK, PUBLISH
from pushdemo.topics import content
from pushdemo.topics.message import EntryKind, Message, event_id, parse_event_id
from pushdemo.topics.topic import Beginning, Prepared, Topic

log = logging.getLogger("pushdemo")

Place = tuple[int, int]  # an entry's id in the stream
Known = tuple[str, str, int, str, bytes]  # what scripts know as the caller's; the first of it is the epoch, or ""
StreamEntry = tuple[bytes, Sequence[bytes]]  # as Redis gives it: its id, names and what they name
_KINDS = {b"message", b"reset", b"failing", b"end"}
_FORMAT = FORMAT.encode()
_BREAK = re.compile(rb"[\r\n\0]")
SKEW = 2.0  # seconds by which the clocks of nodes and Redis may differ


class Lease(NamedTuple):
    """The right to be a topic's producer: `fence` is higher than that of all leases before it in the same epoch."""

    epoch: str
    fence: int


class LeaseLostError(RuntimeError):
    """Someone else has been given the lease, or the topic has begun a new life."""


class Keeper(Protocol):
    """What keeps a topic's mirror current while the topic has clients: the reader."""

    def follow(self, topic: RedisTopic) -> None: ...

    def leave(self, topic: RedisTopic) -> None: ...


class RedisTopic(Topic):
    """A topic that all nodes share; see Topic. `lifetime` is how many seconds it is kept at Redis while nobody uses it.

    Without a `keeper` nothing keeps the mirror current but what is published here.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        content_type: str = content.XML,
        history: int = 100,
        history_bytes: int | None = None,
        pattern: str = "",
        lifetime: float | None = None,
        keeper: Keeper | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            name, content_type=content_type, history=history, history_bytes=history_bytes, pattern=pattern, clock=clock
        )
        self.key = link.key(FORMAT, "topic", name)
        self.stream = link.key(FORMAT, "stream", name)
        self.channel = link.news(FORMAT, "topic", name)
        self.current = False  # see Follower; the reader's thread sets it
        self.lease_news: Callable[[Fields], None] = lambda news: None  # called with what is said of the topic's lease
        self.lifetime = lifetime
        self.touch_due = 0.0  # when Redis is to be told that the topic is in use; the reader's thread alone uses it
        self._link = link
        self._keeper = keeper
        self._look = link.script(LOOK, writes=False)
        self._publish = link.script(PUBLISH, publishes=True)
        self._clock_keys = [link.key(FORMAT, "clock"), link.key(FORMAT, "changes")]
        self._refreshing = threading.Lock()  # one at a time; guards the next line
        self._refreshed = float("-inf")  # when the newest look of `refresh` began
        self._notices = 0  # of the stream's, after the last message; under `lock`, as is all that follows
        self._nonce = b""  # of the newest entry, by which it is known again
        self._shared = False  # whether the epoch is one of Redis's
        self._cut = False  # clients have been told that nothing comes from Redis
        self._strange = False  # something in the stream was not ours, which the log knows
        self._told: tuple[int, bool] = self._mark()

    def begin_in_child(self) -> None:
        """See Topic. The life of a topic that Redis knows is Redis's."""
        epoch, history = self.epoch, self._history
        super().begin_in_child()
        self.current = False
        self._refreshing = threading.Lock()
        if self._shared:
            self.epoch, self._history = epoch, history

    # -- what publishers and sources do

    def _append(self, body: bytes, kind: EntryKind, event: str = "") -> Message:
        message = self.append(body, kind, event=event)
        assert message is not None
        return message

    def end(self) -> None:
        """See Topic. Raises RedisUnavailableError."""
        self.append(b"", "end")

    def append(
        self,
        body: bytes,
        kind: EntryKind | Literal["end"],
        lease: Lease | None = None,
        nonce: str = "",
        *,
        event: str = "",
    ) -> Message | None:
        """Add an entry to the stream, and to the mirror where that is current; None for an end.

        Raises LeaseLostError where `lease` has been given to someone else; RedisUnavailableError, after which the entry
        may be in the stream or not: asked for again with the same `nonce`, it is added once, unless someone else's came
        in between. Raises RuntimeError once the topic has ended.
        """
        known = self.known()
        if lease and lease.epoch != known[0]:
            raise LeaseLostError
        if self.closed or (self.ended and self.current):
            raise self._has_ended()
        nonce = nonce or os.urandom(8).hex()
        answer = self._publish(*self.publishing(known, nonce, kind, body, lease, event))
        return self._answered(answer, nonce, kind, body, event)

    def prepare(self, body: bytes, *, event: str = "") -> Prepared:
        """See Topic: in one round trip, with what other topics have."""
        known, nonce = self.known(), os.urandom(8).hex()
        if self.closed or (self.ended and self.current):
            raise self._has_ended()
        call = self._publish.with_(*self.publishing(known, nonce, "message", body, None, event))

        def finish(answer: Any) -> Message:
            if isinstance(answer, Exception):
                raise answer
            message = self._answered(answer, nonce, "message", body, event)
            assert message is not None
            return message

        return Prepared(self._link.ask, call, finish)

    def _answered(self, answer: Sequence[Any], nonce: str, kind: str, body: bytes, event: str) -> Message | None:
        if answer[0] == b"lost":
            raise LeaseLostError
        if answer[0] == b"ended":
            self.catch_up()
            self.tell()
            raise self._has_ended()
        epoch, place = answer[1].decode(), (int(answer[2]), int(answer[3]))
        return self._added(epoch, place, nonce, kind, body, event, before=answer[4] if answer[4:] else None)

    def publishing(
        self, known: Known, nonce: str, kind: str, body: bytes, lease: Lease | None = None, event: str = ""
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of PUBLISH for an entry."""
        fence = lease.fence if lease else ""
        return (
            [self.key, self.stream, *self._clock_keys],
            [*known, nonce, kind, body, event, fence, self.kept, self._milliseconds(), self.channel, self.name],
        )

    def _has_ended(self) -> RuntimeError:
        return RuntimeError(f"topic {self.name} has ended: nothing can be published to it")

    def _added(
        self, epoch: str, place: Place, nonce: str, kind: str, body: bytes, event: str, *, before: bytes | None
    ) -> Message | None:
        with self.lock:
            if not self._shared and place == (1, 0):  # the topic's first entry: nothing can be missing
                self._begin_life(epoch, [])
            same = self._shared and epoch == self.epoch
            here = same and place <= (self.number, self._notices)  # the news may have been faster
            if same and not here and before == self._nonce:
                self._take(place, nonce.encode(), kind, body, event, self.clock())
                here = True
        if not here and (self.clients or not self._keeper):  # others have published meanwhile
            with suppress(RedisUnavailableError):  # which the reader will bring: this entry is in the stream
                self.catch_up()
        self.tell()
        if kind == "end":
            return None
        with self.lock:
            id = event_id(epoch, place[0])
            for entry in reversed(self._history):
                if entry.id == id and entry.kind == kind:
                    return entry
            return self._message(self.head, place[0], id, body, kind, event, self.clock())

    # -- what clients do

    def join(self) -> None:
        """See Topic. The first client has the reader keep the mirror current."""
        super().join()
        if self._keeper:
            self._keeper.follow(self)

    def leave(self) -> None:
        """See Topic."""
        super().leave()
        if self._keeper and not self.clients:
            self._keeper.leave(self)

    @property
    def wanted(self) -> bool:
        """See Follower."""
        return self.clients > 0

    def begin(self, last_event_id: str = "") -> Beginning:
        """See Topic. The mirror may be behind: it is not current, or another node has just given that id out.

        Clients that come back by the thousand do not wait for a Redis that is gone: then as far as the mirror goes.
        """
        parsed = parse_event_id(last_event_id)
        if not self.current or (parsed and (parsed[0] != self.epoch or parsed[1] > self.number)):
            self.refresh()
        return super().begin(last_event_id)

    def newest_id(self, before: float) -> str:
        """See Topic. The clocks of nodes and Redis may differ by SKEW: rather a message twice than none."""
        if not self.current:
            self.refresh()
        return super().newest_id(before - SKEW)

    def refresh(self) -> None:
        """Have the mirror be as the stream is now, or later; for callers at one time, one look does.

        Tries once more where Redis was well before: a connection may have ended. Does nothing while it is in trouble.
        """
        asked = self.clock()
        with self._refreshing:
            if self._refreshed > asked or self._link.trouble:
                return
            for _ in range(2):
                began = self.clock()
                with suppress(RedisUnavailableError):
                    self.catch_up()
                    self._refreshed = began
                    return

    # -- the mirror

    def known(self) -> Known:
        """What the scripts begin with: by it they tell whether this Redis is the one that the mirror is of."""
        with self.lock:
            epoch = self.epoch if self._shared else ""
            return epoch, os.urandom(4).hex(), self.number, f"{self.number}-{self._notices}", self._nonce

    def newest_message(self) -> Message | None:
        """The newest message in the mirror; under the lock."""
        return next((entry for entry in reversed(self._history) if entry.kind == "message"), None)

    def tell(self) -> None:
        """Tell the listeners, unless they know."""
        with self.lock:
            mark = self._mark()
            if mark == self._told:
                return
            self._told = mark
        self._tell()

    def catch_up(self) -> None:
        """Take over what the stream has and the mirror has not, without telling anyone.

        Finds out whether the topic has begun a new life: in a Redis that was flushed or that went back to an older
        copy of its data, the numbers begin again.
        Raises RedisUnavailableError.
        """
        call = self.look()
        self.take_over(call, self._link.run(call))

    def look(self) -> Call:
        """See Follower."""
        keys = [self.key, self.stream]
        return self._look.with_(keys, [*self.known(), self.kept, self._milliseconds()])

    def take_over(self, call: Call, answer: Sequence[Any]) -> None:
        """See Follower."""
        epoch, number, notices, entries = answer[0].decode(), int(answer[1]), int(answer[2]), answer[3]
        with self.lock:
            if call.args[0] != (self.epoch if self._shared else ""):
                return  # another look has found another life meanwhile, which this one may be from before
            if epoch != call.args[0]:
                self._begin_life(epoch, entries)
            self._absorb(entries)
            if (number, notices) > (self.number, self._notices):  # the stream has lost what the state knows of
                if number > self.number:
                    self._reset(number)
                self._notices, self._nonce = notices, b""

    def absorb(self, news: Fields) -> bool:
        """See Follower."""
        if news.get(b"k") in (b"free", b"taken"):
            self.lease_news(news)
            return True
        with self.lock:
            if news[b"l"].decode() != self.epoch:
                return False
            place = _place(news[b"i"])
            if place > (self.number, self._notices):
                if news[b"p"] != self._nonce or not _is_ours(news, self.content_type):
                    return False
                self._take_entry(place, news)
        return True

    def cut_off(self, cut: bool) -> None:
        """See Follower. The notice is this node's own: it has no place in the stream."""
        with self.lock:
            if cut == self._cut or not (self.clients or self._cut):
                return
            self._cut = cut
            id, kind = event_id(self.epoch, self.number), "failing" if cut else "working"
            self._keep(self._message(self.head + 1, self.number, id, b"", kind, "", self.clock()))
        self.tell()

    def _milliseconds(self) -> str:
        return str(round(self.lifetime * 1000)) if self.lifetime is not None else ""

    def _absorb(self, entries: Sequence[StreamEntry]) -> None:
        """Take entries over as the stream has them, after a reset where they do not follow what the mirror has."""
        for id, words in entries:
            fields = dict(zip(words[::2], words[1::2], strict=True))  # Redis sees to it that they are pairs
            place = number, notice = _place(id)
            if place <= (self.number, self._notices):
                continue
            if not _is_ours(fields, self.content_type):
                self._pass_over(place, fields)
                continue
            missed = number > self.number + (notice == 0)  # what was in between has left the stream
            if missed or self._nonce not in (b"", fields[b"p"]):
                self._reset(number - (notice == 0))
            self._take_entry(place, fields)

    def _pass_over(self, place: Place, fields: Fields) -> None:
        """An entry that is not ours, or of a later version: a message of that kind is a reset."""
        if not self._strange:
            self._strange = True
            log.error("topic %s passes over what it does not know in its stream at Redis (not said again)", self.name)
        if place[0] > self.number:
            self._reset(place[0])
        self._notices, self._nonce = place[1], fields.get(b"n", b"")

    def _begin_life(self, epoch: str, entries: Sequence[StreamEntry]) -> None:
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
        if any(b"end" not in words[1::2] for _, words in entries):
            # Who has waited here since before Redis was there begins at the newest message, as any new client does:
            # the first position is left out, and who is in front of it has a gap to jump.
            self.head += 1

    def _reset(self, number: int) -> None:
        """Tell everyone that the messages up to `number` are not all here."""
        id = event_id(self.epoch, number)
        self._keep(self._message(self.head + 1, number, id, b"", "reset", "", self.clock()))
        self._notices = 0

    def _take_entry(self, place: Place, fields: Fields) -> None:
        """The mirror's next entry, as Redis has it; under the lock."""
        ago = time.time() - int(fields[b"t"]) / 1000
        kind, event = fields.get(b"k", b"message").decode(), fields.get(b"e", b"").decode()
        self._take(place, fields[b"n"], kind, fields[b"b"], event, self.clock() - max(0.0, ago))

    def _take(self, place: Place, nonce: bytes, kind: str, body: bytes, event: str, at: float) -> None:
        """The mirror's next entry; under the lock."""
        number, self._notices = place
        self._nonce = nonce
        if kind == "end":
            self.ended = True
            self.notify_all()
            return
        id = event_id(self.epoch, number)
        self._keep(self._message(self.head + 1, number, id, body, kind, event, at))

    def _message(self, position: int, number: int, id: str, body: bytes, kind: str, event: str, at: float) -> Message:
        known = cast(EntryKind, kind)
        return Message(position, number, id, body, self.content_type, kind=known, time=at, topic=self.name, event=event)

    def _mark(self) -> tuple[int, bool]:
        return self.head, self.ended


def _place(id: bytes) -> Place:
    number, notice = map(int, id.split(b"-"))
    return number, notice


def _is_ours(fields: Fields, content_type: str) -> bool:
    """Whether an entry, or news of one, is one that this version writes, with a body that transports can carry."""
    try:
        body, event = fields[b"b"], fields.get(b"e", b"")
        if content.is_text(content_type):
            body.decode()
        event.decode()
        return (
            fields.get(b"v", _FORMAT) == _FORMAT
            and fields.get(b"k", b"message") in _KINDS
            and fields[b"n"].isalnum()
            and (not fields[b"p"] or fields[b"p"].isalnum())
            and len(fields[b"t"]) < 16
            and fields[b"t"].isdigit()
            and not _BREAK.search(event)
            and not (content.is_json(content_type) and _BREAK.search(body))
        )
    except (KeyError, UnicodeDecodeError):
        return False
