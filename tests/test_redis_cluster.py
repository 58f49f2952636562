"""Nodes as users run them, each a `pserve`, at a real redis-server: what every client is told while things go wrong."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import cycle, pairwise
from pathlib import Path

import pytest

from tests.readers import Event, Reader
from tests.redis_support import RedisServer, redis_server
from tests.support import PATIENCE, Client, Pserve, pserve, wait_until

STREAM = "/server/index"
LEADS = "this node makes the messages of topic server"
NODES = {"pushdemo.interval": 0.1, "pushdemo.heartbeat": 0.3, "pushdemo.longpoll.timeout": 1}


class Follower:
    """A client in a thread of its own. When its connection ends it comes back, to the next port, with its last id."""

    def __init__(self, transport: str, *ports: int) -> None:
        self.events: list[Event] = []  # the thread appends
        self.came: list[float] = []  # when each came
        self._ports = cycle(ports)
        self._transport = transport
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def messages(self) -> int:
        return sum(event.kind == "message" for event in self.events)

    def grow(self, by: int = 5) -> None:
        """Wait for so many messages more."""
        before = self.messages
        wait_until(lambda: self.messages >= before + by or self._error, 2 * PATIENCE, "messages")

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2 * PATIENCE)
        if self._error:
            raise self._error

    def _run(self) -> None:
        last = None
        try:
            while not self._stopped.is_set():
                reader = Reader(next(self._ports), self._transport, STREAM, last=last)
                with reader, suppress(OSError, EOFError):
                    self._follow(reader)
                last = reader.last
                self._stopped.wait(0.02)
        except BaseException as error:
            self._error = error

    def _follow(self, reader: Reader) -> None:
        while not self._stopped.is_set():
            event = reader.next(heartbeats=True)
            if event.kind in ("message", "reset"):
                self.events.append(event)
                self.came.append(time.monotonic())
            elif event.kind == "retry":  # the server goes; a proxy may well leave the connection open
                return

    def check(self, *, resets: bool) -> None:
        """Fails for a gap or a repeat that no reset has announced, and for a reset where there was no need."""
        before: tuple[str, int] | None = None
        for event in self.events:
            if event.kind == "reset":
                assert resets, self.told
                before = None
                continue
            epoch, _, number = event.id.partition("-")
            if before:
                assert (epoch, int(number)) == (before[0], before[1] + 1), self.told
            before = epoch, int(number)

    @property
    def told(self) -> list[str]:
        return [event.id or event.kind for event in self.events]


class Cluster:
    """Three nodes and a client of each, by another transport each."""

    def __init__(self, redis: RedisServer, nodes: list[Pserve]) -> None:
        self.redis = redis
        self.nodes = nodes
        ports = [node.port for node in nodes]
        # Whose node goes is sent to the next one, as a balancer does.
        self.followers = [
            Follower(transport, *ports[number:], *ports[:number])
            for number, transport in enumerate(("sse", "multipart", "longpoll"))
        ]
        for follower in self.followers:
            follower.grow()

    @property
    def leader(self) -> Pserve:
        """The node that makes the messages."""
        return max(self.nodes, key=lambda node: _last_line(node, LEADS))

    def stop(self) -> None:
        for follower in self.followers:
            follower.stop()


def _last_line(node: Pserve, text: str) -> str:
    """When a node has last said this, as its log has it."""
    lines = [line for line in node.log.splitlines() if text in line]
    return lines[-1].partition(" [")[0] if lines else ""


@pytest.fixture(params=[True], ids=["durable"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path, durable=request.param))
        ini = NODES | {"pushdemo.redis_url": redis.url}
        nodes = [stack.enter_context(pserve(tmp_path, ini)) for _ in range(3)]
        made = Cluster(redis, nodes)
        yield made
        for node in nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
        made.stop()


def kill_the_leader(cluster: Cluster) -> None:
    cluster.leader.stop(signal.SIGKILL)


def pause_the_leader(cluster: Cluster) -> None:
    leader = cluster.leader
    others = [node for node in cluster.nodes if node is not leader]
    before = [_last_line(node, LEADS) for node in others]
    leader.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: [_last_line(node, LEADS) for node in others] != before, what="another leader")
    leader.process.send_signal(signal.SIGCONT)
    wait_until(lambda: _last_line(leader, "another node may make"), what="the old leader's resignation")


def restart_redis(cluster: Cluster) -> None:
    cluster.redis.kill()
    cluster.redis.start()


def kill_the_connections(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.redis.client.client_kill_filter(_type="normal", skipme=True)
        cluster.followers[0].grow(2)


def have_redis_sleep(cluster: Cluster) -> None:
    cluster.redis.client.execute_command("DEBUG", "SLEEP", "4")


def flush(cluster: Cluster) -> None:
    cluster.redis.client.flushall()


@pytest.mark.parametrize(
    "harm", [kill_the_leader, pause_the_leader, restart_redis, kill_the_connections, have_redis_sleep]
)
def test_no_client_misses_a_message_or_is_told_one_twice(cluster: Cluster, harm: Callable[[Cluster], None]) -> None:
    harm(cluster)
    for follower in cluster.followers:
        follower.grow(10)
    cluster.stop()
    for follower in cluster.followers:
        follower.check(resets=False)


def test_a_new_life_of_the_topic_is_told_as_a_reset(cluster: Cluster) -> None:
    flush(cluster)
    for follower in cluster.followers:
        wait_until(lambda each=follower: "reset" in each.told, what="the reset")  # type: ignore[misc]
        follower.grow(10)
    cluster.stop()
    for follower in cluster.followers:
        follower.check(resets=True)
        assert follower.told.count("reset") == 1


@pytest.mark.parametrize("cluster", [False], ids=["forgetful"], indirect=True)
def test_a_redis_that_comes_back_without_its_data_is_told_as_a_reset(cluster: Cluster) -> None:
    restart_redis(cluster)
    for follower in cluster.followers:
        wait_until(lambda each=follower: "reset" in each.told, what="the reset")  # type: ignore[misc]
        follower.grow(10)
    cluster.stop()
    for follower in cluster.followers:
        follower.check(resets=True)


def test_another_node_takes_over_within_3_seconds(cluster: Cluster) -> None:
    leader = cluster.leader
    other = next(each for each, node in zip(cluster.followers, cluster.nodes, strict=True) if node is not leader)
    leader.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    other.grow(10)
    cluster.stop()
    came = [moment for moment in other.came if moment > killed - 0.5]
    silence = max(later - earlier for earlier, later in pairwise(came))
    assert silence < 3


def test_every_client_is_told_again_within_5_seconds_of_redis_return(cluster: Cluster) -> None:
    """Long enough away that every node has met the trouble more than once, and pauses between its attempts."""
    cluster.redis.kill()
    for port in (node.port for node in cluster.nodes):
        wait_until(lambda port=port: get(port, "/health/ready")[0] == 503, what="the trouble")  # type: ignore[misc]
    wait_until(lambda: time.monotonic() - max(each.came[-1] for each in cluster.followers) > 3, what="a long silence")
    before = [follower.messages for follower in cluster.followers]
    cluster.redis.start()
    returned = time.monotonic()
    for follower in cluster.followers:
        follower.grow(10)
    cluster.stop()
    for follower, told in zip(cluster.followers, before, strict=True):
        messages = [at for event, at in zip(follower.events, follower.came, strict=True) if event.kind == "message"]
        assert messages[told] - returned < 5
        follower.check(resets=False)


def test_the_value_is_computed_once_for_all_nodes(cluster: Cluster) -> None:
    """The demo's messages are memorized for 15 s: on every node the same text, whichever made it first."""
    for follower in cluster.followers:
        follower.grow()
    texts = [{event.content for event in follower.events[-5:]} for follower in cluster.followers]
    found = [re.sub("<[^>]*>", "", text) for seen in texts for text in seen]
    assert len(set(found)) <= 2, "one, or two where the 15 s have just passed"


def get(port: int, path: str) -> tuple[int, bytes]:
    with Client(port) as client:
        status, _, body = client.get(path).response()
    return status, body


def test_health_tells_of_redis_and_pages_go_on(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        redis.kill()
        with pserve(tmp_path, {"pushdemo.redis_url": redis.url.replace("//", "//user:swordfish@")}) as node:
            assert get(node.port, "/health/live") == (200, b'{"live": true}')
            status, body = get(node.port, "/health/ready")
            assert status == 503
            assert b"Redis is not reachable" in body
            assert b"swordfish" not in body
            page = get(node.port, "/status")[1]
            assert b"shares with others cannot be reached" in page
            assert b'id="trouble" role="status">' in page, "it is not hidden"
            assert b"swordfish" not in page
            assert b"\npushdemo_ready 0.0\n" in get(node.port, "/metrics")[1]
            assert get(node.port, "/")[0] == 200
            assert node.log.count("is not reachable") == 1
            assert "swordfish" not in node.log
        with pserve(tmp_path, {"pushdemo.redis_url": redis.url}) as node:
            redis.start()
            wait_until(lambda: get(node.port, "/health/ready") == (200, b'{"ready": true}'), 5 + PATIENCE, "Redis")
            assert node.log.count(f"127.0.0.1:{redis.port} is back") == 1


def test_without_redis_a_node_is_ready(tmp_path: Path) -> None:
    with pserve(tmp_path) as node:
        assert get(node.port, "/health/ready") == (200, b'{"ready": true}')
        assert b"\npushdemo_ready 1.0\n" in get(node.port, "/metrics")[1]


def test_a_session_of_another_node_is_410(tmp_path: Path) -> None:
    with pserve(tmp_path) as one, pserve(tmp_path) as other:
        assert get(one.port, "/prime?key=K&after=0")[0] == 200
        status, body = get(other.port, "/prime?key=K&after=1")
        assert status == 410
        assert b"lives in another process" in body
        assert get(one.port, "/prime?key=K&after=1")[0] == 200
