"""A topic's streams in the hub. Each test is run by all ways of sending."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import weakref
from contextlib import suppress

import pytest

from pushdemo.delivery.subscription import LongPoll, Subscription
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import Names, jsonlines, sse
from tests.delivery.support import PACE, SMALL, Harness, Reply, assert_idle, contents, line, news, read, reset, rest
from tests.support import PATIENCE, SOON, wait_until

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
    assert contents(read(client, '-0"}\n')) == ["<heartbeat>"]  # the first bytes of every stream
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
    wait_until(lambda: harness.released, timeout=SOON)
    harness.settle()
    topic.publish("a")
    harness.settle()
    assert harness.released == ["client"]
    assert topic.clients == 0


def test_a_client_that_is_behind_and_resets_its_connection_is_let_go(harness: Harness) -> None:
    topic = news()
    client, other = harness.stream(topic, buffer=SMALL, name="behind"), harness.stream(topic)
    text = "x" * 1_000_000
    topic.publish(text)
    read(other, line(text))
    harness.settle()
    reset(client)
    wait_until(lambda: harness.released == ["behind"], timeout=SOON)
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
    wait_until(lambda: harness.released == ["client"], timeout=SOON)
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


@pytest.mark.heavy
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
