"""What a node does for all of its topics at a real Redis: what it declares, and how it finds out what Redis takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pushdemo.redis import upkeep as redis_upkeep
from pushdemo.redis.connection import Link
from pushdemo.redis.presence import Presence
from pushdemo.redis.upkeep import Declaration, Upkeep
from tests.cache.support import Clock
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def link(server: RedisServer) -> Iterator[Link]:
    link = Link(server.url, namespace())
    yield link
    link.close()


def test_declarations_that_redis_refuses_are_left_there_soon(server: RedisServer, link: Link) -> None:
    clock = Clock()
    upkeep = Upkeep(link, Presence(link), clock)
    upkeep.survey()  # else it would find another life of Redis, in which all is declared again
    upkeep.declare(Declaration("news", "text/plain", 10, None))
    server.client.config_set("maxmemory", "1")
    for _ in range(3):
        upkeep.turn([])  # that one thing is refused is no reason to leave the others, or to hear news no more
        clock.advance(redis_upkeep._AGAIN)
    key = link.key("1", "declared", "news")
    assert link.errors == {"OutOfMemoryError": 3}
    assert not server.client.exists(key)
    server.client.config_set("maxmemory", "0")
    upkeep.turn([])
    assert server.client.exists(key)
    server.client.delete(key)
    clock.advance(redis_upkeep._AGAIN)
    upkeep.turn([])
    assert not server.client.exists(key), "once they are there, they stay for long"


@pytest.mark.parametrize("name", ["probe", "~probe"])
def test_a_topic_of_the_application_may_be_called_as_the_probe_is(server: RedisServer, link: Link, name: str) -> None:
    """`~probe` is the topic of the value "probe" where the pattern is nothing but a placeholder."""
    nodes = [Node(server.url, link.key()[1:-1]) for _ in range(2)]
    here, there = (node.topic(name) for node in nodes)
    upkeep = Upkeep(link, Presence(link))
    for text in "abc":
        here.publish(text)
        upkeep.survey()
    there.catch_up()
    assert entries(there, there.oldest()) == ["a", "b", "c"]
    assert there.epoch == here.epoch
    assert there.lifetime == here.lifetime
    for node in nodes:
        node.close()
