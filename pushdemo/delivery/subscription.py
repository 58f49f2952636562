"""One client's cursor into one topic, as the body of its response.

A client has a position and no queue: what it has not been written yet is in the topic's history. Whoever holds the
response owns the subscription and alone calls it: the worker thread that iterates it, or the server that parked it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pushdemo import transports
from pushdemo.delivery.metrics import Counters
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import StreamTransport, longpoll
from pushdemo.transports.longpoll import State

_FIRST = 32_768  # bytes of history that the first write brings at most; the rest follows as the client reads

_RETRY = (
    2_000  # milliseconds over which the clients of a server that goes are spread, so that the next one is not run over
)


_TOGETHER = 2  # entries: an answer with more is not kept for others


def retry_hint() -> int:
    """After how many milliseconds a client should come back when the server goes: another number for each."""
    return random.randrange(100, _RETRY)


@dataclass(frozen=True)
class Pace:
    """How long things may take, in seconds; one object for all clients of an application."""

    heartbeat: float = 15.0  # without a byte written, before a stream's heartbeat
    stall_timeout: float = 30.0  # that a client may leave its socket full
    longpoll_timeout: float = 25.0  # that a long poll waits for a message
    counters: Counters = field(default_factory=Counters, compare=False)  # what happens to them is counted there
    retry: float = 3.0  # before a client reconnects that has lost its stream

    @property
    def retry_milliseconds(self) -> int:
        """`retry` as the transports have it."""
        return round(1000 * self.retry)


class _Client:
    """What a stream and a long poll have in common. `release` is called once, when the client is gone.

    `release` must not take a lock: the last resort that calls it is the garbage collector, in any thread at any time.
    """

    __slots__ = ("_last_event_id", "_release", "_reset", "_state", "pace", "position", "tally", "topic")

    def __init__(
        self, topic: Topic, transport: str, pace: Pace, last_event_id: str, release: Callable[[], None]
    ) -> None:
        self.topic = topic
        self.pace = pace
        self.tally = pace.counters.tally(topic.pattern, transport)
        self.position = 0  # of the last entry that the client has, or is being written
        self._last_event_id = last_event_id
        self._release = release
        self._reset = False
        self._state = "new"

    def join(self) -> None:
        """Become one of the topic's clients, which keep its source running; undone by `close`."""
        self._state = "open"
        self.tally.joined()
        self.topic.join()

    def _begin(self) -> tuple[Message, ...]:
        """Go to the place that the last event id says; what comes before anything else."""
        self.position, self._reset, backlog = self.topic.begin(self._last_event_id)
        return backlog

    def close(self) -> None:
        """The client is gone. What follows the first call does nothing."""
        if self._state == "open":
            self.tally.left(self)
            self.topic.leave()
        if self._state != "closed":
            self._state = "closed"
            self._release()

    def __del__(self) -> None:
        # A response that nobody ever asked for its body (another view's exception took its place) still holds a place.
        if self._state == "new":
            self._release()

    def _next(self) -> Message | None:
        message, gap = self.topic.following(self.position)
        if message:
            self.position = message.position
            self._reset = self._reset or gap
        return message


class Subscription(_Client):
    """A stream: iterate it in a thread, or `open` it and take what comes with `next`."""

    __slots__ = ("transport",)

    def __init__(
        self,
        topic: Topic,
        transport: StreamTransport,
        pace: Pace,
        last_event_id: str = "",
        release: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(topic, transport.name, pace, last_event_id, release)
        self.transport = transport

    def open(self) -> bytes:
        """Join the topic; the first bytes, with what the history has for this client."""
        backlog = self._begin()  # first: joined, the source may be ahead of the client that starts it
        self.join()
        parts = [self.transport.preamble(self.pace.retry_milliseconds)]
        if self._reset:
            self._reset = False
            # The id to come back with until the next message comes. A backlog has its own.
            parts.append(self.transport.notice("reset", "" if backlog else self.topic.id_at(self.position)))
            self.tally.wrote(0, resets=1)
        parts += [transports.encode(self.transport, message) for message in backlog]
        size = 0
        while size < _FIRST and (data := self.next()) is not None:
            parts.append(data)
            size += len(data)
        self.tally.wrote(sum(map(len, parts)) - size, messages=sum(entry.kind == "message" for entry in backlog))
        return b"".join(parts)

    def take(self) -> tuple[Message | None, bool]:
        """The next entry, or None when the client has them all; and whether a reset goes before it."""
        message = self._next()
        reset, self._reset = self._reset, False
        return message, reset

    def next(self) -> bytes | None:
        """The bytes of the next entry, or None when the client has them all. A client too far behind gets a reset."""
        message, reset = self.take()
        if message is None:
            return None
        data = transports.encode(self.transport, message)
        if reset:
            data = self.transport.notice("reset", after=self.topic.id_at(message.position - 1)) + data
        self.tally.wrote(len(data), messages=message.kind == "message", resets=reset or message.kind == "reset")
        return data

    def end(self) -> bytes:
        """Return the notice that the topic has ended and the client has everything."""
        id = self.topic.id_at(self.position)
        return self.transport.notice("end", content_type=self.topic.content_type, after=id)

    def __iter__(self) -> Iterator[bytes]:
        """The stream as any WSGI server can send it, waiting in the server's own thread."""
        try:
            yield self.open()
            self.tally.alone(self)
            while not self.topic.closed:
                ended = self.topic.ended  # asked first: what was said right before the end is then found
                if (data := self.next()) is not None:
                    yield data
                elif ended:
                    yield self.end()
                    return
                elif not self.topic.wait(self.position, self.pace.heartbeat):
                    yield self.transport.notice("heartbeat")
            yield self.transport.retry(retry_hint())
        finally:
            self.close()


class LongPoll(_Client):
    """A long poll: `open` may answer it at once; else `join`, and `answer` when the topic has changed."""

    __slots__ = ()

    def __init__(
        self, topic: Topic, pace: Pace, last_event_id: str = "", release: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(topic, longpoll.name, pace, last_event_id, release)

    def open(self) -> bytes | None:
        """The answer, if there is one already."""
        backlog = self._begin()
        if not backlog:
            return self.answer()
        self._reset = self._reset or any(entry.kind == "reset" for entry in backlog)
        messages = [entry for entry in backlog if entry.kind == "message"]
        return self._counted(_answer(messages, backlog[-1], self._reset), len(messages))

    def answer(self) -> bytes | None:
        """The answer with all that has come, or None where there is nothing to say yet."""
        messages: list[Message] = []
        ended = self.topic.ended  # asked first: what was said right before the end is then found
        start, last = self.position, None
        while (message := self._next()) is not None:
            last = message
            if message.kind == "message":
                messages.append(message)
            elif message.kind == "reset":
                self._reset = True
        if last is None:
            return self._say("done") if ended else None
        reset = self._reset
        # Most clients that wait are at one position: what answers the first answers them all. Who has to catch up is
        # answered alone: as many answers as there are places in the history would be kept with each of its messages.
        if last.position - start <= _TOGETHER:
            body = last.encoded(("longpoll", start, reset), lambda last: _answer(messages, last, reset))
        else:
            body = _answer(messages, last, reset)
        return self._counted(body, len(messages))

    def waiting(self, retry: int | None = None) -> bytes:
        """The answer when nothing came in time, or (with `retry`, milliseconds) when the server goes."""
        return self._say("waiting", retry)

    def wait(self) -> bytes:
        """The answer, waited for in this thread."""
        self.join()
        while not self.topic.closed:
            if (body := self.answer()) is not None:
                return body
            if not self.topic.wait(self.position, self.pace.longpoll_timeout):
                return self.waiting()
        return self.waiting(retry=retry_hint())

    def _say(self, state: State, retry: int | None = None) -> bytes:
        id = self.topic.id_at(self.position)
        return self._counted(longpoll.answer(state, last_event_id=id, reset=self._reset, retry=retry))

    def _counted(self, body: bytes, messages: int = 0) -> bytes:
        self.tally.wrote(len(body), messages=messages, resets=self._reset)
        return body


def _answer(messages: Sequence[Message], last: Message, reset: bool) -> bytes:
    """The answer that brings these messages, where `last` is the last entry of any kind."""
    failing = last.kind == "failing"
    state: State = "failing" if failing and not messages else "ready"
    return longpoll.answer(state, messages, last_event_id=last.id, reset=reset, failing=failing)
