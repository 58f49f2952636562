"""Nodes as users run them, each a `pserve`, at a real redis-server: what every client is told while things go wrong."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import cycle, pairwise
from pathlib import Path

import pytest
from webtest import TestApp

from pushdemo.demo import main
from tests.readers import Event, Reader
from tests.redis.support import redis_server
from tests.support import PATIENCE, Client, Pserve, pserve, wait_until

pytestmark = pytest.mark.heavy

STREAM = "/server/index"
LEADS = "this node makes the messages of topic server"
RESIGNS = "another node may make the messages of topic server"
MEMORIZED = "datetime_string"
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

    def reach(self, messages: int) -> None:
        """Wait for so many messages."""
        wait_until(lambda: self.messages >= messages or self._error, 2 * PATIENCE, "messages")

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


def grow(followers: Sequence[Follower], by: int = 5) -> None:
    """Wait for so many messages more, for each of them."""
    goals = [follower.messages + by for follower in followers]
    for follower, goal in zip(followers, goals, strict=True):
        follower.reach(goal)


class Nodes:
    """Three nodes at one Redis, for all tests here: what a test has stopped is started anew before the next."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.redis = stack.enter_context(redis_server(folder, durable=True))
        self.running = [self._start() for _ in range(3)]

    def _start(self, port: int = 0) -> Pserve:
        ini = NODES | {"pushdemo.redis_url": self.redis.url, f"pushdemo.memorize.{MEMORIZED}.duration": 3600}
        return self._stack.enter_context(pserve(self._folder, ini, port=port))

    def mend(self) -> None:
        assert self.redis.process
        if self.redis.process.poll() is not None:
            self.redis.start()
        for number, node in enumerate(self.running):
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
            else:
                self.running[number] = self._start(node.port)


class Cluster:
    """The nodes, and a client of each, by another transport each."""

    def __init__(self, nodes: Nodes) -> None:
        self.redis = nodes.redis
        self.nodes = list(nodes.running)
        ports = [node.port for node in self.nodes]
        # Whose node goes is sent to the next one, as a balancer does.
        self.followers = [
            Follower(transport, *ports[number:], *ports[:number])
            for number, transport in enumerate(("sse", "multipart", "longpoll"))
        ]
        grow(self.followers, 3)

    @property
    def leader(self) -> Pserve:
        """The node that makes the messages."""
        return max(self.nodes, key=lambda node: _last_line(node, LEADS))

    def follower_elsewhere(self) -> Follower:
        """A client of a node that does not make the messages."""
        leader = self.leader
        return next(each for each, node in zip(self.followers, self.nodes, strict=True) if node is not leader)

    def stop(self) -> None:
        for follower in self.followers:
            follower.stop()


def _last_line(node: Pserve, text: str) -> str:
    """When a node has last said this, as its log has it."""
    lines = [line for line in node.log.splitlines() if text in line]
    return lines[-1].partition(" [")[0] if lines else ""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    nodes.mend()
    made = Cluster(nodes)
    yield made
    nodes.mend()  # else its clients would wait for what is suspended
    made.stop()


def test_another_node_takes_over_from_one_that_is_killed_within_3_seconds_and_with_its_values(cluster: Cluster) -> None:
    other = cluster.follower_elsewhere()
    cluster.leader.stop(signal.SIGKILL)
    killed = time.monotonic()
    grow(cluster.followers)
    cluster.stop()
    came = [moment for moment in other.came if moment > killed - 0.5]
    silence = max(later - earlier for earlier, later in pairwise(came))
    assert silence < 3
    for follower in cluster.followers:
        follower.check(resets=False)
    texts = {re.search('gathered="([^"]*)"', event.content)[1] for event in other.events}  # type: ignore[index]
    assert len(texts) == 1, "memorized by the first, and not computed again by the second"


def pause_the_leader(cluster: Cluster) -> None:
    leader = cluster.leader
    others = [node for node in cluster.nodes if node is not leader]
    before = [_last_line(node, LEADS) for node in others]
    leader.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: [_last_line(node, LEADS) for node in others] != before, what="another leader")
    leader.process.send_signal(signal.SIGCONT)
    wait_until(lambda: _last_line(leader, RESIGNS) > max(before), what="the old leader's resignation")


def kill_the_connections(cluster: Cluster) -> None:
    for _ in range(5):
        cluster.redis.kill_connections()
        grow(cluster.followers[:1], 2)


def restart_redis(cluster: Cluster) -> None:
    cluster.redis.kill()
    cluster.redis.start()


def have_redis_sleep(cluster: Cluster) -> None:
    cluster.redis.client.execute_command("DEBUG", "SLEEP", "4")


@pytest.mark.parametrize(
    "harm",
    [pause_the_leader, restart_redis, kill_the_connections, have_redis_sleep],
)
def test_no_client_misses_a_message_or_is_told_one_twice(cluster: Cluster, harm: Callable[[Cluster], None]) -> None:
    harm(cluster)
    grow(cluster.followers)
    cluster.stop()
    for follower in cluster.followers:
        follower.check(resets=False)


def test_every_client_is_told_again_within_5_seconds_of_redis_return(cluster: Cluster) -> None:
    """Long enough away that every node has met the trouble more than once, and pauses between its attempts."""
    cluster.redis.kill()
    for port in (node.port for node in cluster.nodes):
        wait_until(lambda port=port: get(port, "/health/ready")[0] == 503, what="the trouble")  # type: ignore[misc]
    wait_until(lambda: time.monotonic() - max(each.came[-1] for each in cluster.followers) > 1.5, what="a long silence")
    before = [follower.messages for follower in cluster.followers]
    cluster.redis.start()
    returned = time.monotonic()
    grow(cluster.followers)
    cluster.stop()
    for follower, told in zip(cluster.followers, before, strict=True):
        messages = [at for event, at in zip(follower.events, follower.came, strict=True) if event.kind == "message"]
        assert messages[told] - returned < 5
        follower.check(resets=False)


def flush(cluster: Cluster) -> None:
    cluster.redis.client.flushall()


def restart_redis_without_its_data(cluster: Cluster) -> None:
    cluster.redis.kill()
    shutil.rmtree(cluster.redis.folder / "appendonlydir")
    cluster.redis.start()


@pytest.mark.parametrize("harm", [flush, restart_redis_without_its_data])
def test_a_new_life_of_the_topic_is_told_as_one_reset(cluster: Cluster, harm: Callable[[Cluster], None]) -> None:
    harm(cluster)
    for follower in cluster.followers:
        wait_until(lambda each=follower: "reset" in each.told, what="the reset")  # type: ignore[misc]
    grow(cluster.followers)
    cluster.stop()
    for follower in cluster.followers:
        follower.check(resets=True)
        assert follower.told.count("reset") == 1


def test_a_session_of_another_node_is_421(nodes: Nodes) -> None:
    one, other, _ = nodes.running
    assert get(one.port, "/prime?key=K&after=0")[0] == 200
    status, body = get(other.port, "/prime?key=K&after=1")
    assert status == 421
    assert b"lives in another process" in body
    assert get(one.port, "/prime?key=K&after=1")[0] == 200


def get(port: int, path: str) -> tuple[int, bytes]:
    with Client(port) as client:
        status, _, body = client.get(path).response()
    return status, body


def test_health_tells_of_redis_and_pages_go_on(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        redis.kill()
        url = redis.url.replace("//", "//default:swordfish@")  # the default user takes any password
        with pserve(tmp_path, {"pushdemo.redis_url": url}) as node:
            assert get(node.port, "/health/live") == (200, b'{"live": true}')
            status, body = get(node.port, "/health/ready")
            assert status == 503
            assert b"Redis is not reachable" in body
            page = get(node.port, "/status")[1]
            assert b"Nodes cannot share what is published: " in page
            assert b'id="trouble" role="status">' in page, "it is not hidden"
            assert b"\npushdemo_ready 0.0\n" in get(node.port, "/metrics")[1]
            assert get(node.port, "/")[0] == 200
            assert node.log.count("is not reachable") == 1
            redis.start()
            wait_until(lambda: get(node.port, "/health/ready") == (200, b'{"ready": true}'), 5 + PATIENCE, "Redis")
            assert node.log.count(f"127.0.0.1:{redis.port} is back") == 1
            assert b"swordfish" not in body + page + node.log.encode()


def test_without_redis_a_node_is_ready() -> None:
    app = TestApp(main({}))
    assert app.get("/health/ready").json == {"ready": True}
    assert "\npushdemo_ready 1.0\n" in app.get("/metrics").text


def test_the_pages_of_generators_say_how_a_balancer_keeps_a_key_on_its_node() -> None:
    app = TestApp(main({}))
    for page in ("/primes", "/document", "/job"):
        assert "let the balancer choose the process by <code>key</code>" in app.get(page).text
