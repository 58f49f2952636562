"""What a node follows: the channels of the topics that somebody there listens to, for as long as somebody does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def pair(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Node]]:
    """Two nodes with the topic `news`, which nobody listens to yet."""
    monkeypatch.setattr("pushdemo.redis.reader.LINGER", 0.1)
    monkeypatch.setattr("pushdemo.redis.reader._TURN", 0.05)
    nodes = [Node(server.url, space) for space in [namespace()] * 2]
    for node in nodes:
        node.topic()
        node.start()
    yield nodes
    for node in nodes:
        node.close()


def hearing(server: RedisServer, node: Node) -> int:
    """How many nodes hear the channel of the topic."""
    count: int = server.client.pubsub_numsub(node.topics["news"].channel)[0][1]
    return count


def test_a_channel_is_heard_while_somebody_listens(server: RedisServer, pair: list[Node]) -> None:
    here, there = (node.topics["news"] for node in pair)
    here.publish("a")
    assert hearing(server, pair[0]) == 0, "a publisher does not listen"
    there.begin()
    there.join()
    wait_until(lambda: there.current, what="the reader")
    assert hearing(server, pair[0]) == 1
    here.publish("b")
    wait_until(lambda: there.number == 2, what="the message")
    there.leave()
    wait_until(lambda: hearing(server, pair[0]) == 0, what="the end of the subscription")
    assert not there.current
    here.publish("c")
    begun = there.begin()
    assert entries(there, begun.position) == ["c"], "who comes later looks first"
    there.join()
    wait_until(lambda: hearing(server, pair[0]) == 1, what="the subscription")
    there.leave()


def test_who_comes_back_at_once_finds_the_channel_heard(
    server: RedisServer, pair: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pushdemo.redis.reader.LINGER", 3600)
    topic = pair[0].topics["news"]
    topic.join()
    wait_until(lambda: topic.current, what="the reader")
    topic.leave()
    topic.join()
    assert topic.current
    assert hearing(server, pair[0]) == 1
    topic.leave()


def test_a_stream_that_has_lost_what_the_state_knows_of_is_a_reset(server: RedisServer, pair: list[Node]) -> None:
    here, there = (node.topics["news"] for node in pair)
    here.publish("a")
    there.catch_up()
    before = there.head
    here.publish("b")
    server.client.delete(here.stream)
    there.catch_up()
    assert entries(there, before) == ["(reset)"]
    here.publish("c")
    there.catch_up()
    assert entries(there, before) == ["(reset)", "c"]
