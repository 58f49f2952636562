"""Topics of a pattern on several nodes that come and go, while Redis does too; and what is left of them."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pushdemo.topics.catalog import Catalog, Declaration
from pushdemo.topics.pattern import Pattern
from pushdemo.topics.topic import Topic
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import PATIENCE, free_port, require, wait_until

LIFETIME = 0.5


class Nodes:
    """A node with a catalog, as an application has it."""

    def __init__(self, url: str, space: str, lifetime: float = LIFETIME) -> None:
        self.node = Node(url, space)
        backend = self.node.backend
        pattern = Pattern("room.{id}")
        self.catalog = Catalog(pool=backend.pool)
        self.catalog.declare(
            Declaration(
                pattern,
                lambda reference: backend.topic(
                    reference.name, content_type="text/plain", history=1000, lifetime=lifetime, pattern=pattern.text
                ),
                "text/plain",
                forget=backend.forget,
                lifetime=lifetime,
            )
        )
        self.node.start()

    def room(self, id: object) -> Topic:
        return self.catalog.open(self.catalog.refer("room.{id}", {"id": str(id)}))

    def close(self) -> None:
        self.catalog.close()
        self.node.close()


class Client:
    """A client of one room on one node: what it is told, from where it begins to where it leaves."""

    def __init__(self, topic: Topic, last_event_id: str = "") -> None:
        self.topic = topic
        begun = topic.begin(last_event_id)
        self.reset = begun.reset
        self.position = begun.position
        topic.join()

    def read(self) -> list[str]:
        told = entries(self.topic, self.position)  # type: ignore[arg-type]
        self.position = self.topic.head
        return told

    def leave(self) -> None:
        self.topic.leave()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path, durable=True) as server:
        yield server


@pytest.fixture
def pair(server: RedisServer) -> Iterator[list[Nodes]]:
    space = namespace()
    made = [Nodes(server.url, space) for _ in range(2)]
    yield made
    for each in made:
        each.close()


def test_a_message_reaches_the_clients_of_the_other_node_whichever_comes_first(pair: list[Nodes]) -> None:
    here, there = pair
    here.room(1).publish("a")
    client = Client(there.room(1))
    assert client.read() == ["a"], "a new client begins at the newest message"
    here.room(1).publish("b")
    wait_until(lambda: client.topic.head > client.position, what="the message")
    assert client.read() == ["b"]
    client.leave()


def test_a_topic_that_nobody_uses_leaves_nothing_at_redis_and_begins_anew(
    pair: list[Nodes], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    client = Client(here.room(1))
    client.topic.publish("a")
    last = client.topic.id_at(client.topic.head)
    keys = [client.topic.key, client.topic.stream]  # type: ignore[attr-defined]
    assert server.client.exists(*keys) == 2
    client.leave()
    name = client.topic.name
    del client
    for key in keys:  # it has still the margin in which a node may say that it is in use
        assert server.client.pexpire(key, 50)
    wait_until(lambda: not server.client.exists(*keys), what="the end of the keys")
    wait_until(lambda: name not in here.catalog, what="the end of the topic")
    again = Client(there.room(1), last)
    assert again.reset
    again.leave()


def test_a_topic_with_clients_outlives_its_lifetime(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushdemo.redis.reader._TURN", 0.05)
    nodes = Nodes(server.url, namespace())
    client = Client(nodes.room(1))
    key = client.topic.key  # type: ignore[attr-defined]
    wait_until(lambda: client.topic.current, what="the reader")  # type: ignore[attr-defined]
    server.client.pexpire(key, 700)
    wait_until(lambda: server.client.pttl(key) > 5000, timeout=0.7, what="a sign of life")
    client.leave()
    nodes.close()


@pytest.mark.heavy
def test_nothing_is_lost_while_rooms_and_clients_come_and_go_and_connections_end(
    pair: list[Nodes], server: RedisServer
) -> None:
    """A client is told all that was published after it had begun, in order and once."""
    random.seed(7)
    stop = threading.Event()
    errors: list[BaseException] = []
    visits, gaps = [0], [0]  # who begins while connections end may be told a gap

    def visit(number: int) -> None:
        own = random.Random(number)
        try:
            while not stop.is_set():
                id = own.randrange(20)
                nodes, other = own.sample(pair, 2)
                client, told = Client(nodes.room(id)), list[str]()
                topic = other.room(id)
                client.read()
                published = []
                for count in range(own.randrange(1, 5)):
                    text = f"{number}.{time.monotonic_ns()}.{count}"
                    with suppress(ConnectionError):
                        topic.publish(text)
                        published.append(text)
                wanted = set(published)
                end = time.monotonic() + PATIENCE
                while not wanted <= set(told) and "(gap)" not in told and time.monotonic() < end:
                    told += client.read()
                    stop.wait(0.005)
                client.leave()
                visits[0] += 1
                if "(gap)" in told:
                    gaps[0] += 1
                    continue
                assert wanted <= set(told), (id, published, told)
                own_messages = [text for text in told if text in wanted]
                assert own_messages == published
                assert "(reset)" not in told
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 8
    while time.monotonic() < until and not errors:
        server.kill_connections()
        stop.wait(random.uniform(0.2, 1.0))
    stop.set()
    for thread in threads:
        thread.join(2 * PATIENCE)
    if errors:
        raise errors[0]
    assert gaps[0] <= 1 + visits[0] // 50


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1, which is its own authority."""
    require(shutil.which("openssl"), "openssl", "openssl")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True, capture_output=True
    )
    return tmp_path


def test_nodes_speak_tls_with_a_user_of_their_own(certificates: Path) -> None:
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"]
    with redis_server(certificates, *tls, "--tls-ca-cert-file", "cert.pem", "--tls-auth-clients", "no") as server:
        rule = "on >password ~{pushdemo}:* &{pushdemo}:* -@all +@read +@write +@scripting +@pubsub +@connection +time"
        server.client.execute_command("ACL", "SETUSER", "pushdemo", *rule.split())
        url = f"rediss://pushdemo:password@127.0.0.1:{port}/0?ssl_ca_certs={certificates / 'cert.pem'}"
        made = [Nodes(url, "pushdemo") for _ in range(2)]
        client = Client(made[1].room(1))
        made[0].room(1).publish("a")
        wait_until(lambda: client.topic.head > client.position, what="the message")
        assert client.read() == ["a"]
        client.leave()
        for each in made:
            each.close()
        assert not server.client.acl_log()
