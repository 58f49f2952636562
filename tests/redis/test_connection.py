"""The way to Redis: the pool, addresses, health, and how many connections a node has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from webtest import TestApp

from pushdemo.redis import pool as redis_pool
from pushdemo.redis.connection import Link
from pushdemo.redis.pool import Address, Pool, RedisUnavailableError
from tests.cache.support import Asked
from tests.redis.support import Node, RedisServer, namespace, redis_server
from tests.support import PATIENCE, free_port, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server for a test that harms it."""
    with redis_server(tmp_path) as server:
        yield server


# -- the pool


def test_forty_publishers_share_five_connections(fragile: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(f"{fragile.url}?max_connections=5", namespace())
    topic = node.topic(history=1000)
    node.start()
    most = []

    def publish() -> None:
        for number in range(10):
            topic.publish(f"{number}")
            most.append(node.backend._link.pool.in_use)

    threads = [threading.Thread(target=publish) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert fragile.client.xlen(topic.stream) == 400
    assert max(most) <= 5
    assert not node.backend.trouble
    assert not caplog.records


def test_who_finds_no_connection_in_time_is_told_so_and_redis_is_not_to_blame(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pushdemo.redis.connection.COMMAND_TIMEOUT", 0.05)
    link = Link(f"{server.url}?max_connections=1")
    taken = link.pool.take(0)
    with pytest.raises(RedisUnavailableError, match="all 1 connections to Redis are in use: see max_connections"):
        link.command("PING")
    assert not link.trouble
    link.pool.give_back(taken)
    assert link.command("PING")
    assert not caplog.records
    link.close()


class Connection:
    """What a pool knows of a connection."""

    def __init__(self) -> None:
        self.is_connected = True

    def can_read(self, timeout: float) -> bool:
        return False

    def disconnect(self) -> None:
        self.is_connected = False


def test_connections_that_nobody_needs_are_closed_but_one() -> None:
    now = 0.0
    pool = Pool(Connection, 10, lambda: now)
    taken = [pool.take(0) for _ in range(4)]
    for connection in taken:
        pool.give_back(connection)
    pool.trim()
    assert pool.idle == 4
    now = redis_pool.SPARE + 1
    pool.trim()
    assert [connection.is_connected for connection in taken] == [False, False, False, True]
    assert (pool.idle, pool.in_use) == (1, 0)


def test_after_a_drop_connections_in_use_are_closed_when_they_are_given_back() -> None:
    pool = Pool(Connection, 10)
    idle, used = pool.take(0), pool.take(0)
    pool.give_back(idle)
    pool.drop(used)
    assert not idle.is_connected
    assert used.is_connected
    fresh = pool.take(0)
    pool.drop(used)  # from before: it says nothing of those that are there now
    pool.give_back(used)
    assert not used.is_connected
    pool.give_back(fresh)
    assert pool.idle == 1
    assert fresh.is_connected


def test_a_connection_may_be_taken_by_a_thread_that_is_making_one() -> None:
    """Then a garbage collection may run what needs Redis."""
    made: list[Connection] = []

    def connect() -> Connection:
        made.append(Connection())
        connection = made[-1]
        if len(made) == 1:
            pool.give_back(pool.take(0))
        return connection

    pool = Pool(connect, 10)
    assert Asked(lambda: pool.take(0)).answer() is made[0]
    assert (pool.idle, pool.in_use) == (1, 1)


def test_what_is_known_of_redis_may_be_asked_for_by_a_thread_that_notes_it(server: RedisServer) -> None:
    link = Link(server.url)

    def asked_within() -> bool:
        with link._lock:
            return bool(link.command("PING")) and not link.errors

    assert Asked(asked_within).answer()
    link.close()


@pytest.mark.heavy
def test_a_node_that_does_nothing_keeps_two_connections(fragile: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushdemo.redis.pool.SPARE", 0.2)
    node = Node(fragile.url, namespace())
    topic = node.topic(history=1000)
    node.start()
    threads = [threading.Thread(target=topic.publish, args=("a",)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    def names() -> list[str]:
        return sorted(client["name"] for client in fragile.client.client_list() if client["name"])

    wait_until(lambda: names() == ["pushdemo", "pushdemo-reader"], what="two connections")


# -- addresses


@pytest.mark.parametrize(
    ("url", "text", "database"),
    [
        ("valkey://example.org:7000/3", "example.org:7000", 3),
        ("valkeys://example.org", "example.org:6379", 0),
        ("redis+sentinel://one,two:7000/mymaster/2", "one,two:7000/mymaster", 2),
        ("rediss+sentinel://user:p%40ss@one:1,[::1]:2/mymaster", "one:1,[::1]:2/mymaster", 0),
        ("valkey+sentinel://one/m?sentinel_username=a&sentinel_password=b&db=4", "one/m", 4),
    ],
)
def test_addresses(url: str, text: str, database: int) -> None:
    address = Address(url)
    assert (address.text, address.database) == (text, database)


def test_what_a_sentinel_and_its_master_are_told_is_taken_from_the_url() -> None:
    url = "rediss+sentinel://user:p%40ss@one,two:7/m?sentinel_username=a&sentinel_password=b&ssl_ca_certs=/ca.pem"
    address = Address(f"{url}&max_connections=7")
    connection = address.connection()
    sentinels = address._pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
    hosts = [sentinel.connection_pool.connection_kwargs for sentinel in sentinels]
    assert [(each["host"], each["port"], each["username"], each["password"]) for each in hosts] == [
        ("one", 26379, "a", "b"),
        ("two", 7, "a", "b"),
    ]
    assert all(each["ssl_ca_certs"] == "/ca.pem" for each in hosts)
    assert (connection.username, connection.password, connection.ca_certs) == ("user", "p@ss", "/ca.pem")
    assert address.connections == 7


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one",
        "redis+sentinel:///mymaster",
        "redis+sentinel://one:port/mymaster",
        "redis+sentinel://one,/mymaster",
        "redis+sentinel://one/mymaster/x",
        "redis+sentinel://one/mymaster?nonsense=1",
        "redis://one/0?protocol=3",
        "redis://one/0?decode_responses=1",
        "redis://one/news",
    ],
)
def test_an_address_that_will_not_do_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a URL that the redis package can use"):
        Address(url)


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "valkey+cluster"])
def test_a_cluster_is_refused_by_name_with_what_would_do(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"Redis Cluster is not supported.*redis\+sentinel://"):
        Address(f"{scheme}://:swordfish@one/0")


# -- readiness


@pytest.mark.heavy
@pytest.mark.parametrize(
    "spoil",
    [
        ("ACL", "SETUSER", "node", "-@write"),
        ("ACL", "SETUSER", "node", "resetkeys"),
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
    ],
    ids=["no writes", "no keys", "no replicas"],
)
def test_a_node_is_not_ready_where_every_write_is_refused(
    fragile: RedisServer, spoil: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    fragile.client.execute_command("ACL", "SETUSER", "node", "on", ">pw", "~*", "&*", "+@all")
    fragile.client.execute_command(*spoil)
    node = Node(f"redis://node:pw@127.0.0.1:{fragile.port}/0", namespace())
    node.topic()
    node.start()
    assert node.backend.trouble.startswith("Redis refuses every write: ")
    before = refusals(node)
    wait_until(lambda: refusals(node) > before + 1, what="two more tries")
    assert len([record for record in caplog.records if "refuses every write" in record.getMessage()]) == 1
    assert "not reachable" not in caplog.text
    fragile.client.execute_command("ACL", "SETUSER", "node", "~*", "+@all")
    fragile.client.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
    wait_until(lambda: "takes writes again" in caplog.text, what="the end of the trouble")
    assert not node.backend.trouble


def refusals(node: Node) -> int:
    return node.backend._link.refusals


def test_a_database_that_there_is_not_and_a_wrong_password_are_refusals(server: RedisServer) -> None:
    for url in (f"{server.url[:-1]}99", f"redis://:wrong@127.0.0.1:{server.port}/0"):
        node = Node(url, namespace())
        node.start()
        assert node.backend.trouble.startswith("Redis refuses the connection (")


@pytest.mark.heavy
def test_a_node_of_a_cluster_is_refused_by_name(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        began = time.monotonic()
        node = Node(server.url, namespace())
        node.start()
        assert "a node of a Redis Cluster, which is not supported" in node.backend.trouble
        assert time.monotonic() - began < PATIENCE


@pytest.mark.heavy
def test_ready_says_why(fragile: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushdemo.redis.reader.LOOK", 0.2)
    from pushdemo.demo import main

    settings = {"pushdemo.redis_url": fragile.url, "pushdemo.redis_namespace": namespace()}
    app = main({}, **settings)
    backend = app.registry["pushdemo.backend"]
    client = TestApp(app)
    assert client.get("/health/ready").json == {"ready": True}
    metrics = client.get("/metrics").text
    assert "pushdemo_redis_leases_lost_total 0.0" in metrics
    assert "pushdemo_redis_connections_limit 50.0" in metrics
    assert "leases held" in client.get("/status").text
    fragile.client.config_set("maxmemory", "1")
    wait_until(lambda: backend.warning, what="the warning")
    answer = client.get("/health/ready", status=200).json
    assert answer["ready"] is True
    assert answer["reason"].startswith("Redis is full: OutOfMemoryError")
    assert "pushdemo_ready 1.0" in client.get("/metrics").text
    fragile.client.config_set("maxmemory", "0")
    wait_until(lambda: not backend.warning, what="the end of the warning")
    fragile.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    wait_until(lambda: backend.trouble, what="the trouble")
    answer = client.get("/health/ready", status=503).json
    assert answer["reason"].startswith("Redis refuses every write: ReadOnlyError")
    metrics = client.get("/metrics").text
    assert "pushdemo_ready 0.0" in metrics
    assert 'pushdemo_redis_errors_total{kind="OutOfMemoryError"}' in metrics
    app.registry["pushdemo.topics"].close()
    backend.close()


def test_two_namespaces_share_nothing(server: RedisServer) -> None:
    nodes = [Node(server.url, namespace()) for _ in range(2)]
    for node in nodes:
        node.topic()
        node.start(listening=True)
    nodes[0].topics["news"].publish("a")
    nodes[1].topics["news"].catch_up()
    assert nodes[1].topics["news"].number == 0
    for node in nodes:
        for key in server.client.keys(f"*{node.backend.namespace}*"):
            assert key.startswith(f"{{{node.backend.namespace}}}:".encode())
