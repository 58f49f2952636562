"""Clients of several topics in the hub: a cursor in each of them, and bytes that all clients of a topic share."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import pytest

from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.content import BOUNDARY
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import jsonlines, multipart
from tests.delivery.support import PACE, SMALL, Harness, assert_idle, contents, read, reset, rest
from tests.support import PATIENCE, SOON, at_once, wait_until


def topic(name: str, **options: Any) -> Topic:
    return Topic(name, content_type="text/plain", **options)


def named(text: str, name: str) -> str:
    """The end of the line that brings this text."""
    return f'"content": "{text}", "topic": "{name}"}}\n'


def test_a_message_to_a_common_topic_is_the_same_bytes_whatever_else_a_client_has(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    transport_encode = jsonlines.encode

    def encode(message: Message, names: Any) -> bytes:
        made.append(f"{message.topic}, {names}")
        return transport_encode(message, names)

    monkeypatch.setattr(jsonlines, "encode", encode)
    common = topic("common")
    own = [topic(f"own{number}") for number in range(5)]
    clients = [harness.stream([common, each]) for each in own]
    harness.settle()
    id = common.publish("a").id
    own[2].publish("b")
    for client in clients:
        end = named("b", "own2") if client is clients[2] else named("a", "common")
        assert f'{{"id": "{id}", "content": "a", "topic": "common"}}\n' in read(client, end)
    assert made.count("common, topic") == 1
    assert made.count("own2, topic") == 1


def test_equal_bytes_for_one_client_in_one_turn_are_sent_as_often(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    client = harness.stream([a, b], multipart)
    harness.settle()
    busy, go_on = threading.Event(), threading.Event()
    harness.hub.call(lambda: (busy.set(), go_on.wait(PATIENCE)))  # type: ignore[arg-type, return-value]
    assert busy.wait(PATIENCE)
    for each in (a, b, a):
        each.notify("failing")
    a.publish("end")
    go_on.set()
    assert read(client, f"end\r\n--{BOUNDARY}\r\n").count("X-Failing: 1\r\n") == 3


def test_messages_of_one_turn_come_as_they_were_published(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    client = harness.stream([b, a])
    harness.settle()
    busy, go_on = threading.Event(), threading.Event()
    harness.hub.call(lambda: (busy.set(), go_on.wait(PATIENCE)))  # type: ignore[arg-type, return-value]
    assert busy.wait(PATIENCE)
    for number in range(10):
        (b if number % 3 else a).publish(str(number))
    go_on.set()
    assert contents(read(client, named("9", "a")))[1:] == [str(number) for number in range(10)]


def test_a_client_that_reads_slowly_gets_every_message_of_each_topic_in_order(harness: Harness) -> None:
    chance = random.Random(1)
    topics = [topic(name) for name in "abc"]
    slow = harness.stream(topics, buffer=SMALL)
    others = [harness.stream([each, topics[0]]) for each in topics[1:]]
    sent = []
    for number in range(60):
        publisher = chance.choice(topics)
        sent.append((publisher.name, f"{number} " + "x" * chance.randrange(4_000)))
        publisher.publish(sent[-1][1])
        if chance.random() < 0.3:
            harness.settle()
    topics[0].publish("last")
    found = [json.loads(each) for each in read(slow, named("last", "a"), step=1_000).splitlines()[2:]]
    assert [(each["topic"], each["content"]) for each in found] == [*sent, ("a", "last")]
    for other, name in zip(others, "bc", strict=True):
        came = [json.loads(each) for each in read(other, named("last", "a")).splitlines()[2:]]
        assert [each["content"] for each in came][:-1] == [text for of, text in sent if of in ("a", name)]
    topics[1].publish("after")
    assert contents(read(slow, named("after", "b"))) == ["after"]


def test_a_client_that_is_behind_in_one_topic_is_written_nothing_of_another_in_between(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    slow = harness.stream([a, b], buffer=SMALL)
    harness.settle()
    a.publish("x" * 1_000_000)
    harness.settle()
    b.publish("y")
    harness.settle()
    found = read(slow, named("y", "b"), step=10_000)
    assert contents(found)[1:] == ["x" * 1_000_000, "y"]


def test_a_client_that_falls_out_of_one_history_is_reset_and_misses_nothing_of_the_other(harness: Harness) -> None:
    a, b = topic("a", history=2), topic("b")
    slow = harness.stream([a, b], buffer=SMALL)
    harness.settle()
    b.publish("y" * 1_000_000)
    harness.settle()
    for number in range(5):
        a.publish(f"a{number}")
    b.publish("last")
    found = contents(read(slow, named("last", "b"), step=10_000))[2:]
    assert found in (["<reset>", "a4", "last"], ["last", "<reset>", "a4"])


def test_a_stream_ends_when_the_last_of_its_topics_has_ended(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    both, one = harness.stream([a, b], name="both"), harness.stream(a, name="one")
    harness.settle()
    a.publish("1")
    a.end()
    assert contents(rest(one))[-2:] == ["1", "<done>"]
    b.publish("2")
    assert contents(read(both, named("2", "b")))[1:] == ["1", "2"]
    late = harness.stream([a, b], name="late", last_event_id="earliest")
    b.publish("3")
    b.end()
    assert contents(rest(both)) == ["3", "<done>"]
    assert contents(rest(late))[1:] == ["1", "2", "3", "<done>"]
    wait_until(lambda: sorted(harness.released) == ["both", "late", "one"])
    assert (a.clients, b.clients) == (0, 0)


def test_topics_that_end_in_one_turn_end_their_streams_whole(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    clients = [harness.stream([a, b]) for _ in range(3)]
    harness.settle()
    busy, go_on = threading.Event(), threading.Event()
    harness.hub.call(lambda: (busy.set(), go_on.wait(PATIENCE)))  # type: ignore[arg-type, return-value]
    assert busy.wait(PATIENCE)
    for each in (a, b):
        each.publish(f"{each.name}1")
        each.publish(f"{each.name}2")
        each.end()
    go_on.set()
    for client in clients:
        found = contents(rest(client))[1:]
        assert sorted(found[:-1]) == ["a1", "a2", "b1", "b2"]
        assert found[-1] == "<done>"


def test_a_client_whose_topics_are_all_quiet_is_kept_alive_once(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    both, other = harness.stream([a, b]), harness.stream([a, topic("c")])
    for client in (both, other):
        read(client, "}\n")
    harness.pass_time(PACE.heartbeat - 1)
    b.publish("1")
    read(both, named("1", "b"))
    harness.pass_time(2)
    assert contents(read(other, '"heartbeat"}\n'))[-1] == "<heartbeat>"
    harness.pass_time(1)
    assert at_once(other) == b""  # that was enough, though the other client of its topic has had none
    other.settimeout(PATIENCE)
    harness.pass_time(PACE.heartbeat - 4)
    b.publish("2")
    assert contents(read(both, named("2", "b"))) == ["2"]  # b was not quiet, so that a wanted nothing
    harness.pass_time(PACE.heartbeat + 1)
    a.publish("3")
    assert contents(read(both, named("3", "a"))) == ["<heartbeat>", "3"]
    for _ in range(3):
        harness.pass_time(PACE.heartbeat / 2)
    a.publish("4")
    assert contents(read(both, named("4", "a"))) == ["<heartbeat>", "4"]


def test_a_client_that_leaves_leaves_all_its_topics(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    gone, stays = harness.stream([a, b], name="gone"), harness.stream([a, b], name="stays")
    harness.settle()
    reset(gone)
    wait_until(lambda: harness.released == ["gone"], timeout=SOON)
    assert (a.clients, b.clients) == (1, 1)
    a.publish("1")
    b.publish("2")
    assert contents(read(stays, named("2", "b")))[-2:] == ["1", "2"]
    assert_idle(harness)


def test_one_that_leaves_with_bytes_in_the_outbox_is_sent_nothing(harness: Harness) -> None:
    """Its descriptor may be another's by then."""
    a, b = topic("a"), topic("b")
    leaving, other = harness.stream([a, b], name="leaving"), harness.stream(b, name="other")
    harness.settle()
    a.publish("1")
    harness.settle()
    harness.hub.call(lambda: reset(leaving))
    for number in range(20):
        a.publish(str(number))
        b.publish(str(number))
    assert contents(read(other, '"content": "19"}\n'))[1:] == [str(number) for number in range(20)]
    wait_until(lambda: harness.released == ["leaving"])


def test_a_poll_of_several_topics_is_answered_by_any(harness: Harness) -> None:
    a, b, c = topic("a"), topic("b"), topic("c")
    client, reply = harness.poll([a, b, c])
    harness.settle()
    id = b.publish("1").id
    answer = json.loads(read(client, "}").partition(">")[2])
    assert answer["messages"] == [{"id": id, "content": "1", "topic": "b"}]
    assert answer["last_event_id"] == f"a:{a.epoch}-0,b:{id},c:{c.epoch}-0"
    assert reply.over.wait(PATIENCE)
    assert [each.clients for each in (a, b, c)] == [0, 0, 0]
    a.publish("2")
    harness.pass_time(PACE.longpoll_timeout + 1)
    assert harness.released == ["poll"]


def test_a_poll_whose_topics_end_one_after_the_other_is_done_with_the_last(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    client, reply = harness.poll([a, b])
    a.end()
    harness.settle()
    assert not reply.over.is_set()
    b.end()
    assert '"state": "done"' in read(client, "}")


def test_counted_is_each_topic(harness: Harness) -> None:
    a, b = topic("a"), topic("b")
    client = harness.stream([a, b])
    harness.settle()
    a.publish("1")
    a.publish("2")
    b.publish("3")
    read(client, named("3", "b"))
    harness.settle()
    figures = PACE.counters.figures()
    assert (figures["a", "jsonlines"].clients, figures["b", "jsonlines"].clients) >= (1, 1)


def test_in_threads_several_topics_are_waited_for_at_once() -> None:
    a, b = topic("a"), topic("b")
    pace = Pace(heartbeat=10 * PATIENCE, longpoll_timeout=10 * PATIENCE)
    stream = iter(Subscription([a, b], jsonlines, pace, names="topic"))
    next(stream)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(stream), daemon=True)
    reader.start()
    for number, each in enumerate((a, b, b, a)):
        each.publish(str(number))
        wait_until(lambda number=number: named(str(number), "").encode()[:16] in b"".join(found))
    a.end()
    b.publish("last")
    b.end()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert contents(b"".join(found).decode()) == ["0", "1", "2", "3", "last", "<done>"]
    assert (a.clients, b.clients, a._listeners, b._listeners) == (0, 0, (), ())


@pytest.mark.parametrize("change", ["publish", "close", "end"])
def test_a_poll_in_a_thread_waits_for_all_its_topics(change: str) -> None:
    a, b = topic("a"), topic("b")
    poll = LongPoll([a, b], Pace(longpoll_timeout=10 * PATIENCE))
    assert poll.open() is None
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.append(poll.wait()), daemon=True)
    waiting.start()
    wait_until(lambda: b._listeners)
    if change == "publish":
        b.publish("1")
    elif change == "close":
        b.close()
    else:
        a.end()
        b.end()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    answer = json.loads(found[0])
    assert answer["state"] == {"publish": "ready", "close": "waiting", "end": "done"}[change]
    assert ("retry" in answer) == (change == "close")
    poll.close()
