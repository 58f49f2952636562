"""The hub's turns, and its end."""

from __future__ import annotations

import gc
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pushdemo.delivery import hub as hub_module
from pushdemo.delivery.hub import Hub
from pushdemo.delivery.rights import Orders, Right
from pushdemo.delivery.sending import Sockets
from pushdemo.delivery.subscription import Subscription
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import jsonlines, multipart, sse
from tests.delivery.support import (
    PACE,
    SMALL,
    Harness,
    Slow,
    assert_idle,
    contents,
    in_a_thread,
    line,
    news,
    read,
    reset,
    rest,
)
from tests.readers import TRANSPORTS, pushing
from tests.support import PATIENCE, SOON, threads, wait_until


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


def test_messages_that_flow_are_taken_together_and_one_after_a_pause_at_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "_FLOW", 0.05)
    topic = news()
    client = harness.stream(topic)
    harness.settle()
    wait_until(lambda: time.monotonic() > harness.hub._delivered + 0.05)
    topic.publish("first")
    began = time.monotonic()
    assert contents(read(client, line("first")))[-1] == "first"
    turns: list[float] = []
    deliver = harness.hub._deliver

    def counted() -> None:
        turns.append(time.monotonic())
        deliver()

    monkeypatch.setattr(harness.hub, "_deliver", counted)
    for number in range(100):
        topic.publish(str(number))
        threading.Event().wait(0.002)
    took = time.monotonic() - began
    assert contents(read(client, line("99"))) == list(map(str, range(100)))
    assert len(turns) <= took / 0.05 + 4
    wait_until(lambda: not harness.hub._flowing)
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


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stall_timeout_of_more_than_the_kernel_counts_costs_nobody_the_connection(transport: str) -> None:
    with pushing({"stall_timeout": 1e9}) as site, site.reader(transport, last="latest") as reader:
        topic = site.topics["news"]
        reader.start()
        wait_until(lambda: topic.clients, timeout=SOON)
        topic.publish("a")
        assert reader.contents(1) == ["a"]


# -- rights


@pytest.fixture
def few_expiring(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(hub_module, "_EXPIRING", 10)
    return 10


def test_when_the_right_of_those_who_have_left_would_end_is_forgotten(few_expiring: int, harness: Harness) -> None:
    topic, later = news(), news()
    began = harness.clock.now

    def right(seconds: int) -> Right:
        return Right(expires=began + seconds)

    first = harness.stream(topic, right=right(1))
    kept = {seconds: harness.stream(later, right=right(seconds), name=f"after {seconds}") for seconds in (9, 3, 6)}
    kept[12], _ = harness.poll(later, right=right(12), name="after 12")
    reset(first)
    most = 0
    for number in range(20):
        for _ in range(3):
            harness.poll(topic, last_event_id="latest", right=right(86_400))
        stream = harness.stream(topic, right=right(86_400))
        harness.settle()
        most = max(most, len(harness.hub._expiring))
        reset(stream)
        topic.publish(str(number))
        wait_until(lambda: topic.clients == 0)
    assert most <= 2 * few_expiring
    harness.settle()
    harness.released.clear()
    for seconds in (3, 6, 9, 12):
        harness.pass_time(2)
        assert f"after {seconds}" not in harness.released
        harness.pass_time(1)
        assert harness.released[-1] == f"after {seconds}"
        assert '"state": "waiting"' in rest(kept[seconds]) if seconds < 12 else read(kept[seconds], "}")


def test_while_many_with_a_right_are_there_none_of_them_is_forgotten(few_expiring: int, harness: Harness) -> None:
    topic, began = news(), harness.clock.now
    order = [number * 7 % 30 for number in range(30)]
    for number in order:
        harness.stream(topic, right=Right(expires=began + 1 + number), name=str(number))
    for number in range(30):
        harness.pass_time(1)
        assert harness.released == [str(each) for each in range(number + 1)]
    assert not harness.hub._expiring


class LateOrders(Orders):
    """Orders of which one comes right behind a client's first look."""

    looked = False

    def end(self, right: Right, topics: Iterable[Topic] = ()) -> bool:
        found = super().end(right, topics)
        if not self.looked:
            self.looked = True
            self.add("ann", None)
        return found


@pytest.mark.parametrize("polls", [False, True])
def test_an_order_that_comes_as_the_first_client_is_adopted_is_carried_out(harness: Harness, polls: bool) -> None:
    topic, pace = news(), replace(PACE, orders=LateOrders())
    right = Right(owner="ann", began=0.0)
    if polls:
        client, _ = harness.poll(topic, pace=pace, right=right, name="ann's")
    else:
        client = harness.stream(topic, pace=pace, right=right, name="ann's")
    harness.settle()
    assert pace.orders.number == 1
    assert not harness.released
    harness.pass_time(1)
    assert harness.released == ["ann's"]
    assert '"state": "waiting"' in (read(client, "}") if polls else rest(client))


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


@pytest.mark.parametrize("attempt", range(10))
def test_what_is_called_while_the_hub_stops_is_called_once(attempt: int) -> None:
    """By the hub's thread, or by the one that asks for it when there is none any more."""
    hub, together = Hub(io_uring=False), threading.Barrier(5)
    called: list[tuple[int, int]] = []

    def caller(number: int) -> None:
        together.wait()
        for count in range(300):
            hub.call(lambda count=count: called.append((number, count)))  # type: ignore[misc]

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in callers:
        thread.start()
    together.wait()
    time.sleep(attempt / 1000)
    hub.stop()
    for thread in callers:
        thread.join(PATIENCE)
    assert sorted(called) == [(number, count) for number in range(4) for count in range(300)]


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
