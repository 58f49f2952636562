"""A Redis that is no master any more: behind HAProxy, which checks roles, and behind Sentinel, with their programs."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis

from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.topic import RedisTopic
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import PATIENCE, SOON, free_port, require, wait_until

require(shutil.which("haproxy"), "haproxy", "haproxy")
require(shutil.which("redis-sentinel"), "redis-sentinel", "redis-sentinel")


HAPROXY = """
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend redis
    bind 127.0.0.1:{port}
    default_backend masters
backend masters
    option tcp-check
    tcp-check connect
    tcp-check send info\\ replication\\r\\n
    tcp-check expect string role:master
    default-server inter 100ms fall 1 rise 1
    server one 127.0.0.1:{one} check
    server two 127.0.0.1:{two} check
"""

SENTINEL = """
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor mymaster 127.0.0.1 {master} 1
sentinel down-after-milliseconds mymaster 500
sentinel failover-timeout mymaster 2000
"""


class Pair:
    """A master and its replica, which change places."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        self.master = stack.enter_context(redis_server(folder / "one", "--repl-diskless-sync-delay", "0"))
        self.replica = stack.enter_context(
            redis_server(
                folder / "two", "--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-sync-delay", "0"
            )
        )
        wait_until(lambda: role(self.replica) == ("slave", "up"), what="the replica")

    def change_places(self) -> None:
        """FAILOVER: the replica has everything, and is the master then."""
        self.master.client.execute_command("FAILOVER")
        wait_until(lambda: role(self.replica)[0] == "master", what="the new master")
        self.master, self.replica = self.replica, self.master


def role(server: RedisServer) -> tuple[str, str]:
    with suppress(redis.RedisError):
        info = server.client.info("replication")
        return info["role"], info.get("master_link_status", "")
    return "", ""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path, stack)


@contextmanager
def running(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture
def proxied(pair: Pair, tmp_path: Path) -> Iterator[str]:
    """The URL of HAProxy in front of the master."""
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, one=pair.master.port, two=pair.replica.port))
    url = f"redis://127.0.0.1:{port}/0"
    with running("haproxy", "-f", str(config)):
        client = redis.Redis(port=port)
        wait_until(lambda: answers(client), what="HAProxy")
        client.close()
        yield url


@pytest.fixture
def watched(pair: Pair, tmp_path: Path) -> Iterator[str]:
    """The URL of a Sentinel that watches the master."""
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(SENTINEL.format(port=port, folder=tmp_path, master=pair.master.port))
    with running("redis-sentinel", str(config)), redis.Redis(port=port, decode_responses=True) as client:
        wait_until(lambda: answers(client) and client.sentinel_slaves("mymaster"), what="the Sentinel")
        yield f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/mymaster/0"


def answers(client: redis.Redis) -> bool:
    with suppress(redis.RedisError):
        return bool(client.ping())
    return False


class Publisher:
    """Publishes one message after the other in a thread, and notes which ones Redis has taken, and when."""

    def __init__(self, topic: RedisTopic) -> None:
        self.taken: list[tuple[float, float, str]] = []  # when a call began, when it was over, what it published
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            number += 1
            began = time.monotonic()
            with suppress(RedisUnavailableError):
                self._topic.publish(f"{number}")
                self.taken.append((began, time.monotonic(), f"{number}"))

    def since(self, moment: float) -> list[str]:
        """What was taken by calls that began after that moment."""
        return [text for began, _, text in self.taken if began > moment]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


class Client:
    """What a client of a topic is told, who is never behind."""

    def __init__(self, topic: RedisTopic) -> None:
        self.topic = topic
        self.told: list[str] = []
        self._position = 0
        topic.listen(self._read)

    def _read(self, topic: object) -> None:
        news = entries(self.topic, self._position)
        self.told += news
        self._position = self.topic.head


@contextmanager
def nodes(url: str) -> Iterator[tuple[Publisher, Client]]:
    """Two nodes with a client each: what publishes on the one, and the client of the other."""
    made = [Node(url, space) for space in [namespace()] * 2]
    for node in made:
        node.topic(history=100_000)
        node.start(listening=True)
    client = Client(made[1].topics["news"])
    publisher = Publisher(made[0].topics["news"])
    try:
        wait_until(lambda: len(publisher.taken) > 20, what="messages")
        yield publisher, client
    finally:
        publisher.stop()
        for node in made:
            node.close()


def check(publisher: Publisher, client: Client, elected: float) -> None:
    """Messages are taken soon after the election; all of those arrive, none twice."""
    wait_until(lambda: len(publisher.since(elected)) > 50, what="messages after the election")
    first = next(over for began, over, _ in publisher.taken if began > elected)
    publisher.stop()
    taken = publisher.since(elected)
    wait_until(lambda: taken[-1] in client.told, what="the last message")
    told = [entry for entry in client.told if not entry.startswith("(")]
    assert len(told) == len(set(told)), "none is repeated"
    assert set(taken) <= set(told), "none of those acknowledged after the election is lost"
    assert first - elected < SOON


@pytest.mark.heavy
def test_behind_a_proxy_that_checks_roles_a_node_goes_on_at_the_new_master(pair: Pair, proxied: str) -> None:
    with nodes(proxied) as (publisher, client):
        for _ in range(2):
            pair.change_places()
            elected = time.monotonic()
            wait_until(lambda elected=elected: len(publisher.since(elected)) > 50, what="messages")  # type: ignore[misc]
        check(publisher, client, elected)
        assert not client.topic._link.trouble
        assert "(reset)" not in client.told, "FAILOVER loses nothing"


@pytest.mark.heavy
def test_a_master_that_is_demoted_by_replicaof_is_left_at_once(pair: Pair, proxied: str) -> None:
    with nodes(proxied) as (publisher, client):
        pair.replica.client.execute_command("REPLICAOF", "NO", "ONE")
        pair.master.client.execute_command("REPLICAOF", "127.0.0.1", str(pair.replica.port))
        check(publisher, client, time.monotonic())
        assert not client.topic._link.trouble


@pytest.mark.heavy
def test_behind_sentinel_a_node_goes_on_at_the_new_master(pair: Pair, watched: str) -> None:
    with nodes(watched) as (publisher, client):
        sentinel = redis.Redis(port=int(watched.partition("/mymaster")[0].rpartition(":")[2]))
        pair.master.kill()
        elected = pair.replica.port  # as far as anybody can know: the Sentinel tells clients of it a while after
        wait_until(lambda: sentinel.sentinel_get_master_addr_by_name("mymaster")[1] == elected, what="the new master")
        check(publisher, client, time.monotonic())
        sentinel.close()


@pytest.mark.heavy
def test_a_node_whose_redis_is_a_replica_says_that_every_write_is_refused(pair: Pair) -> None:
    node = Node(pair.replica.url, namespace())
    node.topic()
    node.start()
    assert wait_until(lambda: node.backend.trouble, what="the trouble").startswith(
        "Redis refuses every write: ReadOnly"
    )
    with pytest.raises(RedisUnavailableError, match="refuses"):
        node.topics["news"].publish("a")
    pair.replica.client.execute_command("REPLICAOF", "NO", "ONE")
    wait_until(lambda: not node.backend.trouble, what="the end of the trouble")
    assert node.topics["news"].publish("a")
