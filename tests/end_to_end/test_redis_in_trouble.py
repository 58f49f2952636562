"""All that may happen to a Redis and its connections, in any order, while three nodes publish: no gap and no repeat."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.topic import RedisTopic
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import PATIENCE, wait_until

SECONDS = 10.0
HISTORY = 100_000


def restart(server: RedisServer) -> None:
    server.kill()
    server.start()


def freeze(server: RedisServer) -> None:
    assert server.process
    seconds = random.choice([0.3, 1.2, 2.5])  # shorter and longer than what commands and silences may take
    thaw = threading.Timer(seconds, server.process.send_signal, [signal.SIGCONT])
    thaw.daemon = True
    server.process.send_signal(signal.SIGSTOP)
    thaw.start()


TROUBLE: list[Callable[[RedisServer], object]] = [
    RedisServer.kill_connections,
    lambda server: server.client.client_kill_filter(_type="pubsub", skipme=True),
    lambda server: server.client.client_kill_filter(_type="normal", skipme=True),
    lambda server: server.client.client_pause(random.choice([100, 700, 1500])),
    restart,
    freeze,
]


class Follower:
    """What a client of a topic is told, woken by nothing but the topic."""

    def __init__(self, topic: RedisTopic, news: threading.Event) -> None:
        self.told = threading.Event()
        self.heard: list[str] = []
        self._topic = topic
        self._position = 0
        topic.listen(lambda _: self.told.set())
        topic.listen(lambda _: news.set())

    def read(self) -> None:
        """Take what there is, if there is news."""
        if self.told.is_set():
            self.told.clear()
            news = entries(self._topic, self._position)
            self.heard += news
            self._position += len(news)


@pytest.mark.heavy
@pytest.mark.parametrize(("seed", "name"), [(1, "news"), (2, "orders.~ann")])
def test_every_node_tells_the_same_messages_in_one_order(tmp_path: Path, seed: int, name: str) -> None:
    random.seed(seed)
    with redis_server(tmp_path, durable=True) as server:
        nodes = [Node(server.url, space) for space in [namespace()] * 3]
        topics = [node.topic(name, history=HISTORY) for node in nodes]
        for node in nodes:
            node.start(listening=True)
        news = threading.Event()
        followers = [Follower(topic, news) for topic in topics]
        taken: list[str] = []  # by Redis, as far as it has said so
        stop = threading.Event()

        def publish(number: int, topic: RedisTopic) -> None:
            count = 0
            while not stop.wait(0.002):
                with suppress(RedisUnavailableError):
                    if count % 30 == 29:
                        topic.notify("failing")
                    taken.append(topic.publish(f"{number}.{count}").body.decode())
                count += 1

        def begin(topic: RedisTopic, other: RedisTopic) -> None:
            while not stop.wait(0.03):
                topic.begin(f"{other.epoch}-{other.number}")

        threads = [threading.Thread(target=publish, args=each) for each in enumerate(topics)]
        threads += [threading.Thread(target=begin, args=(topics[n - 1], topics[n])) for n in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            random.choice(TROUBLE)(server)
            pause = time.monotonic() + random.uniform(0.05, 1.2)
            while news.wait(max(0.0, pause - time.monotonic())) and time.monotonic() < pause:
                news.clear()
                for follower in followers:
                    follower.read()
        stop.set()
        server.client.client_unpause()
        for thread in threads:
            thread.join(PATIENCE)

        def settled() -> bool:
            for follower in followers:
                follower.read()
            return bool(len({topic.known()[2:] for topic in topics}) == 1) and not any(
                f.told.is_set() for f in followers
            )

        wait_until(settled, what="the same state on every node")
        first, *others = (follower.heard for follower in followers)
        assert all(other == first for other in others)
        messages = [entry for entry in first if not entry.startswith("(")]
        assert len(set(messages)) == len(messages), "none is told twice"
        assert set(first) - set(messages) == {"(failing)"}, "no reset, no gap"
        assert set(taken) <= set(messages)
        for node in nodes:
            node.close()
