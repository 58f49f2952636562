"""`json_yield` in several processes that share a Redis: four workers of gunicorn, and two nodes behind a balancer that
sends each request to the other one. A key has one generator, wherever its polls go.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.fixtureapps.shop.models import make_tables
from tests.redis.support import RedisServer, redis_server
from tests.support import PATIENCE, ROOT, Client, pserve, wait_until

pytestmark = pytest.mark.heavy

STEPS = 8


class Site:
    """The application at one port, whichever process answers; `log` is what its generators have noted."""

    def __init__(self, port: int, folder: Path, redis: RedisServer) -> None:
        self.port = port
        self.log = folder / "work.log"
        self.redis = redis

    def ask(self, query: str, method: str = "GET") -> tuple[int, Any]:
        """Status and answer of a request by a connection of its own."""
        with Client(self.port) as client:
            client.get(f"/work?{query}", "Connection: close", method=method)
            status, _, body = client.response()
        return status, json.loads(body) if body else None

    def poll(self, query: str) -> Any:
        """The answer of the process that has the session, to which one request of some goes."""

        def answer() -> Any:
            status, found = self.ask(query)
            if status == 421:
                assert found["state"] == "error"
                assert "another process" in found["reason"]
                return None
            assert status == 200, found
            return found

        return wait_until(answer, what="the process that has the session")

    def noted(self, word: str, key: str) -> list[str]:
        """The processes that have noted this of a key."""
        return re.findall(rf"^{word} {key} (\d+)$", self.log.read_text(), re.MULTILINE)

    @contextmanager
    def crowd(self) -> Iterator[None]:
        """Three clients that ask for a price at irregular times, so that any process may be the one that is free."""
        over = threading.Event()

        def ask() -> None:
            while not over.wait(random.uniform(0, 0.01)):
                self.price()

        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(ask) for _ in range(3)]
            try:
                yield
            finally:
                over.set()
        for client in clients:
            client.result()

    def price(self) -> int:
        with Client(self.port) as client:
            client.get("/items/bread", "Connection: close")
            price: int = json.loads(client.response()[2])["price"]
            return price


def settings(folder: Path, redis: RedisServer) -> dict[str, str]:
    return {
        "sqlalchemy.url": f"sqlite:///{folder}/shop.sqlite",
        "retry.attempts": "3",
        "shop.log": f"{folder}/work.log",
        "pushdemo.redis_url": redis.url,
    }


@contextmanager
def gunicorn(folder: Path, redis: RedisServer, stack: ExitStack) -> Iterator[int]:
    """Four workers, each with its own application."""
    pytest.importorskip("gunicorn", reason="gunicorn is missing: pip install gunicorn")
    engine = create_engine(settings(folder, redis)["sqlalchemy.url"])
    make_tables(engine)
    engine.dispose()
    (folder / "shop_of_four.py").write_text(
        f"from tests.fixtureapps import work\napplication = work.main({{}}, **{settings(folder, redis)!r})\n"
    )
    path = folder / "gunicorn.log"
    options = ["--workers=4", "--bind=127.0.0.1:0", f"--pythonpath={folder},{ROOT}", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", *options, "shop_of_four"]
    with path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        try:
            yield int(wait_until(lambda: address(process, path), what="gunicorn's address")[1])
        finally:
            process.terminate()


def address(process: subprocess.Popen[bytes], path: Path) -> re.Match[str] | None:
    assert process.poll() is None, path.read_text()
    return re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", path.read_text())


class Alternating:
    """A balancer: each connection goes to the next node."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    def _run(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            node = socket.create_connection(("127.0.0.1", self._ports[number % len(self._ports)]), PATIENCE)
            number += 1
            with client, node, suppress(OSError):
                node.sendall(client.recv(65_536))
                while data := node.recv(65_536):
                    client.sendall(data)


@contextmanager
def two_nodes(folder: Path, redis: RedisServer, stack: ExitStack) -> Iterator[int]:
    """Two nodes under our server, behind a balancer that alternates."""
    app = {"use": "call:tests.fixtureapps.work:main", **settings(folder, redis)}
    nodes = [stack.enter_context(pserve(folder, app)).port for _ in range(2)]
    balancer = Alternating(*nodes)
    stack.callback(balancer.close)
    yield balancer.port


@pytest.fixture(scope="module", params=[gunicorn, two_nodes], ids=["four workers", "two nodes"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder))
        port = stack.enter_context(request.param(folder, redis, stack))
        yield Site(port, folder, redis)


def test_polls_without_after_reach_one_generator(site: Site) -> None:
    answers = [site.poll("key=plain") for _ in range(STEPS)]
    assert [answer["content"]["number"] for answer in answers] == list(range(STEPS))
    assert len({answer["content"]["process"] for answer in answers}) == 1
    assert len(site.noted("begin", "plain")) == 1


def test_so_do_those_with_after_and_each_step_is_committed_once(site: Site) -> None:
    before = site.price()
    answers = [site.poll(f"key=exact&after={after}") for after in range(STEPS)]
    assert [answer["count"] for answer in answers] == list(range(1, STEPS + 1))
    assert len(site.noted("begin", "exact")) == 1
    assert site.price() == before + STEPS


def test_keys_are_spread_over_the_processes(site: Site) -> None:
    processes: set[int] = set()
    numbers = itertools.count()

    def spread() -> bool:
        processes.add(site.poll(f"key=spread-{next(numbers)}")["content"]["process"])
        return len(processes) > 1

    with site.crowd():
        wait_until(spread, what="a generator in another process")


def test_a_deletion_ends_the_work_wherever_it_runs(site: Site) -> None:
    for number in range(6):
        key = f"ended-{number}"
        site.poll(f"key={key}")
        assert site.ask(f"key={key}", "DELETE") == (204, None)
        wait_until(lambda key=key: site.noted("end", key) == site.noted("begin", key), what="the end of the work")


def test_a_stream_elsewhere_is_misdirected_too(site: Site) -> None:
    statuses: set[int] = set()
    numbers = itertools.count()

    def both() -> bool:
        key = f"streamed-{next(numbers)}"
        site.poll(f"key={key}")
        with Client(site.port) as client:
            last = "Last-Event-ID: 1"
            client.get(f"/work?key={key}", "Accept: text/event-stream", last, "Connection: close")
            statuses.add(client.head()[0])
        site.ask(f"key={key}", "DELETE")
        return len(statuses) > 1

    with site.crowd():
        wait_until(both, what="a stream in its process and one elsewhere")
    assert statuses == {200, 421}


def test_while_redis_is_away_each_process_goes_on(site: Site) -> None:
    site.poll("key=kept")
    assert shutil.which("redis-server")
    site.redis.kill()
    try:
        process = site.noted("begin", "kept")[0]

        def item() -> Any:
            status, answer = site.ask("key=kept&after=1")
            assert status in (200, 410, 421), answer
            return answer if status == 200 else None

        assert str(wait_until(item, what="the next item")["content"]["process"]) == process
    finally:
        site.redis.start()
