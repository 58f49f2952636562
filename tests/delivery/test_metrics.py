"""The counters: what is added up, and what the hub, the threads and the refusals add to them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from webtest import TestApp

from pushdemo.delivery.hub import Hub
from pushdemo.delivery.metrics import OTHER_SETS, Counters, Figures, Tally
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import StreamTransport, jsonlines
from tests.fixtureapps import texts
from tests.support import PATIENCE, wait_until

NOTHING = Figures(clients=0, behind=0, lag=0, messages=0, bytes=0, resets=0, stalled=0)


@dataclass(eq=False)
class Cursor:
    position: int
    topic: Any = field(default_factory=lambda: SimpleNamespace(head=10))


def test_nothing_has_happened_at_first() -> None:
    counters = Counters()
    assert (counters.figures(), counters.refusals()) == ({}, {})
    assert Tally().figures() == NOTHING


def test_a_topic_by_a_transport_has_one_tally() -> None:
    counters = Counters()
    assert counters.tally("news", "sse") is counters.tally("news", "sse")
    assert counters.tally("news", "sse") is not counters.tally("news", "multipart")
    assert list(counters.figures()) == [("news", "multipart"), ("news", "sse")]


@pytest.mark.parametrize("transports", [["sse"], ["sse", "multipart", "longpoll"]])
def test_after_a_hundred_sets_of_topics_all_others_are_counted_as_one(transports: list[str]) -> None:
    counters = Counters()
    asked = [(f"news,{number}", transports[number % len(transports)]) for number in range(300)]
    tallies = [counters.tally(*each) for each in asked]
    for tally in tallies:
        tally.wrote(1)
    others = {(OTHER_SETS, transport) for transport in transports}
    assert set(counters.figures()) == {*asked[:100], *others}
    assert sum(counters.figures()[other].bytes for other in others) == 200
    assert [counters.tally(*each) for each in asked] == tallies


def test_a_topic_by_itself_is_never_one_of_the_others() -> None:
    counters = Counters()
    for number in range(200):
        counters.tally(f"topic{number}", "sse")
    for number in range(200):
        counters.tally(f"news,{number}", "sse")
    for name in ("weather", "prices.{symbol}", ""):
        for transport in ("sse", "longpoll"):
            counters.tally(name, transport)
            assert (name, transport) in counters.figures()
    assert len(counters.figures()) == 200 + 100 + 1 + 6


def test_the_lag_is_the_slowest_clients() -> None:
    tally = Tally()
    slow, slower, current = Cursor(8), Cursor(3), Cursor(10)
    for cursor in (slow, slower, current):
        tally.joined()
        tally.alone(cursor)
    assert tally.figures()[:3] == (3, 2, 7)
    tally.left(slower)
    assert tally.figures()[:3] == (2, 1, 2)
    tally.caught_up(slow)
    assert tally.figures()[:3] == (2, 0, 0)


def test_nothing_is_lost_when_threads_count_at_once() -> None:
    counters = Counters()
    tally = counters.tally("news", "sse")

    def count(_: int) -> None:
        for _ in range(2_000):
            tally.wrote(3, messages=2, resets=1)
            counters.refused("topic", 503)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert tally.figures() == NOTHING._replace(messages=16_000, bytes=24_000, resets=8_000)
    assert counters.refusals() == {("topic", 503): 8_000}


class Harness:
    """A hub with a clock that passes when told, and clients of one topic."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.hub = Hub(lambda: self.now)
        self.topic = Topic("news", content_type="text/plain", history=5)
        self.pace = Pace(heartbeat=15.0, stall_timeout=30.0)
        self.sockets: list[socket.socket] = []

    def stream(self, transport: StreamTransport = jsonlines) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(PATIENCE)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.sockets.append(theirs)
        subscription = Subscription(self.topic, transport, self.pace)
        self.hub.stream(ours, subscription, chunked=False, unsent=subscription.open())
        self.settle()
        return theirs

    def publish(self, text: str) -> None:
        self.topic.publish(text)
        self.settle()

    def settle(self) -> None:
        """Wait until the hub has done what was asked of it so far: what was published follows the calls of a turn."""
        for _ in range(2):
            done = threading.Event()
            self.hub.call(done.set)
            assert done.wait(PATIENCE)

    def figures(self, transport: str = "jsonlines") -> Figures:
        return self.pace.counters.tally("news", transport).figures()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.hub.stop()
    for sock in harness.sockets:
        sock.close()


def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes of what the client gets."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "the connection has ended"
        data += more
    return data


def test_the_hub_counts_clients_messages_and_bytes(harness: Harness) -> None:
    first, second = harness.stream(), harness.stream()
    for text in ("one", "two", "three"):
        harness.publish(text)
    figures = harness.figures()
    assert (figures.clients, figures.messages, figures.behind) == (2, 6, 0)
    halves = figures.bytes // 2
    assert received(first, halves).count(b'"content"') == received(second, halves).count(b'"content"') == 3
    for sock in (first, second):
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)  # all that came was counted


def test_the_hub_counts_those_who_leave(harness: Harness) -> None:
    harness.stream()
    harness.stream().close()
    wait_until(lambda: harness.figures().clients == 1)


def test_a_client_that_does_not_read_is_behind_is_reset_and_counted_once_it_reads_again(harness: Harness) -> None:
    reader = harness.stream()
    for number in range(20):  # more than the history holds
        harness.publish(f"{number}" + "x" * 60_000)
    figures = harness.figures()
    assert figures.behind == 1
    assert figures.lag > 5
    assert figures.resets == 0
    while harness.figures().behind:
        reader.recv(65_536)
        harness.settle()
    figures = harness.figures()
    assert (figures.lag, figures.resets, figures.stalled, figures.clients) == (0, 1, 0, 1)


def test_a_client_that_never_reads_is_closed_and_counted(harness: Harness) -> None:
    harness.stream()
    while not harness.figures().behind:
        harness.publish("x" * 60_000)
        harness.publish("y")
    harness.now += 31
    wait_until(lambda: (harness.settle(), harness.figures().stalled)[1] == 1)
    assert harness.figures()[:3] == (0, 0, 0)


def test_a_stream_in_a_thread_counts_the_same(harness: Harness) -> None:
    harness.topic.publish("one")
    body = iter(Subscription(harness.topic, jsonlines, harness.pace))
    data = next(body)
    harness.topic.publish("two")
    data += next(body)
    harness.topic.publish("three")
    assert harness.figures() == NOTHING._replace(clients=1, behind=1, lag=1, messages=2, bytes=len(data))
    body.close()  # type: ignore[attr-defined]
    assert harness.figures()[:3] == (0, 0, 0)


def test_a_long_poll_counts_its_answers(harness: Harness) -> None:
    harness.topic.publish("one")
    harness.topic.publish("two")
    poll = LongPoll(harness.topic, harness.pace, "earliest")
    body = poll.open()
    poll.close()
    assert body is not None
    assert harness.figures("longpoll") == NOTHING._replace(messages=2, bytes=len(body))


@pytest.mark.parametrize("end", [False, True])
def test_a_long_poll_without_a_message_counts_none(harness: Harness, end: bool) -> None:
    poll = LongPoll(harness.topic, harness.pace)
    assert poll.open() is None
    poll.join()
    assert harness.figures("longpoll") == NOTHING._replace(clients=1)
    if end:
        harness.topic.end()
        body = poll.answer()
        assert body is not None
    else:
        body = poll.waiting()
    poll.close()
    assert harness.figures("longpoll") == NOTHING._replace(bytes=len(body))


def test_a_notice_is_no_message(harness: Harness) -> None:
    client = harness.stream()
    poll = LongPoll(harness.topic, harness.pace)
    assert poll.open() is None
    harness.topic.notify("reset")
    harness.settle()
    body = poll.answer()
    assert body is not None
    assert (harness.figures().messages, harness.figures().resets) == (0, 1)
    assert (harness.figures("longpoll").messages, harness.figures("longpoll").resets) == (0, 1)
    harness.topic.notify("failing")
    harness.settle()
    body = iter(Subscription(harness.topic, jsonlines, harness.pace, "earliest"))
    assert b"reset" in next(body)
    body.close()  # type: ignore[attr-defined]
    assert harness.figures() == harness.figures()._replace(clients=1, messages=0, resets=2)
    assert b"failing" in client.recv(1_000)


def test_a_reset_at_the_beginning_is_counted(harness: Harness) -> None:
    body = iter(Subscription(harness.topic, jsonlines, harness.pace, "another-1"))
    first = next(body)
    assert harness.figures() == NOTHING._replace(clients=1, resets=1, bytes=len(first))
    body.close()  # type: ignore[attr-defined]


def test_refusals_are_counted_by_what_was_asked_for_and_status() -> None:
    router = texts.main()
    app = TestApp(router)
    app.get("/push/pictures?transport=sse", status=406)
    app.get("/push/values?transport=pigeon", status=400)
    app.get("/push/values?transport=pigeon", status=400)
    app.post("/push/values", status=405)
    counted = router.registry["pushdemo.clients"].counters.refusals()
    assert counted == {("topic", 400): 2, ("topic", 405): 1, ("topic", 406): 1}
