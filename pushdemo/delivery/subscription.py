"""A client's subscription to its topics, as the body of its response: a cursor in each of them, and no queue.

What the client has not been written yet is in the topics' histories. Whoever holds the response owns the subscription
and alone calls it: the worker thread that iterates it, or the server that parked it.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pushdemo.abandoned import Body
from pushdemo.delivery.access import NO_RECORD
from pushdemo.delivery.cursor import Cursor, beginning
from pushdemo.delivery.metrics import Counters
from pushdemo.delivery.rights import LOOK, UNLIMITED, Orders, Right
from pushdemo.topics.message import Message, join_event_ids
from pushdemo.topics.topic import Topic
from pushdemo.transports import Names, Notice, StreamTransport, format_of, longpoll
from pushdemo.transports.longpoll import State

LARGE = 32_768  # bytes: a larger body is sent from the object that all its clients share, not copied for one
_FIRST = 32_768  # bytes of history that the first write brings at most; the rest follows as the client reads
_PIECE = 262_144  # bytes of messages in the answer to a long poll, after which its client asks again

_RETRY = 2_000  # milliseconds over which the clients of a server that goes are spread

_TOGETHER = 2  # entries: an answer with more is not kept for others


def retry_hint() -> int:
    """After how many milliseconds a client should come back when the server goes: another number for each."""
    return random.randrange(100, _RETRY)


def retry_when_refused(refused: int) -> int:
    """After how many milliseconds a client should come back that is the `refused`th in a row: 2 s to a minute."""
    return round(min(60_000, 2_000 * 1.5 ** min(refused, 10)) * random.uniform(0.5, 1.0))


@dataclass(frozen=True)
class Pace:
    """How long things may take, in seconds; one object for all clients of an application."""

    heartbeat: float = 15.0  # without a byte written, before a stream's heartbeat
    stall_timeout: float = 30.0  # that a client may leave its socket full
    longpoll_timeout: float = 25.0  # that a long poll waits for a message
    counters: Counters = field(default_factory=Counters, compare=False)  # what happens to them is counted there
    retry: float = 3.0  # before a client reconnects that has lost its stream
    orders: Orders = field(default_factory=Orders, compare=False)  # that end clients before their topics end

    @property
    def retry_milliseconds(self) -> int:
        """`retry` as the transports have it."""
        return round(1000 * self.retry)


class _Client:
    """What a stream and a long poll have in common. `release` is called once, when the client is gone.

    `release` must not take a lock: the last resort that calls it is the garbage collector, in any thread at any time.
    """

    __slots__ = ("_last_event_id", "_release", "_reset", "_state", "cursors", "pace", "record", "right")

    def __init__(
        self,
        topics: Topic | Sequence[Topic],
        transport: str,
        pace: Pace,
        last_event_id: str,
        release: Callable[[], None],
        right: Right,
    ) -> None:
        topics = [topics] if isinstance(topics, Topic) else topics
        if len(topics) > 1:
            topics = sorted(topics, key=lambda topic: topic.name)
        self.cursors = tuple([Cursor(topic, pace.counters.tally(topic.pattern, transport)) for topic in topics])
        self.pace = pace
        self.right = right
        self.record = NO_RECORD  # for the access log
        self._last_event_id = last_event_id
        self._release = release
        self._reset = False  # messages have been missed, and the client has not been told
        self._state = "new"

    @property
    def topics(self) -> list[Topic]:
        """The topics that it listens to."""
        return [cursor.topic for cursor in self.cursors]

    @property
    def last_event_id(self) -> str:
        """The id that resumes where the client is: that of its topic, or `name:id` of each of several."""
        if len(self.cursors) == 1:
            return self.cursors[0].id
        return join_event_ids({cursor.topic.name: cursor.id for cursor in self.cursors})

    @property
    def over(self) -> bool:
        """Whether all topics have ended and the client has all of them."""
        return all(cursor.over for cursor in self.cursors)

    @property
    def closed(self) -> bool:
        """Whether the application stops."""
        return any(cursor.topic.closed for cursor in self.cursors)

    @property
    def ordered(self) -> bool:
        """Whether somebody has ordered the end of this client."""
        return self.pace.orders.end(self.right, self.topics)

    @property
    def may_not_listen(self) -> bool:
        """Whether its right has ended, by time or by an order."""
        return self.pace.orders.clock() >= self.right.expires or self.ordered

    def _until(self, timeout: float) -> float:
        """So many seconds, or fewer: until the next look whether the client may still listen."""
        return max(0.0, min(timeout, LOOK, self.right.expires - self.pace.orders.clock()))

    def join(self) -> None:
        """Become a client of the topics, which keeps their sources running; undone by `close`."""
        self._state = "open"
        for cursor in self.cursors:
            cursor.tally.joined()
            cursor.topic.join()

    def close(self) -> None:
        """The client is gone. What follows the first call does nothing."""
        if self._state == "open":
            for cursor in self.cursors:
                cursor.tally.left(cursor)
                cursor.topic.leave()
            if self.record is not NO_RECORD:
                self.record.write(self.pace.orders.clock(), self._places)
        if self._state != "closed":
            self._state = "closed"
            self._release()

    def closing(self, function: Callable[[], object]) -> None:
        """Have `close` call `function` too. Not to be used any more once the client may be gone."""
        release = self._release

        def release_and_call() -> None:
            release()
            function()

        self._release = release_and_call

    def __del__(self) -> None:
        # A response that nobody ever asked for its body (another view's exception took its place) still holds a place.
        if self._state == "new":
            self._release()

    @property
    def _places(self) -> int:
        return sum(cursor.position for cursor in self.cursors)

    def _begin(self) -> tuple[Message, ...]:
        """Go to the place that the last event id says; what comes before anything else."""
        positions, self._reset, backlog = beginning(self.topics, self._last_event_id)
        for cursor, position in zip(self.cursors, positions, strict=True):
            cursor.position = position
        if self.record is not NO_RECORD:
            self.record.begin(self._places - len(backlog))
        return backlog

    def _next_cursor(self) -> Cursor:
        """That of the next entry, of all topics in the order in which they came."""
        return self.cursors[0] if len(self.cursors) == 1 else min(self.cursors, key=lambda cursor: cursor.next_time)

    def _wait(self, changed: threading.Event | None, timeout: float) -> bool:
        """Wait until there is something for the client, or it may not listen any more; False after `timeout` s."""
        end = self.pace.orders.clock() + timeout
        while True:
            left = end - self.pace.orders.clock()
            if self._wait_for_topics(changed, self._until(left)) or self.may_not_listen:
                return True
            if left <= LOOK:
                return False

    def _wait_for_topics(self, changed: threading.Event | None, timeout: float) -> bool:
        if changed is None:
            (cursor,) = self.cursors
            return cursor.topic.wait(cursor.position, timeout)
        changed.clear()
        if self.closed or self.over or any(cursor.position < cursor.topic.head for cursor in self.cursors):
            return True
        return changed.wait(timeout)

    @contextmanager
    def _listening(self) -> Iterator[threading.Event | None]:
        """What `_wait` needs: for several topics, an event that is set when one of them changes."""
        if len(self.cursors) == 1:
            yield None
            return
        changed = threading.Event()

        def listener(_: Topic) -> None:
            changed.set()

        for topic in self.topics:
            topic.listen(listener)
        try:
            yield changed
        finally:
            for topic in self.topics:
                topic.unlisten(listener)


class Subscription(_Client):
    """A stream: iterate it in a thread, or `open` it and take what comes with `next`.

    `names`: whether and how messages bear their topic's name.
    """

    __slots__ = ("begins", "format", "transport")

    def __init__(
        self,
        topics: Topic | Sequence[Topic],
        transport: StreamTransport,
        pace: Pace,
        last_event_id: str = "",
        release: Callable[[], None] = lambda: None,
        names: Names = "",
        right: Right = UNLIMITED,
    ) -> None:
        super().__init__(topics, transport.name, pace, last_event_id, release, right)
        self.transport = transport
        self.format = format_of(transport, names)
        self.begins: Notice = "begin"  # or "place": how it is told where it begins, if no message tells

    def begin(self) -> tuple[tuple[Message, ...], bool]:
        """Join the topics: what comes before anything else, and whether the client is told a reset first."""
        backlog = self._begin()
        self.join()
        reset, self._reset = self._reset, False
        return backlog, reset

    def take(self) -> tuple[Message | None, bool]:
        """The next entry, or None; and whether entries before it have been missed."""
        return self._next_cursor().take()

    def open(self) -> bytes:
        """Join the topics; the first bytes, with what the histories have for this client."""
        backlog = self._begin()  # first: joined, a source may be ahead of the client that starts it
        self.join()
        parts = [self.transport.preamble(self.pace.retry_milliseconds)]
        if self._reset:
            self._reset = False
            # The id to come back with until the next message comes. A backlog has its own.
            parts.append(self.transport.notice("reset", "" if backlog else self.last_event_id))
            self.cursors[0].tally.wrote(0, resets=1)
        elif len(self.cursors) > 1 or not (backlog or self._last_event_id == self.last_event_id):
            parts.append(self.transport.notice(self.begins, self.last_event_id))
        parts += [self.format.encode(message) for message in backlog]
        size = 0
        while size < _FIRST and (data := self.next(LARGE)) is not None:
            parts.append(data)
            size += len(data)
        messages = sum(entry.kind == "message" for entry in backlog)
        self.cursors[0].tally.wrote(sum(map(len, parts)) - size, messages=messages)
        first = b"".join(parts)
        self.record.add(len(first))
        return first

    @property
    def large_next(self) -> Message | None:
        """The next entry, if it is large."""
        cursor = self._next_cursor()
        message, _ = cursor.topic.following(cursor.position)
        return message if message and len(message.body) > LARGE else None

    def next(self, most: float = math.inf) -> bytes | None:
        """The bytes of the next entry; None when the client has them all, or where its body has more than `most`.

        A client too far behind gets a reset.
        """
        cursor = self._next_cursor()
        message, reset = cursor.take(most)
        if message is None:
            return None
        data = self.format.encode(message)
        if reset:
            data = self.transport.notice("reset", after=cursor.topic.id_at(message.position - 1)) + data
        cursor.tally.wrote(len(data), messages=message.kind == "message", resets=reset or message.kind == "reset")
        return data

    def end(self) -> bytes:
        """What ends the stream when its topics have ended, and the client has everything."""
        content_type = self.cursors[0].topic.content_type
        return self.transport.notice("end", content_type=content_type, after=self.last_event_id)

    def __iter__(self) -> Iterator[bytes]:
        """The stream as any WSGI server can send it, waiting in the server's own thread."""
        return Body(self._in_thread())

    def _in_thread(self) -> Generator[bytes, None, None]:
        try:
            yield self.open()
            for cursor in self.cursors:
                cursor.tally.alone(cursor)
            with self._listening() as changed:
                while not (self.closed or self.may_not_listen):
                    if (data := self.next()) is not None:
                        self.record.add(len(data))
                        yield data
                    elif self.over:
                        self.record.ended("the topic ended")
                        yield self.end()
                        return
                    elif not self._wait(changed, self.pace.heartbeat):
                        yield self.transport.notice("heartbeat")
            self.record.ended("the server stops" if self.closed else "its right ended")
            yield self.transport.retry(retry_hint())
        finally:
            self.close()


class LongPoll(_Client):
    """A long poll: `open` may answer it at once; else `join`, and `answer` when a topic has changed."""

    __slots__ = ("_kept",)

    def __init__(
        self,
        topics: Topic | Sequence[Topic],
        pace: Pace,
        last_event_id: str = "",
        release: Callable[[], None] = lambda: None,
        right: Right = UNLIMITED,
    ) -> None:
        super().__init__(topics, longpoll.name, pace, last_event_id, release, right)
        self._kept: bytes | None = None

    def open(self) -> bytes | None:
        """The answer, if there is one already."""
        backlog = self._begin()
        return self._bring([(self.cursors[0], entry) for entry in backlog]) if backlog else self.answer()

    def keep(self, answer: bytes) -> None:
        """Have whoever asks next get this answer, which `open` has given, whatever they ask."""
        self._kept = answer

    def answer(self) -> bytes | None:
        """The answer with what has come, or the first piece of it; None where there is nothing to say yet."""
        if self._kept is not None:
            return self._kept
        start, size = self.cursors[0].position, 0
        taken: list[tuple[Cursor, Message]] = []
        while size < _PIECE:
            cursor = self._next_cursor()
            message, gap = cursor.take()
            if message is None:
                break
            self._reset = self._reset or gap
            taken.append((cursor, message))
            size += len(message.body)
        if taken:
            return self._bring(taken, start)
        return self._say("done") if self.over else None

    def waiting(self, retry: int | None = None) -> bytes:
        """The answer when nothing came in time, or (with `retry`, milliseconds) when the server goes."""
        return self._kept or self._say("waiting", retry)

    def wait(self) -> bytes:
        """The answer, waited for in this thread."""
        self.join()
        with self._listening() as changed:
            while not self.closed:
                if self.may_not_listen:
                    return self.waiting()
                if (body := self.answer()) is not None:
                    return body
                if not self._wait(changed, self.pace.longpoll_timeout):
                    return self.waiting()
        return self.waiting(retry=retry_hint())

    def _bring(self, taken: Sequence[tuple[Cursor, Message]], start: int | None = None) -> bytes:
        """The answer that brings these entries to a client that was at `start`, where that is all there is to know."""
        entries = [message for _, message in taken]
        last = entries[-1]
        reset = self._reset = self._reset or any(entry.kind == "reset" for entry in entries)
        # Most clients that wait are at one position of one topic: what answers the first answers them all. Who has to
        # catch up is answered alone: as many answers as there are places in the history would be kept with each of its
        # messages.
        if len(self.cursors) > 1:
            body = _answer(entries, self.last_event_id, reset, named=True)
        elif start is None or last.position - start > _TOGETHER:
            body = _answer(entries, last.id, reset)
        else:
            body = last.encoded(("longpoll", start, reset), lambda last: _answer(entries, last.id, reset))
        for cursor in self.cursors[1:]:
            cursor.tally.wrote(0, messages=_messages(taken, cursor))
        return self._counted(body, _messages(taken, self.cursors[0]))

    def _say(self, state: State, retry: int | None = None) -> bytes:
        return self._counted(longpoll.answer(state, last_event_id=self.last_event_id, reset=self._reset, retry=retry))

    def _counted(self, body: bytes, messages: int = 0) -> bytes:
        self.cursors[0].tally.wrote(len(body), messages=messages, resets=self._reset)
        return body


def _messages(taken: Sequence[tuple[Cursor, Message]], cursor: Cursor) -> int:
    """How many messages of this cursor's topic are among them."""
    return sum(message.kind == "message" and by is cursor for by, message in taken)


def _answer(entries: Sequence[Message], last_event_id: str, reset: bool, *, named: bool = False) -> bytes:
    messages = [entry for entry in entries if entry.kind == "message"]
    last = entries[-1].kind
    failing = {"failing": True, "working": False}.get(last)
    state: State = "ready" if messages or reset else "failing" if failing else "waiting"
    return longpoll.answer(state, messages, last_event_id=last_event_id, reset=reset, failing=failing, named=named)
