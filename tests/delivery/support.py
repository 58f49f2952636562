"""What the tests of the hub share: a hub with a clock that passes when told, its clients, and what they read."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pushdemo.delivery.hub import Hub
from pushdemo.delivery.metrics import Counters
from pushdemo.delivery.rights import UNLIMITED, Right
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import Names, jsonlines
from tests.support import PATIENCE

PACE = Pace(heartbeat=15.0, stall_timeout=30.0, longpoll_timeout=25.0)
SMALL = 4_096  # bytes asked for as a socket's buffer; the kernel makes it some more


class Clock:
    """Passes when told. `then` is called once, by whoever looks at it next."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.then: Callable[[], None] | None = None

    def __call__(self) -> float:
        if self.then:
            then, self.then = self.then, None
            then()
        return self.now


class Reply:
    """What a web server would do with a long poll, noted down."""

    def __init__(self) -> None:
        self.gives_up = False
        self.rest: bytes | None = None
        self.left = False
        self.over = threading.Event()

    def head(self, size: int) -> bytes:
        return b"<%d>" % size

    def done(self, rest: bytes) -> None:
        self.rest = rest
        self.over.set()

    def gone(self) -> None:
        self.left = True
        self.over.set()


class Harness:
    """A hub, its clock, and what a test needs to be its clients."""

    def __init__(self, *, io_uring: bool) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, io_uring=io_uring)
        self.released: list[str] = []
        self.ends: list[socket.socket] = []

    def pair(self, buffer: int = 0) -> tuple[socket.socket, socket.socket]:
        """Both ends of a TCP connection: the server's, not blocking, and the client's."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.socket()
            if buffer:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            theirs.settimeout(PATIENCE)
            theirs.connect(listener.getsockname())
            ours = listener.accept()[0]
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        ours.setblocking(False)
        self.ends.append(theirs)
        return ours, theirs

    def stream(
        self,
        topics: Topic | Sequence[Topic],
        transport: Any = jsonlines,
        *,
        last_event_id: str = "",
        chunked: bool = False,
        buffer: int = 0,
        name: str = "client",
        pace: Pace = PACE,
        right: Right = UNLIMITED,
    ) -> socket.socket:
        """A new stream: the client's end of it. `name` is noted in `released` when the client is gone.

        Of several topics each message bears the name.
        """
        ours, theirs = self.pair(buffer)
        names: Names = "" if isinstance(topics, Topic) else "topic"
        subscription = Subscription(
            topics, transport, pace, last_event_id, lambda: self.released.append(name), names=names, right=right
        )
        self.hub.stream(ours, subscription, chunked=chunked, unsent=subscription.open())
        return theirs

    def poll(
        self,
        topics: Topic | Sequence[Topic],
        *,
        last_event_id: str = "",
        name: str = "poll",
        pace: Pace = PACE,
        right: Right = UNLIMITED,
    ) -> tuple[socket.socket, Reply]:
        """A new long poll, for which there is nothing yet: the client's end, and what becomes of it."""
        ours, theirs = self.pair()
        self.ends.append(ours)  # the hub gives it back
        poll = LongPoll(topics, pace, last_event_id, lambda: self.released.append(name), right)
        assert poll.open() is None
        reply = Reply()
        self.hub.poll(ours, poll, reply, unsent=b"")
        return theirs, reply

    def settle(self) -> None:
        """Wait until the hub has done what was asked of it so far."""
        done = threading.Event()
        self.hub.call(done.set)
        assert done.wait(PATIENCE)

    def pass_time(self, seconds: float) -> None:
        """Let the clock pass, and the hub see it."""
        self.settle()
        self.clock.now += seconds
        self.settle()
        self.settle()  # the look at the clock follows the calls of a turn


def news(**options: Any) -> Topic:
    return Topic("news", content_type="text/plain", **options)


def read(sock: socket.socket, mark: str, step: int = 65_536) -> str:
    """What comes, up to `mark` at its end."""
    found = b""
    while not found.endswith(mark.encode()):
        data = sock.recv(step)
        assert data, f"the connection has ended after {found!r}"
        found += data
    return found.decode()


def rest(sock: socket.socket) -> str:
    """All that comes before the end."""
    found = b""
    while data := sock.recv(65_536):
        found += data
    return found.decode()


def contents(lines: str) -> list[str]:
    """The messages of a stream of JSON lines; in angle brackets what is said beside them, but for where it begins."""
    values = [value for value in map(json.loads, lines.splitlines()) if value.get("state") != "begin"]
    return [value["content"] if "content" in value else f"<{value['state']}>" for value in values]


def line(text: str) -> str:
    return f'"content": "{text}"}}\n'


def reset(client: socket.socket) -> None:
    """Close a connection by a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def assert_idle(harness: Harness) -> None:
    """While nothing happens the hub's thread sleeps: between two sweeps, or without clients for ever.

    There is no event for what does not happen: hence the short wait.
    """
    turns: list[float | None] = []
    wait = harness.hub._poller.wait

    def counted(timeout: float | None = None) -> Any:
        turns.append(timeout)
        return wait(timeout)

    harness.settle()
    harness.hub._poller.wait = counted  # type: ignore[method-assign]
    try:
        harness.settle()
        threading.Event().wait(0.1)
        assert len(turns) <= 4  # that of the call, and one that a sweep falls into
        assert turns[-1] is None or turns[-1] > 0.1
    finally:
        harness.hub._poller.wait = wait  # type: ignore[method-assign]


class Slow:
    """A body whose next bytes take their time; its heartbeats are longer than a small socket takes at once."""

    pace = PACE
    ends = math.inf
    ordered = False
    name = "slow"
    heartbeat = b"h" * 300_000 + b"\n"

    def __init__(self) -> None:
        self.transport: Any = self
        self.tally: Any = Counters().tally("news", "slow")
        self.asked, self.due, self.closed = threading.Event(), threading.Event(), list[None]()
        self.items = [b"item\n", None]

    def notice(self, kind: str, after: str) -> bytes:
        assert kind == "heartbeat"
        return self.heartbeat

    def retry(self, milliseconds: int) -> bytes:
        return b"retry\n"

    def open(self) -> bytes:
        return b"open\n"

    def pull(self) -> bytes | None:
        self.asked.set()
        assert self.due.wait(PATIENCE)
        return self.items.pop(0)

    def close(self) -> None:
        self.closed.append(None)

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("it is parked")


def in_a_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function).start()
