"""What a transaction publishes to topics that nodes share at a real Redis: one burst, in order, seen elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.router import Router

from pushdemo.topics.topic import Topic
from pushdemo.web.rendering import blank_request
from tests.redis.support import RedisServer, entries, namespace, redis_server
from tests.support import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def nodes(server: RedisServer) -> Iterator[list[Router]]:
    space = namespace()
    made = [node(server, space) for _ in range(2)]
    yield made
    for app in made:
        app.registry["pushdemo.topics"].close()
        app.registry["pushdemo.backend"].close()


def node(server: RedisServer, space: str) -> Router:
    settings = {"pushdemo.redis_url": server.url, "pushdemo.redis_namespace": space, "pushdemo.history": "20000"}
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.add_topic("rooms.{room}", content_type="text/plain")
        config.add_topic("news", content_type="text/plain")
        return config.make_wsgi_app()


def topic_of(app: Router, name: str, **values: str) -> Topic:
    topics = app.registry["pushdemo.topics"]
    topic: Topic = topics.open(topics.refer(name, values))
    return topic


def test_ten_thousand_messages_are_one_burst_that_other_nodes_see_in_order(
    nodes: list[Router], server: RedisServer
) -> None:
    here, there = nodes
    listening = topic_of(there, "news")
    listening.join()
    wait_until(lambda: listening.current, what="the reader")  # type: ignore[attr-defined]
    manager = transaction.TransactionManager(explicit=True)
    request = blank_request(here.registry)
    with manager:
        for number in range(10_000):
            request.publish("news", str(number), tm=manager)
        before = server.client.info("stats")["total_reads_processed"]
    trips = server.client.info("stats")["total_reads_processed"] - before
    wait_until(lambda: listening.number == 10_000, what="the messages")
    assert [entry for entry in entries(listening) if not entry.startswith("(")] == [str(n) for n in range(10_000)]  # type: ignore[arg-type]
    assert trips < 2_000, "not a round trip for each"
    assert here.registry["pushdemo.clients"].counters.unsent_messages() == {}
    listening.leave()


def test_messages_to_several_topics_keep_each_topic_s_order_and_their_events(nodes: list[Router]) -> None:
    here, _ = nodes
    manager = transaction.TransactionManager(explicit=True)
    request = blank_request(here.registry)
    with manager:
        for number in range(5):
            request.publish("rooms.{room}", f"a{number}", room="a", tm=manager, event="said")
            request.publish("rooms.{room}", f"b{number}", room="b", tm=manager)
    for room in "ab":
        topic = topic_of(here, "rooms.{room}", room=room)
        assert entries(topic) == [f"{room}{number}" for number in range(5)]  # type: ignore[arg-type]
    message, _ = topic_of(here, "rooms.{room}", room="a").following(0)
    assert message is not None
    assert message.event == "said"


def test_without_redis_the_commit_stands_and_what_is_lost_is_counted(
    nodes: list[Router], server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = nodes
    manager = transaction.TransactionManager(explicit=True)
    request = blank_request(here.registry)
    with manager:
        request.publish("news", "a", tm=manager)
        request.publish("rooms.{room}", "b", room="x", tm=manager)
        server.kill()
    assert here.registry["pushdemo.clients"].counters.unsent_messages() == {
        ("news", "failed"): 1,
        ("rooms.{room}", "failed"): 1,
    }
    assert caplog.text.count("is lost after its commit") == 2
