"""A real redis-server for the tests, on a free port, and nodes that share it: in this process, or each a `pserve`."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from tests.support import PATIENCE, free_port, require, wait_until

require(shutil.which("redis-server"), "redis-server", "redis-server")

import redis  # noqa: E402

from pushdemo.redis.backend import RedisBackend  # noqa: E402
from pushdemo.redis.topic import RedisTopic  # noqa: E402

_names = count()


class RedisServer:
    """A redis-server of the test's own; with `durable`, what it was told outlives it."""

    def __init__(self, folder: Path, *options: str, durable: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = [*options, "--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, socket_timeout=PATIENCE)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--save", "", "--enable-debug-command", "yes", *self.options],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, what="redis-server")

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def kill_connections(self) -> None:
        """All but that of `client`."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)

    def stop(self) -> None:
        """End it, however it is."""
        assert self.process
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(PATIENCE)

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, "redis-server ended"
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


@contextmanager
def redis_server(folder: Path, *options: str, durable: bool = False) -> Iterator[RedisServer]:
    """A running redis-server."""
    server = RedisServer(folder, *options, durable=durable)
    try:
        yield server
    finally:
        server.stop()


def namespace() -> str:
    """One that no other test uses."""
    return f"test-{next(_names)}"


class Node:
    """A node within this process: a backend of its own, with the topics that a test asks it for."""

    open: ClassVar[list[Node]] = []  # that nobody has closed yet

    def __init__(self, url: str, space: str, **options: Any) -> None:
        self.backend = RedisBackend(url, space, **options)
        self.topics: dict[str, RedisTopic] = {}
        self.open.append(self)

    def topic(self, name: str = "news", history: int = 100) -> RedisTopic:
        made_at_run_time = {"pattern": "orders.{user}", "lifetime": 60.0} if "~" in name else {}
        topic = self.topics[name] = self.backend.topic(
            name, content_type="text/plain", history=history, **made_at_run_time
        )
        return topic

    def start(self, *, listening: bool = False) -> Node:
        """Begin; `listening` is with a client of each topic, and news arriving."""
        self.backend.start(self.topics.values())
        if listening:
            for topic in self.topics.values():
                topic.join()
            wait_until(lambda: self.backend.trouble or all(topic.current for topic in self.topics.values()))
        return self

    def close(self) -> None:
        if self in self.open:
            self.open.remove(self)
        for topic in self.topics.values():
            topic.close()
        self.backend.close()


def entries(topic: RedisTopic, position: int = 0) -> list[Any]:
    """What a cursor at `position` is given: bodies' text, and the kinds of what has none; "(gap)" before a jump."""
    found = []
    while True:
        message, gap = topic.following(position)
        if message is None:
            return found
        if gap:
            found.append("(gap)")
        found.append(message.body.decode() if message.kind == "message" else f"({message.kind})")
        position = message.position
