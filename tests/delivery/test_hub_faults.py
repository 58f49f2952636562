"""A fault at each step of the hub's thread, and a system without threads: others are served, and told of the end."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pushdemo.delivery import connection, feed, loop, pull
from pushdemo.delivery.hub import Hub
from pushdemo.delivery.metrics import Counters
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import jsonlines, sse
from tests.support import PATIENCE, threads, wait_until


class Reply:
    """A long poll in the server's hands."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.gives_up = False
        self.gone_times = 0

    def head(self, size: int) -> bytes:
        return b""

    def done(self, rest: bytes) -> None:
        assert not rest
        self.sock.sendall(b"\n")
        self.sock.close()

    def gone(self) -> None:
        self.gone_times += 1


class Body:
    """A pulled body of numbers."""

    transport = jsonlines
    ends = math.inf

    def __init__(self, pace: Pace, closed: Callable[[], None]) -> None:
        self.pace = pace
        self.tally = pace.counters.tally("", "jsonlines")
        self.close = closed
        self.number = 0

    def pull(self) -> bytes | None:
        self.number += 1
        return b"%d\n" % self.number


class House:
    """A hub with clients of each kind, each with its own name in `closed` when it is gone."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.topic = Topic("news", content_type="text/plain")
        self.pace = Pace(heartbeat=0.2, longpoll_timeout=PATIENCE, stall_timeout=PATIENCE, counters=Counters())
        self.closed: list[str] = []
        self.ends: list[socket.socket] = []
        self.replies: list[Reply] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(PATIENCE)
        self.ends += [ours, theirs]
        return ours, theirs

    def stream(self, name: str, transport: Any = jsonlines) -> socket.socket:
        ours, theirs = self.pair()
        subscription = Subscription(self.topic, transport, self.pace, "", lambda: self.closed.append(name))
        self.hub.stream(ours, subscription, chunked=False, unsent=subscription.open())
        return theirs

    def poll(self, name: str) -> socket.socket:
        ours, theirs = self.pair()
        poll = LongPoll(self.topic, self.pace, self.topic.id_at(self.topic.head), lambda: self.closed.append(name))
        assert poll.open() is None
        self.replies.append(Reply(ours))
        self.hub.poll(ours, poll, self.replies[-1], unsent=b"")
        return theirs

    def pull(self, name: str) -> socket.socket:
        ours, theirs = self.pair()
        body = Body(self.pace, lambda: self.closed.append(name))
        self.hub.pull(
            ours, body, chunked=False, unsent=b"", run=lambda function: threading.Thread(target=function).start()
        )  # type: ignore[arg-type]
        return theirs

    def settle(self) -> None:
        done = threading.Event()
        self.hub.call(done.set)
        assert done.wait(PATIENCE)

    def close(self) -> None:
        self.hub.stop(PATIENCE)
        for end in self.ends:
            end.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        piece = sock.recv(65_536)
        assert piece, data
        data += piece
    return data


def rest(sock: socket.socket) -> bytes:
    data = b""
    try:
        while piece := sock.recv(65_536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The system has no thread for the next so many; [0] to begin with."""
    left, start = [0], threading.Thread.start

    def start_unless(thread: threading.Thread) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless)
    yield left
    left[0] = 0


# -- no thread


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_clients_wait_for_a_thread_and_are_served_when_there_is_one(
    house: House, no_threads: list[int], missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    no_threads[0] = missing
    clients = [house.stream("a"), house.stream("b", sse)]
    poll = house.poll("c")
    if missing > 3:
        assert "cannot be started" in house.hub.trouble
    house.topic.publish("the news")
    while house.hub.trouble:
        house.hub.start_again()
    for client in clients:
        until(client, b"the news")
    assert json.loads(until(poll, b"\n"))["messages"][0]["content"] == "the news"
    assert len([record for record in caplog.records if "cannot be started" in record.message]) == 1


def test_a_stop_without_a_thread_ends_everyone(house: House, no_threads: list[int]) -> None:
    no_threads[0] = 10**6
    clients = [house.stream("a", sse), house.poll("b"), house.pull("c")]
    house.hub.stop()
    assert b"retry: " in rest(clients[0])
    assert b'"retry"' in rest(clients[1])
    no_threads[0] = 0
    rest(clients[2])
    assert sorted(house.closed) == ["a", "b", "c"]
    assert house.hub.trouble == ""


def test_a_hub_that_has_died_says_so_and_can_be_started_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = house.stream("a")
    house.settle()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        patch.setattr(Hub, "guarded", raising(SystemExit(1)))
        house.topic.publish("lost")
        wait_until(lambda: not threads("pushdemo-hub"))
        assert "has died" in house.hub.trouble
    house.hub.start_again()
    assert house.hub.trouble == ""
    house.topic.publish("the news")
    until(client, b"the news")


# -- a fault at each step


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def once(step: Callable[..., Any], error: BaseException, at: int) -> Callable[..., Any]:
    """A step that fails when it is taken for the `at`-th time, but not by the test itself."""
    taken = [0]

    def fail(*args: Any, **options: Any) -> Any:
        taken[0] += threading.current_thread() is not threading.main_thread()
        if taken[0] == at:
            taken[0] += 1
            raise error
        return step(*args, **options)

    return fail


STEPS = [
    (loop.Loop, "_wait"),
    (Hub, "turn"),
    (Hub, "timeout"),
    (Hub, "_sweep"),
    (Hub, "_feeds_of"),
    (feed.Feed, "deliver"),
    (feed.Feed, "sweep"),
    (feed.Feed, "reach"),
    (feed.Group, "write_entry"),
    (feed.Group, "entry"),
    (feed.Group, "count"),
    (feed.Group, "sweep"),
    (feed.Group, "_write"),
    (feed.Group, "_keep_alive"),
    (feed.Outbox, "flush"),
    (feed.Outbox, "add"),
    (feed.Stream, "start"),
    (feed.Stream, "advance"),
    (feed.Stream, "_become_current"),
    (feed.Poll, "start"),
    (feed.Poll, "answer"),
    (feed.Poll, "_reply"),
    (pull.Pull, "start"),
    (pull.Pull, "taken"),
    (pull.Pull, "sweep"),
    (pull.Pull, "_pulled"),
    (connection.Connection, "ready"),
    (connection.Connection, "send_rest"),
    (connection.Connection, "has_left"),
    (connection.Connection, "watch"),
    (Topic, "following"),
    (Topic, "start_again"),
    (LongPoll, "answer"),
    (LongPoll, "join"),
    (Reply, "head"),
    (Reply, "done"),
    (Body, "pull"),
]


@pytest.mark.heavy
@pytest.mark.parametrize("error", [ValueError("on purpose"), SystemExit(3)], ids=["error", "exit"])
@pytest.mark.parametrize(("of", "step"), STEPS, ids=[f"{of.__name__}.{step}" for of, step in STEPS])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_costs_at_most_those_whom_it_meets(
    house: House, monkeypatch: pytest.MonkeyPatch, of: type, step: str, error: BaseException
) -> None:
    """After it, new clients of all kinds are served, and all that are left are told of the end."""
    for at in (1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(of, step, once(getattr(of, step), error, at))
            met = [
                house.stream("met"),
                house.stream("met", sse),
                house.poll("met"),
                house.poll("met"),
                house.pull("met"),
            ]
            house.settle()
            house.topic.publish("first")
            met[0].shutdown(socket.SHUT_WR)
            threading.Event().wait(0.05)
        house.settle()
    assert house.hub.trouble == ""
    stream, event_stream, pulled = house.stream("a"), house.stream("b", sse), house.pull("c")
    poll = house.poll("d")
    house.settle()
    house.topic.publish("the news")
    until(stream, b"the news")
    until(event_stream, b"the news")
    until(pulled, b"\n3\n")
    assert b"the news" in until(poll, b"\n")
    house.hub.stop(PATIENCE)
    assert b'"retry"' in rest(stream)
    assert b"retry: " in rest(event_stream)
    rest(pulled)
    wait_until(lambda: not threads("pushdemo-hub"))


@pytest.mark.parametrize("step", ["head", "done"])
def test_a_poll_that_cannot_be_answered_is_dropped_and_counted_and_the_others_are_answered(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reply, step, once(getattr(Reply, step), UnicodeEncodeError("latin-1", "Ž", 0, 1, "no"), 2))
    polls = [house.poll(name) for name in "abcd"]
    streams = [house.stream("e")]
    house.settle()
    house.topic.publish("the news")
    assert [b"the news" in rest(poll) for poll in polls].count(True) == (3 if step == "head" else 4)
    until(streams[0], b"the news")
    house.settle()
    assert sorted(house.closed) == list("abcd")
    assert [reply.gone_times > 0 for reply in house.replies] == [False, True, False, False]
    assert sum(figures.failed for figures in house.pace.counters.figures().values()) == 1
    assert len(caplog.records) == 1


def test_many_faults_are_one_line_of_log(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reply, "head", raising(ValueError("on purpose")))
    polls = [house.poll("a") for _ in range(50)]
    house.settle()
    house.topic.publish("the news")
    for poll in polls:
        assert rest(poll) == b""
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info


# -- the end


def test_farewells_come_in_time_whatever_is_still_to_be_sent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LAST", 0.05)
    write = feed.Group.write_entry

    def slowly(group: feed.Group, *args: Any) -> None:
        threading.Event().wait(0.02)
        write(group, *args)

    monkeypatch.setattr(feed.Group, "write_entry", slowly)
    streams = [house.stream("a", sse), house.stream("b", sse)]
    house.settle()
    for number in range(90):
        house.topic.publish(f"{number}")
    house.hub.stop(PATIENCE)
    for stream in streams:
        said = rest(stream)
        assert b"retry: " in said
        assert b"data: 89" not in said
    assert sorted(house.closed) == ["a", "b"]


def test_what_was_published_right_before_the_stop_is_sent(house: House) -> None:
    stream, poll = house.stream("a", sse), house.poll("b")
    house.settle()
    house.topic.publish("the last news")
    house.hub.stop(PATIENCE)
    said = rest(stream)
    assert said.index(b"the last news") < said.rindex(b"retry: ")
    assert b"the last news" in rest(poll)
