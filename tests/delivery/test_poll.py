"""Parked long polls: answered, given back, forgotten."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
from collections.abc import Callable

import pytest

from pushdemo.delivery.subscription import LongPoll
from pushdemo.delivery.tcp import closing
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from tests.delivery.support import PACE, SMALL, Harness, Reply, assert_idle, news, read, reset
from tests.support import PATIENCE, SOON, wait_until

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
    assert reply.over.wait(SOON)
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
    assert reply.over.wait(SOON)
    assert reply.left
    assert harness.released == ["poll"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_a_client_that_closes_its_side_behind_its_next_request_is_noticed(harness: Harness) -> None:
    topic = news()
    ours, client, reply = asking_on(harness, topic)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: closing(ours), what="the client's end")
    harness.pass_time(1)
    assert reply.over.is_set()
    assert '"state": "waiting"' in read(client, "}")
    assert not reply.left
    assert reply.rest == b""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_a_client_that_resets_behind_its_next_request_is_noticed(harness: Harness) -> None:
    topic = news()
    ours, theirs, reply = asking_on(harness, topic)
    harness.pass_time(1)
    assert not reply.over.is_set()
    reset(theirs)
    arrived = select.poll()
    arrived.register(ours, 0)
    assert arrived.poll(PATIENCE * 1000)
    harness.pass_time(1)
    assert reply.left
    assert harness.released == ["poll"]
    assert topic.clients == 0


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


def asking_on(harness: Harness, topic: Topic) -> tuple[socket.socket, socket.socket, Reply]:
    """As `parked`, of a client that has sent its next request already, which the hub has seen."""
    ours, theirs, reply = parked(harness, topic)
    theirs.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    wait_until(lambda: harness.hub._feeds[topic].looked_at, what="the hub's look at the next request")
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
    assert reply.over.wait(SOON)
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
