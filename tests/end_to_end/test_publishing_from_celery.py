"""docs/publishing.md, "From another process": a Celery worker publishes, and a client of a server is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readers import Reader
from tests.redis.support import RedisServer, redis_server
from tests.support import PATIENCE, ROOT, Pserve, pserve, wait_until

pytestmark = pytest.mark.heavy


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, redis: RedisServer) -> Iterator[Pserve]:
    ini = {"use": "call:tests.fixtureapps.orders:main", "pushdemo.redis_url": redis.url, "pushdemo.heartbeat": 0.5}
    with pserve(tmp_path, ini) as node:
        yield node


@pytest.fixture
def worker(tmp_path: Path, redis: RedisServer) -> Iterator[dict[str, str]]:
    """A worker of the documents' tasks, in processes of its own; yields the environment of who calls them."""
    document = (ROOT / "docs/publishing.md").read_text(encoding="utf-8")
    code = re.search(r"\*\*tasks\.py\*\*\n\n```python\n(.*?)```", document, re.DOTALL)
    assert code
    (tmp_path / "tasks.py").write_text(code[1])
    environment = os.environ | {"REDIS_URL": redis.url, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONWARNINGS": "ignore"}
    log = tmp_path / "celery.log"
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "INFO"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: "ready." in log.read_text() or process.poll(), 2 * PATIENCE, "the worker")
        assert process.poll() is None, log.read_text()
        yield environment
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_task_reaches_the_clients_of_a_node(node: Pserve, worker: dict[str, str], tmp_path: Path) -> None:
    with Reader(node.port, "sse", "/orders/ann") as reader:
        reader.next(heartbeats=True)  # the stream has begun
        call = "from tasks import ship; ship.delay(5, 'ann'); ship.delay(6, 'bob'); ship.delay(7, 'ann')"
        subprocess.run([sys.executable, "-c", call], cwd=tmp_path, env=worker, check=True)
        told = [reader.next().content for _ in range(2)]
    assert sorted(told) == ['{"id":5,"state":"shipped"}', '{"id":7,"state":"shipped"}']
