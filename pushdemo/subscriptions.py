"""One client's cursor into one topic, as the body of its response.

A client has a position and no queue: what it has not been written yet is in the topic's history. Whoever holds the
response owns the subscription and alone calls it: the worker thread that iterates it, or the server that parked it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pushdemo import transports
from pushdemo.messages import Message
from pushdemo.topics import Topic
from pushdemo.transports import Transport, longpoll
from pushdemo.transports.longpoll import State

_FIRST = 65_536  # bytes of history that the first write brings at most; the rest follows as the client reads

_RETRY = (
    2_000  # milliseconds over which the clients of a server that goes are spread, so that the next one is not run over
)


def retry_hint() -> int:
    """After how many milliseconds a client should come back when the server goes: another number for each."""
    return random.randrange(100, _RETRY)


@dataclass(frozen=True)
class Pace:
    """How long things may take, in seconds; one object for all clients of an application."""

    heartbeat: float = 15.0  # without a byte written, before a stream's heartbeat
    stall_timeout: float = 30.0  # that a client may leave its socket full
    longpoll_timeout: float = 25.0  # that a long poll waits for a message


class _Client:
    """What a stream and a long poll have in common. `release` is called once, when the client is gone.

    `release` must not take a lock: the last resort that calls it is the garbage collector, in any thread at any time.
    """

    __slots__ = ("_last_event_id", "_release", "_reset", "_state", "pace", "position", "topic")

    def __init__(self, topic: Topic, pace: Pace, last_event_id: str = "", release: Callable[[], None] = lambda: None):
        self.topic = topic
        self.pace = pace
        self.position = 0  # of the last entry that the client has, or is being written
        self._last_event_id = last_event_id
        self._release = release
        self._reset = False
        self._state = "new"

    def join(self) -> None:
        """Become one of the topic's clients, which keep its source running; undone by `close`."""
        self._state = "open"
        self.topic.join()

    def _begin(self) -> tuple[Message, ...]:
        """Go to the place that the last event id says; what comes before anything else."""
        self.position, self._reset, backlog = self.topic.begin(self._last_event_id)
        return backlog

    def close(self) -> None:
        """The client is gone. What follows the first call does nothing."""
        if self._state == "open":
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
        transport: Transport,
        pace: Pace,
        last_event_id: str = "",
        release: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(topic, pace, last_event_id, release)
        self.transport = transport

    def open(self) -> bytes:
        """Join the topic; the first bytes, with what the history has for this client."""
        self.join()
        backlog = self._begin()
        parts = [self.transport.preamble()]
        if self._reset:
            self._reset = False
            parts.append(self.transport.notice("reset"))
        parts += [transports.encode(self.transport, message) for message in backlog]
        size = 0
        while size < _FIRST and (data := self.next()) is not None:
            parts.append(data)
            size += len(data)
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
        return self.transport.notice("reset") + data if reset else data

    def __iter__(self) -> Iterator[bytes]:
        """The stream as any WSGI server can send it, waiting in the server's own thread."""
        try:
            yield self.open()
            while not self.topic.closed:
                ended = self.topic.ended  # asked first: what was said right before the end is then found
                if (data := self.next()) is not None:
                    yield data
                elif ended:
                    yield self.transport.notice("end")
                    return
                elif not self.topic.wait(self.position, self.pace.heartbeat):
                    yield self.transport.notice("heartbeat")
            yield self.transport.retry(retry_hint())
        finally:
            self.close()


class LongPoll(_Client):
    """A long poll: `open` may answer it at once; else `join`, and `answer` when the topic has changed."""

    __slots__ = ()

    def open(self) -> bytes | None:
        """The answer, if there is one already."""
        backlog = self._begin()
        if not backlog:
            return self.answer()
        messages = [message for message in backlog if message.kind == "message"]
        return longpoll.answer("ready", messages, last_event_id=backlog[-1].id, reset=self._reset)

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
        state: State = "ready" if messages or last.kind == "reset" else "failing"
        # Most clients that wait are at one position: what answers the first answers them all.
        return last.encoded(
            ("longpoll", start, reset), lambda m: longpoll.answer(state, messages, last_event_id=m.id, reset=reset)
        )

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
        return longpoll.answer(state, last_event_id=id, reset=self._reset, retry=retry)
