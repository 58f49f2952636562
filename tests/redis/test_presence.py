"""What nodes tell each other of their clients, at a real Redis: numbers of listeners, and orders to end them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from webtest import TestApp

from pushdemo.redis.presence import EXPIRY
from pushdemo.server import Server
from tests.readers import Reader
from tests.redis.support import RedisServer, redis_server
from tests.support import port_of, serving, wait_until
from tests.web.test_listening import BUSY, WITHIN, application, is_open, listen, until_end


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextmanager
def node(redis: RedisServer, namespace: str) -> Iterator[tuple[Server, TestApp]]:
    app = application(redis_url=redis.url, redis_namespace=namespace)
    with serving(app) as server:
        yield server, TestApp(app)
    app.registry["pushdemo.topics"].close()
    app.registry["pushdemo.backend"].close()


@pytest.fixture
def nodes(redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[list[tuple[Server, TestApp]]]:
    with ExitStack() as stack:
        yield [stack.enter_context(node(redis, f"n{abs(hash(request.node.name))}")) for _ in range(2)]


@pytest.mark.heavy
def test_listeners_are_counted_on_all_nodes(nodes: list[tuple[Server, TestApp]]) -> None:
    (one, _), (other, app) = nodes
    readers = [listen(one, "sse", "/push?room=a"), listen(one, "jsonlines", "/push?room=a")]
    readers.append(listen(other, "sse", "/push?room=a"))
    wait_until(lambda: app.get("/count?room=a").json == 3, EXPIRY + BUSY, "three listeners")
    assert app.get("/count?room=b").json == 0
    readers.pop(0).leave()
    wait_until(lambda: app.get("/count?room=a").json == 2, EXPIRY + BUSY, "one that left")
    for reader in readers:
        reader.leave()
    wait_until(lambda: app.get("/count?room=a").json == 0, EXPIRY + BUSY, "nobody")


@pytest.mark.heavy
def test_a_node_that_dies_is_counted_no_more(redis: RedisServer) -> None:
    with node(redis, "dies") as (_, app), ExitStack() as stack:
        one, _ = stack.enter_context(node(redis, "dies"))
        with listen(one, "sse", "/push?room=a"):
            wait_until(lambda: app.get("/count?room=a").json == 1, EXPIRY + BUSY, "the listener")
            stack.close()  # tells nobody of its clients
        wait_until(lambda: app.get("/count?room=a").json == 0, EXPIRY + BUSY, "the end of the node's figures")


@pytest.mark.heavy
def test_an_order_reaches_the_clients_of_other_nodes(nodes: list[tuple[Server, TestApp]]) -> None:
    (one, _), (_, app) = nodes
    with listen(one, "sse", "/push?room=a", "ann") as ann, listen(one, "sse", "/push?room=a", "bob") as bob:
        wait_until(lambda: app.get("/count?room=a").json == 2, EXPIRY + BUSY, "both listeners")
        app.get("/end?owner=ann")
        assert until_end(ann) < WITHIN + BUSY
        assert is_open(bob)
        app.get("/end?topic=room.{room}&room=a")
        assert until_end(bob) < WITHIN + BUSY


@pytest.mark.heavy
def test_an_order_that_was_given_while_a_node_was_cut_off_is_carried_out(
    redis: RedisServer, nodes: list[tuple[Server, TestApp]]
) -> None:
    (one, first), (_, app) = nodes
    with listen(one, "sse", "/push?room=a", "ann") as ann:
        wait_until(lambda: app.get("/count?room=a").json == 1, EXPIRY + BUSY, "the listener")
        orders = first.app.registry["pushdemo.backend"]._orders
        wait_until(lambda: orders.current, what="the node's first look")
        for client in redis.client.client_list():
            if client["name"] == "pushdemo-reader":
                redis.client.client_kill_filter(_id=client["id"])
        app.get("/end?owner=ann")
        assert until_end(ann) < 10


def test_the_newest_id_is_found_on_a_node_that_nobody_listens_to(nodes: list[tuple[Server, TestApp]]) -> None:
    (_, first), (other, second) = nodes
    first.get("/publish?room=a")
    newest = second.get("/newest?room=a").json
    published = first.get("/publish?room=a").json
    with Reader(port_of(other), "sse", "/push?room=a", last=newest) as reader:
        seen = [reader.next().id]
        while seen[-1] != published:
            seen.append(reader.next().id)
        assert len(seen) <= 2


def test_a_redis_that_is_gone_leaves_the_nodes_own_number(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as redis,
        node(redis, "gone") as (server, app),
        listen(server, "sse", "/push?room=a"),
    ):
        redis.kill()
        assert app.get("/count?room=a").json == 1
        app.get("/end?owner=ann", status=503)
