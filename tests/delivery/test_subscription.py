"""A client's cursor where a server's own thread iterates it: told at once of what comes, the end, and the stop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pushdemo.delivery.subscription import LongPoll, Pace, Subscription, retry_hint
from pushdemo.topics.topic import Topic
from pushdemo.transports import STREAMS, jsonlines
from tests.support import PATIENCE, wait_until

PACE = Pace(heartbeat=10 * PATIENCE, longpoll_timeout=10 * PATIENCE)  # longer than any of these tests


class Waiting(threading.Thread):
    """A thread that takes what a response has, as a server's would; `found` is what has come."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__(daemon=True)
        self.found: list[Any] = []
        self.parts = parts
        self.start()

    def run(self) -> None:
        for part in self.parts:
            self.found += [json.loads(line) for line in part.splitlines()]


class Watched(Topic):
    """A topic that says when a thread waits for it."""

    def __init__(self) -> None:
        super().__init__("news", content_type="text/plain")
        self.waited_for = threading.Event()

    def wait(self, position: int, timeout: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self._noticed(position), timeout)

    def _noticed(self, position: int) -> bool:
        """Whether there is nothing to wait for; else the thread waits once this has returned, and is noticed."""
        if self.head > position or self.ended or self.closed:
            return True
        self.waited_for.set()  # under the lock, so that whoever changes anything does so later
        return False


@pytest.fixture
def topic() -> Watched:
    return Watched()


def waiting(topic: Watched, parts: Iterator[bytes]) -> Waiting:
    thread = Waiting(parts)
    assert topic.waited_for.wait(PATIENCE)
    return thread


def polled(topic: Topic) -> Iterator[bytes]:
    poll = LongPoll(topic, PACE)
    assert poll.open() is None
    yield poll.wait()


def test_a_stream_in_a_thread_brings_each_message_as_it_comes(topic: Watched) -> None:
    thread = waiting(topic, iter(Subscription(topic, jsonlines, PACE)))
    for text in "abc":
        topic.publish(text)
        wait_until(lambda text=text: thread.found[-1].get("content") == text)
    topic.close()
    thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(Topic.end, {"state": "done"}), (Topic.close, {"state": "waiting", "retry": range(100, 2_000)})],
)
def test_a_stream_in_a_thread_is_told_at_once_of_the_end_and_of_the_stop(
    topic: Watched, change: Callable[[Topic], None], expected: dict[str, Any]
) -> None:
    left: list[None] = []
    thread = waiting(topic, iter(Subscription(topic, jsonlines, PACE, "", lambda: left.append(None))))
    change(topic)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    *_, last = thread.found
    assert last.keys() == expected.keys()
    assert last["state"] == expected["state"]
    assert last.get("retry", 0) in expected.get("retry", [0])
    assert left == [None]
    assert topic.clients == 0


@pytest.mark.parametrize(
    ("change", "state"), [(Topic.end, "done"), (Topic.close, "waiting"), (lambda topic: topic.publish("a"), "ready")]
)
def test_a_long_poll_in_a_thread_is_answered_at_once(
    topic: Watched, change: Callable[[Topic], Any], state: str
) -> None:
    thread = waiting(topic, polled(topic))
    change(topic)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    (answer,) = thread.found
    assert answer["state"] == state
    assert ("retry" in answer) == (change is Topic.close)


def test_a_quiet_stream_in_a_thread_gets_heartbeats(topic: Watched) -> None:
    stream = iter(Subscription(topic, jsonlines, Pace(heartbeat=0.01)))
    first = b'{"state": "heartbeat"}\n{"state": "begin", "last_event_id": "%s"}\n' % topic.id_at(0).encode()
    assert [next(stream) for _ in range(3)] == [first, *[b'{"state": "heartbeat"}\n'] * 2]


@pytest.mark.parametrize("transport", STREAMS)
@pytest.mark.parametrize("last", ["", "latest"])
def test_who_has_had_no_message_is_told_where_it_is_and_misses_none(topic: Watched, transport: str, last: str) -> None:
    if last:
        topic.publish("a")
    here = topic.id_at(topic.head)
    assert Subscription(topic, STREAMS[transport], PACE, last).open().count(here.encode()) > 0
    assert here.encode() not in Subscription(topic, STREAMS[transport], PACE, here).open(), "it knows"
    missed = [topic.publish(text).id.encode() for text in "bc"]
    again = Subscription(topic, STREAMS[transport], PACE, here).open()
    assert [id in again for id in missed] == [True, True]
    assert here.encode() not in again


def test_clients_are_told_to_come_back_at_different_times() -> None:
    hints = {retry_hint() for _ in range(100)}
    assert hints <= set(range(100, 2_000))
    assert len(hints) > 50


def test_the_first_write_brings_a_bounded_part_of_the_history(topic: Watched) -> None:
    for number in range(10):
        topic.publish(str(number) * 10_000)
    first = Subscription(topic, jsonlines, PACE, "earliest").open()
    assert 32_768 <= len(first) < 32_768 + 11_000


def test_a_cursor_that_was_overtaken_is_told_once(topic: Watched) -> None:
    client = Subscription(topic, jsonlines, PACE)
    client.open()
    for number in range(topic.kept + 2):
        topic.publish(str(number))
    reset, message = (client.next() or b"").splitlines()
    assert json.loads(reset) == {"state": "reset"}
    assert json.loads(message)["content"] == str(topic.kept + 1)
    topic.publish("next")
    assert b"reset" not in (client.next() or b"")
    assert client.next() is None
    client.close()
    client.close()
    assert topic.clients == 0
