"""The hub alone: topics on one side, sockets on the other, and a clock that passes when told. No web server.

Each test is run by both ways of sending.
"""

from __future__ import annotations

import gc
import json
import math
import re
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from pushdemo.delivery import sending
from pushdemo.delivery.hub import Hub
from pushdemo.delivery.metrics import Counters
from pushdemo.delivery.sending import Sockets
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import Names, jsonlines, multipart, sse
from tests.support import PATIENCE, threads, wait_until

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
        topic: Topic,
        transport: Any = jsonlines,
        *,
        last_event_id: str = "",
        chunked: bool = False,
        buffer: int = 0,
        name: str = "client",
    ) -> socket.socket:
        """A new stream: the client's end of it. `name` is noted in `released` when the client is gone."""
        ours, theirs = self.pair(buffer)
        subscription = Subscription(topic, transport, PACE, last_event_id, lambda: self.released.append(name))
        self.hub.stream(ours, subscription, chunked=chunked, unsent=subscription.open())
        return theirs

    def poll(self, topic: Topic, *, last_event_id: str = "", name: str = "poll") -> tuple[socket.socket, Reply]:
        """A new long poll, for which there is nothing yet: the client's end, and what becomes of it."""
        ours, theirs = self.pair()
        self.ends.append(ours)  # the hub gives it back
        poll = LongPoll(topic, PACE, last_event_id, lambda: self.released.append(name))
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


RING = pytest.mark.io_uring


@pytest.fixture(
    params=["many, send", "few, send", pytest.param("many, ring", marks=RING), pytest.param("few, ring", marks=RING)]
)
def harness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """A hub whose groups are all large, or all small, and that sends by either way."""
    size, by = request.param.split(", ")
    monkeypatch.setattr(sending, "MANY", 1 if size == "many" else 1_000)
    monkeypatch.setattr(sending, "FEW", 1)
    harness = Harness(io_uring=by == "ring")
    yield harness
    harness.hub.stop()
    for end in harness.ends:
        end.close()


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
    """The messages of a stream of JSON lines; what is said beside them is in angle brackets."""
    values = [json.loads(line) for line in lines.splitlines()]
    return [value["content"] if "content" in value else f"<{value['state']}>" for value in values]


def line(text: str) -> str:
    return f'"content": "{text}"}}\n'


# -- streams


def test_a_message_reaches_every_client_of_its_topic_and_no_other(harness: Harness) -> None:
    topic, other = news(), news()
    clients = [harness.stream(topic) for _ in range(3)]
    stranger = harness.stream(other)
    topic.publish("a")
    other.publish("b")
    for client in clients:
        assert contents(read(client, line("a"))) == ["<heartbeat>", "a"]
    assert contents(read(stranger, line("b"))) == ["<heartbeat>", "b"]


def test_a_chunked_stream_is_chunked_and_ends_with_the_last_chunk(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair()
    subscription = Subscription(topic, sse, PACE)
    subscription.open()
    harness.hub.stream(ours, subscription, chunked=True, unsent=b"")
    harness.settle()
    id = topic.publish("a").id
    topic.end()
    event = f"id: {id}\ndata: a\n\n"
    end = sse.notice("end", after=id).decode()
    assert rest(theirs) == f"{len(event):x}\r\n{event}\r\n{len(end):x}\r\n{end}\r\n0\r\n\r\n"


def test_all_clients_of_one_format_are_written_bytes_that_were_made_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    encode = jsonlines.encode

    def counted(message: Message, names: Names) -> bytes:
        made.append(message.id)
        return encode(message, names)

    monkeypatch.setattr(jsonlines, "encode", counted)
    topic = news()
    clients = [harness.stream(topic, chunked=chunked) for chunked in (True, False) for _ in range(5)]
    harness.settle()
    id = topic.publish("a").id
    for client in clients[5:]:
        read(client, line("a"))
    for client in clients[:5]:
        read(client, line("a") + "\r\n")
    assert made == [id]


def test_a_client_that_reads_slowly_gets_every_message_in_order(harness: Harness) -> None:
    topic = news()
    slow, quick = harness.stream(topic, buffer=SMALL), harness.stream(topic)
    harness.settle()
    sent = []
    for number in range(60):
        text = str(number) * 2_000
        sent.append(text)
        topic.publish(text)
        read(quick, line(text))
    assert contents(read(slow, line(text), step=1_000)) == ["<heartbeat>", *sent]
    topic.publish("after")
    assert contents(read(slow, line("after"))) == ["after"]


def test_a_client_that_falls_out_of_the_history_is_told_and_goes_on_with_the_newest(harness: Harness) -> None:
    topic = news(history=3)
    slow, quick = harness.stream(topic, buffer=SMALL), harness.stream(topic)
    harness.settle()
    texts = [f"{number} " * 2_000 for number in range(60)]
    for text in texts:
        topic.publish(text)
        read(quick, line(text))
    found = contents(read(slow, line(texts[-1]), step=1_000))
    gap = found.index("<reset>")
    assert found[1:gap] == texts[: gap - 1]
    # Behind the gap comes what the history held when the client had read so far.
    assert found[gap + 1 :] == texts[-len(found) + gap + 1 :]
    assert found.count("<reset>") == 1


def test_a_hub_that_falls_out_of_the_history_tells_its_clients(harness: Harness) -> None:
    topic = news(history=2)
    client = harness.stream(topic)
    harness.settle()
    busy, go_on = threading.Event(), threading.Event()
    harness.hub.call(lambda: (busy.set(), go_on.wait(PATIENCE)))  # type: ignore[arg-type, return-value]
    assert busy.wait(PATIENCE)
    for text in "abcde":
        topic.publish(text)
    go_on.set()
    assert contents(read(client, line("e"))) == ["<heartbeat>", "<reset>", "e"]


def test_a_client_that_takes_nothing_is_closed_after_the_stall_timeout(harness: Harness) -> None:
    topic = news()
    stalled = harness.stream(topic, buffer=SMALL, name="stalled")
    other = harness.stream(topic)
    text = "x" * 1_000_000
    topic.publish(text)
    read(other, line(text))
    harness.pass_time(PACE.stall_timeout - 1)
    assert harness.released == []
    harness.pass_time(2)
    if not harness.released:  # the kernel may have made room late (a delayed acknowledgement), which is progress
        harness.pass_time(PACE.stall_timeout)
    assert harness.released == ["stalled"]
    assert topic.clients == 1
    with suppress(ConnectionResetError):
        rest(stalled)


def test_a_client_that_takes_a_little_in_time_is_not_stalled(harness: Harness) -> None:
    """Messages so small that the socket takes each whole or not at all: progress shows at no message's middle."""
    topic = news(history=100_000)
    slow = harness.stream(topic, buffer=SMALL, name="slow")
    harness.settle()
    for _ in range(2_000):
        topic.publish("x" * 200)
    for _ in range(8):
        harness.pass_time(PACE.stall_timeout / 2)
        for _ in range(12):
            slow.recv(2_000)
    assert harness.released == []


def test_a_quiet_stream_is_kept_alive(harness: Harness) -> None:
    topic = news()
    client = harness.stream(topic)
    assert read(client, '"heartbeat"}\n') == '{"state": "heartbeat"}\n'  # the first bytes of every stream
    harness.pass_time(PACE.heartbeat - 1)
    topic.publish("a")
    assert contents(read(client, line("a"))) == ["a"]
    harness.pass_time(PACE.heartbeat - 1)
    topic.publish("b")
    assert contents(read(client, line("b"))) == ["b"]  # it was not quiet
    harness.pass_time(PACE.heartbeat + 1)
    assert read(client, '"heartbeat"}\n') == '{"state": "heartbeat"}\n'


@pytest.mark.parametrize("by", ["close", "reset", "half-close"])
def test_a_client_that_leaves_is_noticed_without_a_message(harness: Harness, by: str) -> None:
    topic = news()
    client = harness.stream(topic)
    harness.settle()
    if by == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if by == "half-close":
        client.shutdown(socket.SHUT_WR)
    else:
        client.close()
    wait_until(lambda: harness.released, timeout=1.0)
    harness.settle()
    topic.publish("a")
    harness.settle()
    assert harness.released == ["client"]
    assert topic.clients == 0


def reset(client: socket.socket) -> None:
    """Close a connection by a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_client_that_is_behind_and_resets_its_connection_is_let_go(harness: Harness) -> None:
    topic = news()
    client, other = harness.stream(topic, buffer=SMALL, name="behind"), harness.stream(topic)
    text = "x" * 1_000_000
    topic.publish(text)
    read(other, line(text))
    harness.settle()
    reset(client)
    wait_until(lambda: harness.released == ["behind"], timeout=1.0)
    assert topic.clients == 1
    assert_idle(harness)


def test_a_client_that_resets_its_connection_before_its_first_bytes_are_taken_is_let_go(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair(buffer=SMALL)
    subscription = Subscription(topic, jsonlines, PACE, "", lambda: harness.released.append("client"))
    subscription.open()
    harness.hub.stream(ours, subscription, chunked=False, unsent=b"x" * 1_000_000)
    harness.settle()
    reset(theirs)
    wait_until(lambda: harness.released == ["client"], timeout=1.0)
    assert_idle(harness)


def assert_idle(harness: Harness) -> None:
    """While nothing happens the hub's thread sleeps: between two sweeps, or without clients for ever.

    There is no event for what does not happen: hence the short wait.
    """
    turns: list[float | None] = []
    select = harness.hub.selector.select

    def counted(timeout: float | None = None) -> Any:
        turns.append(timeout)
        return select(timeout)

    harness.settle()
    harness.hub.selector.select = counted  # type: ignore[method-assign]
    try:
        harness.settle()
        threading.Event().wait(0.1)
        assert len(turns) <= 4  # that of the call, and one that a sweep falls into
        assert turns[-1] is None or turns[-1] > 0.1
    finally:
        harness.hub.selector.select = select  # type: ignore[method-assign]


def test_a_hub_without_clients_sleeps(harness: Harness) -> None:
    assert_idle(harness)
    harness.stream(news()).close()
    wait_until(lambda: harness.released)
    harness.pass_time(1)
    assert harness.hub.timeout() is None
    assert_idle(harness)


def test_a_hub_with_nothing_to_do_sleeps_until_the_next_sweep(harness: Harness) -> None:
    topic, other = news(), news()
    current, behind = harness.stream(topic), harness.stream(topic, buffer=SMALL)
    current.sendall(b"GET / HTTP/1.1\r\n\r\n")  # what nobody asked for
    waiting, _ = harness.poll(other)
    waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")  # which stays in the socket
    ours, pulling = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    text = "x" * 1_000_000
    topic.publish(text)
    read(current, line(text))
    assert_idle(harness)
    for client in (current, behind, waiting, pulling):
        reset(client)
    wait_until(lambda: len(harness.released) == 2)
    wait_until(lambda: body.closed)
    other.end()  # a poll whose client has asked again is looked at when there is an answer
    wait_until(lambda: len(harness.released) == 3)
    assert_idle(harness)


def test_a_burst_of_messages_wakes_the_hub_once(harness: Harness) -> None:
    topic = news()
    client = harness.stream(topic)
    harness.settle()
    busy, go_on = threading.Event(), threading.Event()
    harness.hub.call(lambda: (busy.set(), go_on.wait(PATIENCE)))  # type: ignore[arg-type, return-value]
    assert busy.wait(PATIENCE)
    for number in range(50):
        topic.publish(str(number))
    assert len(harness.hub._ear.recv(100, socket.MSG_PEEK)) == 1
    go_on.set()
    assert contents(read(client, line("49"))) == ["<heartbeat>", *map(str, range(50))]
    assert_idle(harness)


def test_what_a_client_sends_on_its_stream_is_passed_over(harness: Harness) -> None:
    topic = news()
    client = harness.stream(topic)
    client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    topic.publish("a")
    assert contents(read(client, line("a"))) == ["<heartbeat>", "a"]


def test_a_client_that_leaves_while_others_are_written_to_takes_none_of_them_along(harness: Harness) -> None:
    topic = news()
    clients = [harness.stream(topic, name=str(number)) for number in range(30)]
    harness.settle()
    for client in clients[::3]:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    topic.publish("a")
    topic.publish("b")
    for number, client in enumerate(clients):
        if number % 3:
            assert contents(read(client, line("b"))) == ["<heartbeat>", "a", "b"]
    harness.settle()
    assert sorted(harness.released, key=int) == [str(number) for number in range(0, 30, 3)]


def test_an_ended_topic_ends_every_stream_when_it_has_all(harness: Harness) -> None:
    topic = news()
    slow, quick = harness.stream(topic, buffer=SMALL, name="slow"), harness.stream(topic, name="quick")
    harness.settle()
    texts = [str(number) * 5_000 for number in range(40)]
    for text in texts:
        topic.publish(text)
    topic.end()
    assert contents(rest(quick)) == ["<heartbeat>", *texts, "<done>"]
    assert contents(rest(slow)) == ["<heartbeat>", *texts, "<done>"]
    wait_until(lambda: sorted(harness.released) == ["quick", "slow"])
    assert topic.clients == 0


def test_who_comes_after_the_end_gets_the_history_and_the_end(harness: Harness) -> None:
    topic = news()
    topic.publish("a")
    topic.publish("b")
    topic.end()
    client = harness.stream(topic, last_event_id="earliest")
    assert contents(rest(client)) == ["<heartbeat>", "a", "b", "<done>"]


class Interleaved(Topic):
    """A topic whose publisher comes in between at the hub's look number `looks` at it, and ends it."""

    looks: int | None = None

    def _look(self) -> None:
        looks = self.looks
        if looks is None or threading.current_thread().name != "pushdemo-hub" or not self.changed.acquire(False):
            return  # the hub holds the lock: nobody comes in between
        self.changed.release()
        self.looks = looks - 1 if looks else None
        if not looks:
            self.publish("last")
            self.end()

    def following(self, position: int) -> tuple[Message | None, bool]:
        self._look()
        return super().following(position)

    @property
    def head(self) -> int:
        self._look()
        return self._head

    @head.setter
    def head(self, value: int) -> None:
        self._head = value

    @property
    def ended(self) -> bool:
        self._look()
        return self._ended

    @ended.setter
    def ended(self, value: bool) -> None:
        self._ended = value


@pytest.mark.parametrize("looks", range(40))
def test_a_message_right_before_the_end_is_lost_on_nobody(harness: Harness, looks: int) -> None:
    topic = Interleaved("news", content_type="text/plain")
    streams = [harness.stream(topic) for _ in range(2)]
    polls = [harness.poll(topic)[0]]
    harness.settle()
    (ours, theirs), (ours_too, theirs_too) = harness.pair(), harness.pair()
    harness.ends.append(ours_too)
    subscription, poll = Subscription(topic, jsonlines, PACE), LongPoll(topic, PACE)
    opening = subscription.open()
    assert poll.open() is None
    topic.looks = looks
    harness.hub.stream(ours, subscription, chunked=False, unsent=opening)
    harness.hub.poll(ours_too, poll, Reply(), unsent=b"")
    harness.settle()
    with suppress(RuntimeError):  # it has ended
        topic.publish("a")
    harness.settle()
    topic.looks = None
    with suppress(RuntimeError):
        topic.publish("last")
    topic.end()
    for client in (*streams, theirs):
        assert contents(rest(client))[-2:] == ["last", "<done>"]
    for client in (*polls, theirs_too):
        assert '"state": "ready"' in read(client, "}")
    harness.settle()
    assert topic.clients == 0


def test_a_client_that_has_left_is_forgotten_without_a_collection(harness: Harness) -> None:
    topic = news()
    gc.collect()
    gc.disable()
    try:
        ours, theirs = harness.pair()
        remembered = weakref.ref(ours)
        subscription = Subscription(topic, jsonlines, PACE, "", lambda: harness.released.append("client"))
        harness.hub.stream(ours, subscription, chunked=True, unsent=b"")
        del ours, subscription
        harness.settle()
        assert remembered() is not None
        theirs.close()
        wait_until(lambda: remembered() is None)
    finally:
        gc.enable()
    assert harness.released == ["client"]


# -- clients that pull


class Slow:
    """A body whose next bytes take their time; its heartbeats are longer than a small socket takes at once."""

    pace = PACE
    ends = math.inf
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


def test_a_client_that_pulls_and_does_not_read_gets_whole_heartbeats(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=body.open(), run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    for _ in range(2):
        harness.pass_time(PACE.heartbeat + 1)
    body.due.set()
    found = b"".join(iter(lambda: theirs.recv(65_536), b""))
    assert found == b"open\n" + body.heartbeat + b"item\n"
    wait_until(lambda: body.closed)
    assert len(body.closed) == 1


def test_who_pulls_and_resets_its_connection_before_it_has_read_all_is_let_go(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    harness.settle()
    reset(theirs)
    wait_until(lambda: body.closed, timeout=1.0)
    assert not body.asked.is_set()
    assert_idle(harness)
    assert len(body.closed) == 1


def test_who_pulls_and_takes_nothing_is_closed_after_the_stall_timeout(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    harness.pass_time(PACE.stall_timeout - 1)
    theirs.recv(1_000)  # too little for the socket to take more
    assert not body.closed
    harness.pass_time(1)
    wait_until(lambda: body.closed)
    assert body.tally.figures().stalled == 1


def test_who_pulls_and_takes_a_little_in_time_is_not_stalled(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    left = 1_000_000
    for _ in range(4):
        harness.pass_time(PACE.stall_timeout / 2)
        for _ in range(20):
            left -= len(theirs.recv(5_000))
    while left:
        left -= len(theirs.recv(65_536))
    assert body.asked.wait(PATIENCE)
    assert not body.closed
    assert body.tally.figures().stalled == 0
    body.due.set()
    assert rest(theirs) == "item\n"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stop_ends_those_that_pull_while_their_next_bytes_are_made(harness: Harness, chunked: bool) -> None:
    ours, theirs = harness.pair()
    body = Slow()
    harness.hub.pull(ours, body, chunked=chunked, unsent=b"", run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    harness.hub.stop()
    assert rest(theirs) == ("6\r\nretry\n\r\n0\r\n\r\n" if chunked else "retry\n")
    assert not body.closed  # it still runs
    body.due.set()
    wait_until(lambda: body.closed)
    assert len(body.closed) == 1


def test_who_leaves_while_the_next_bytes_are_made_is_noticed_and_closed_when_they_are(harness: Harness) -> None:
    ours, theirs = harness.pair()
    body = Slow()
    harness.hub.pull(ours, body, chunked=True, unsent=b"", run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    theirs.close()
    wait_until(lambda: ours.fileno() < 0, timeout=1.0)
    body.due.set()
    wait_until(lambda: body.closed)
    harness.settle()
    assert len(body.closed) == 1


# -- long polls


def test_one_message_answers_every_poll(harness: Harness) -> None:
    topic = news()
    polls = [harness.poll(topic) for _ in range(5)]
    harness.settle()
    topic.publish("a")
    for client, reply in polls:
        assert '"state": "ready"' in (answer := read(client, "}"))
        assert '"content": "a"' in answer
        assert reply.over.wait(PATIENCE)
        assert reply.rest == b""
        assert not reply.left
    assert harness.released == ["poll"] * 5
    assert topic.clients == 0


def test_a_poll_whose_time_is_over_is_answered(harness: Harness) -> None:
    topic = news()
    client, reply = harness.poll(topic)
    harness.pass_time(PACE.longpoll_timeout - 1)
    assert not reply.over.is_set()
    harness.pass_time(1)
    assert '"state": "waiting"' in read(client, "}")
    assert harness.released == ["poll"]


@pytest.mark.parametrize("leave", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_WR)])
def test_a_poll_whose_client_closes_its_side_is_answered_and_given_back(
    harness: Harness, leave: Callable[[socket.socket], None]
) -> None:
    topic = news()
    client, reply = harness.poll(topic)
    harness.settle()
    leave(client)
    assert reply.over.wait(1.0)
    assert (reply.rest, reply.left) == (b"", False)
    assert harness.released == ["poll"]
    if client.fileno() >= 0:
        assert '"state": "waiting"' in read(client, "}")
    topic.publish("a")
    harness.settle()
    assert harness.released == ["poll"]


def test_a_poll_whose_client_resets_is_forgotten(harness: Harness) -> None:
    topic = news()
    client, reply = harness.poll(topic)
    harness.settle()
    reset(client)
    assert reply.over.wait(1.0)
    assert reply.left
    assert harness.released == ["poll"]


def test_a_client_that_closes_its_side_behind_its_next_request_is_noticed(harness: Harness) -> None:
    topic = news()
    client, reply = harness.poll(topic)
    client.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    harness.settle()
    harness.settle()
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: harness.pass_time(1) or reply.over.is_set())
    assert '"state": "waiting"' in read(client, "}")
    assert not reply.left
    assert reply.rest == b""


def test_the_next_request_stays_in_the_socket_of_a_poll(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair()
    harness.ends.append(ours)
    poll, reply = LongPoll(topic, PACE), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"")
    theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    harness.settle()
    harness.settle()
    topic.publish("a")
    assert '"content": "a"' in read(theirs, "}")
    assert reply.over.wait(PATIENCE)
    assert ours.recv(100) == b"GET /next HTTP/1.1\r\n\r\n"


def test_what_a_full_socket_does_not_take_of_an_answer_goes_back_with_the_connection(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair(buffer=SMALL)
    harness.ends.append(ours)
    poll, reply = LongPoll(topic, PACE), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"")
    harness.settle()
    topic.publish("x" * 30_000)
    assert reply.over.wait(PATIENCE)
    assert reply.rest
    ours.setblocking(True)
    sender = threading.Thread(target=ours.sendall, args=(reply.rest,))
    sender.start()
    answer = read(theirs, "}")
    sender.join()
    assert "x" * 30_000 in answer


def parked(harness: Harness, topic: Topic) -> tuple[socket.socket, socket.socket, Reply]:
    """A long poll that waits: both ends of its connection, with small buffers, and what becomes of it."""
    ours, theirs = harness.pair(buffer=SMALL)
    harness.ends.append(ours)
    poll, reply = LongPoll(topic, PACE, "", lambda: harness.released.append("poll")), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"")
    harness.settle()
    return ours, theirs, reply


def test_a_large_answer_is_sent_by_the_hub_and_its_place_is_free_at_once(harness: Harness) -> None:
    topic = news()
    ours, theirs, reply = parked(harness, topic)
    topic.publish("x" * 1_000_000)
    wait_until(lambda: harness.released == ["poll"])
    harness.settle()
    assert not reply.over.is_set()
    topic.publish("y")
    assert "x" * 1_000_000 in read(theirs, "}")
    assert reply.over.wait(PATIENCE)
    assert reply.rest == b""
    theirs.sendall(b"GET /next")
    assert ours.recv(100) if select.select([ours], [], [], PATIENCE)[0] else b"" == b"GET /next"
    assert_idle(harness)


def test_a_client_that_does_not_read_its_large_answer_is_closed(harness: Harness) -> None:
    topic = news()
    _, _, reply = parked(harness, topic)
    topic.publish("x" * 1_000_000)
    wait_until(lambda: harness.pass_time(PACE.stall_timeout) or reply.over.is_set())
    assert reply.left
    assert_idle(harness)


def test_a_stop_in_the_midst_of_a_large_answer_closes_its_connection(harness: Harness) -> None:
    topic = news()
    _, _, reply = parked(harness, topic)
    topic.publish("x" * 1_000_000)
    wait_until(lambda: harness.released == ["poll"])
    harness.hub.stop()
    assert reply.left


def test_a_poll_whose_client_resets_before_it_has_the_response_before_is_forgotten(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair(buffer=SMALL)
    poll, reply = LongPoll(topic, PACE, "", lambda: harness.released.append("poll")), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"x" * 1_000_000)
    harness.settle()
    reset(theirs)
    assert reply.over.wait(1.0)
    assert reply.left
    assert harness.released == ["poll"]
    assert topic.clients == 0
    assert_idle(harness)


def test_a_poll_whose_client_is_gone_when_the_answer_comes_is_forgotten(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair()
    poll, reply = LongPoll(topic, PACE, "", lambda: harness.released.append("poll")), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"")
    theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")  # the socket is watched no more
    harness.settle()
    harness.settle()
    reset(theirs)
    topic.publish("a")
    assert reply.over.wait(PATIENCE)
    assert reply.left
    assert ours.fileno() < 0
    assert harness.released == ["poll"]


class CountedTopic(Topic):
    """A topic that counts how often it is asked for what follows."""

    asked = 0

    def following(self, position: int) -> tuple[Message | None, bool]:
        self.asked += 1
        return super().following(position)


def test_a_poll_that_comes_costs_the_waiting_ones_nothing(harness: Harness) -> None:
    topic = CountedTopic("news", content_type="text/plain")
    for _ in range(50):
        harness.poll(topic)
    harness.settle()
    topic.asked = 0
    for _ in range(50):
        harness.poll(topic)
    harness.settle()
    assert topic.asked <= 50 * 5


def test_the_response_before_a_poll_does_not_wait_for_its_answer(harness: Harness) -> None:
    topic = news()
    ours, theirs = harness.pair(buffer=SMALL)
    harness.ends.append(ours)
    poll, reply = LongPoll(topic, PACE), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"x" * 1_000_000 + b">")
    theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    assert read(theirs, ">") == "x" * 1_000_000 + ">"
    topic.publish("a")
    assert '"content": "a"' in read(theirs, "}")
    assert reply.over.wait(PATIENCE)


def test_what_a_full_socket_does_not_take_of_the_response_before_a_poll_comes_before_its_answer(
    harness: Harness,
) -> None:
    topic = news()
    ours, theirs = harness.pair(buffer=SMALL)
    harness.ends.append(ours)
    poll, reply = LongPoll(topic, PACE), Reply()
    assert poll.open() is None
    harness.hub.poll(ours, poll, reply, unsent=b"x" * 1_000_000 + b">")
    harness.settle()
    harness.settle()
    topic.publish("a")
    assert reply.over.wait(PATIENCE)
    assert reply.rest
    ours.setblocking(True)
    sender = threading.Thread(target=ours.sendall, args=(reply.rest,))
    sender.start()
    before, _, answer = read(theirs, "}").partition(">")
    sender.join()
    assert before == "x" * 1_000_000
    assert '"content": "a"' in answer


class FirstWord(Topic):
    """A topic without a message, whose first comes right behind a look that has found none."""

    armed = False

    def id_at(self, position: int) -> str:
        if self.armed:
            self.armed = False
            self.publish("first")
        return super().id_at(position)


def test_a_poll_that_is_let_go_as_the_first_message_comes_asks_for_it_the_next_time(harness: Harness) -> None:
    topic = FirstWord("news", content_type="text/plain")
    client, _ = harness.poll(topic)
    topic.armed = True
    harness.pass_time(PACE.longpoll_timeout + 1)
    answer = read(client, "}")
    assert '"state": "waiting"' in answer
    assert f'"last_event_id": "{topic.epoch}-0"' in answer


class Passing(Topic):
    """A topic of which more messages come than it keeps, right when a poll is let go."""

    armed = False

    def id_at(self, position: int) -> str:
        if self.armed:
            self.armed = False
            for text in "bcd":
                self.publish(text)
        return super().id_at(position)


def test_a_poll_that_is_let_go_as_messages_pass_it_by_is_told_the_next_time(harness: Harness) -> None:
    topic = Passing("news", content_type="text/plain", history=2)
    last = topic.publish("a").id
    client, _ = harness.poll(topic, last_event_id=last)
    topic.armed = True
    harness.pass_time(PACE.longpoll_timeout + 1)
    answer = json.loads(read(client, "}").partition(">")[2])
    assert answer["state"] == "waiting"
    body = LongPoll(topic, PACE, answer["last_event_id"]).open()
    assert body
    assert json.loads(body)["reset"]


# -- the end


def test_a_stop_ends_streams_and_answers_polls_with_a_hint(harness: Harness) -> None:
    topic = news()
    chunked, plain = harness.stream(topic, multipart, chunked=True), harness.stream(topic, sse)
    poll, reply = harness.poll(topic)
    harness.settle()
    harness.hub.stop()
    assert rest(chunked).endswith("\r\n\r\n0\r\n\r\n")
    assert "retry: " in rest(plain)
    answer = rest(poll)
    assert '"state": "waiting"' in answer
    assert '"retry": ' in answer
    assert reply.left
    assert sorted(harness.released) == ["client", "client", "poll"]
    assert topic.clients == 0


def test_what_was_published_before_a_stop_is_written_before_it(harness: Harness) -> None:
    topic = news()
    client = harness.stream(topic)
    harness.settle()
    stopping = threading.Thread(target=harness.hub.stop)

    def stop_behind_a_message() -> None:  # when the hub has looked for messages, and will next look whether to stop
        topic.publish("a")
        stopping.start()
        wait_until(lambda: harness.hub.stopping)

    harness.clock.then = stop_behind_a_message
    harness.hub.call(lambda: None)
    assert contents(rest(client)) == ["<heartbeat>", "a", "<waiting>"]
    stopping.join()


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_that_comes_during_a_stop_ends_as_cleanly(harness: Harness, chunked: bool) -> None:
    topic = news()
    topic.publish("a")
    harness.hub.stop()
    ours, theirs = harness.pair()
    subscription = Subscription(topic, jsonlines, PACE, "", lambda: harness.released.append("late"))
    opening = subscription.open()
    harness.hub.stream(ours, subscription, chunked=chunked, unsent=opening)
    found = rest(theirs)
    line = r'{"state": "waiting", "retry": \d+}\n'
    ending = rf"[0-9a-f]+\r\n{line}\r\n0\r\n\r\n" if chunked else line
    assert re.fullmatch(re.escape(opening.decode()) + ending, found)
    assert harness.released == ["late"]


def test_a_poll_that_comes_during_a_stop_is_answered(harness: Harness) -> None:
    topic = news()
    harness.hub.stop()
    client, reply = harness.poll(topic)
    assert '"retry": ' in rest(client)
    assert reply.left
    assert harness.released == ["poll"]


def test_a_stopped_hub_leaves_nothing_behind(harness: Harness) -> None:
    topic = news()
    harness.stream(topic)
    harness.settle()
    harness.hub.stop()
    assert topic._listeners == ()
    topic.publish("a")
    assert not harness.hub._changed


def test_a_hub_without_clients_stops_and_closes_its_files() -> None:
    hub = Hub()
    hub.stop()
    hub.stop()
    gc.collect()  # a socket left open is a warning here, which is an error
    assert not threads("pushdemo-hub")


class Flood(Topic):
    """A topic whose publisher is always a message ahead of the hub."""

    def following(self, position: int) -> tuple[Message | None, bool]:
        if not self.ended:
            self.publish("more")
        return super().following(position)


def test_a_flood_of_messages_leaves_the_hub_time_for_others(harness: Harness) -> None:
    flooded = Flood("news", content_type="text/plain")
    harness.stream(flooded)
    flooded.publish("the first of many")
    wait_until(lambda: flooded.head > 1_000)
    topic = news()
    client = harness.stream(topic)
    topic.publish("a")
    assert contents(read(client, line("a"))) == ["<heartbeat>", "a"]
    flooded.end()


def test_clients_of_whom_nobody_knows_what_they_have_are_let_go_and_come_back(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = news()
    clients = [harness.stream(topic, name=f"client {number}") for number in range(3)]
    last = topic.publish("a").id
    for client in clients:
        read(client, line("a"))

    def half_done(sockets: Sockets[Any], data: bytes) -> list[int]:
        next(iter(sockets.values())).send(data)
        raise OSError("out of order")

    def half_done_with_all(sockets: Sequence[socket.socket], data: Sequence[bytes]) -> list[int]:
        sockets[0].send(data[0])
        raise OSError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(harness.hub.sender, "send_each", half_done)
        patch.setattr(harness.hub.sender, "send_all", half_done_with_all)
        topic.publish("b")
        assert [contents(rest(client)) for client in clients] == [["b"], [], []]
    harness.settle()
    assert sorted(harness.released) == ["client 0", "client 1", "client 2"]
    assert "out of order" in caplog.text
    again = harness.stream(topic, last_event_id=last)
    topic.publish("c")
    assert contents(read(again, line("c"))) == ["<heartbeat>", "b", "c"]


def test_publishing_waits_for_no_client(harness: Harness) -> None:
    topic = news(history=10)
    harness.stream(topic, buffer=SMALL)
    harness.settle()
    publisher = threading.Thread(target=lambda: [topic.publish("x" * 100_000) for _ in range(200)])
    publisher.start()
    publisher.join(PATIENCE)
    assert not publisher.is_alive()
