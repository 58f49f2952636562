"""A page that is rendered from the database and follows a topic shows at the end what the database has.

Another node commits changes 50 times a second meanwhile; the page's node is restarted again and again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.readers import Reader
from tests.redis.support import redis_server
from tests.support import PATIENCE, Pserve, pserve, wait_until

pytestmark = pytest.mark.heavy

RATE = 50  # commits a second


class Shop:
    """Two nodes at one database and one Redis: one serves pages, the other commits."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        redis = stack.enter_context(redis_server(folder))
        self._folder = folder
        self._ini = {
            "use": "call:tests.fixtureapps.shop.live:main",
            "sqlalchemy.url": f"sqlite:///{folder / 'shop.sqlite'}",
            "retry.attempts": "9",
            "pushdemo.redis_url": redis.url,
            "pushdemo.heartbeat": "1",
        }
        self.writer = stack.enter_context(self.node())
        self._stopped = threading.Event()
        self.commits = 0

    def node(self, port: int = 0) -> Any:
        return pserve(self._folder, self._ini, port=port)

    @contextmanager
    def committing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._commit)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(PATIENCE)

    def _commit(self) -> None:
        while not self._stopped.wait(1 / RATE):
            answer = ask(self.writer, f"/change?name=item-{self.commits}")
            assert answer == {}, answer
            self.commits += 1


def ask(node: Pserve, path: str) -> Any:
    connection = HTTPConnection("127.0.0.1", node.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


class Page:
    """What push.js and fifteen lines of script make of it: the page's rows, and the newer ones of the stream."""

    def __init__(self, node: Pserve) -> None:
        self.rows: dict[str, int] = {}
        self.node = node
        self.reader: Reader | None = None
        self.load()

    def load(self) -> None:
        page = ask(self.node, "/page")
        self.rows = page["items"]
        self.connect(page["last_event_id"])

    def connect(self, last: str | None) -> None:
        if self.reader:
            self.reader.leave()
        self.reader = Reader(self.node.port, "sse", "/stream", last=last).start()

    def take(self) -> None:
        """One event of the stream; a stream that ends is connected again, and a reset loads the page anew."""
        assert self.reader
        try:
            event = self.reader.next(heartbeats=True)
        except (OSError, EOFError):
            event = None
        if event is None or event.kind == "retry":
            with suppress(OSError):
                self.connect(self.reader.last)
        elif event.kind == "reset":
            self.load()
        elif event.kind == "message":
            row = json.loads(event.content)
            if row["version"] > self.rows.get(str(row["id"]), 0):
                self.rows[str(row["id"])] = row["version"]

    def reach(self, rows: dict[str, int]) -> None:
        """Follow until the page shows this; fails where it never does."""
        end = time.monotonic() + PATIENCE
        while self.rows != rows:
            assert time.monotonic() < end, (self.rows, rows)
            self.take()

    def leave(self) -> None:
        if self.reader:
            self.reader.leave()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with ExitStack() as stack:
        yield Shop(tmp_path, stack)


def test_two_hundred_reloads_show_what_the_database_has(shop: Shop) -> None:
    with shop.node() as node:
        with shop.committing():
            pages = list[Page]()
            for number in range(200):
                wait_until(lambda number=number: 2 * shop.commits > number, what="commits between the reloads")
                pages.append(Page(node))
        rows = ask(shop.writer, "/page")["items"]
        assert len(rows) == 3 + shop.commits
        for page in pages:
            page.reach(rows)
            page.leave()


def test_twenty_restarts_of_the_pages_node_leave_it_exact(shop: Shop) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(shop.node())
        page = Page(node)
        with shop.committing():
            for _ in range(20):
                before = len(page.rows)
                assert node.stop() == 0
                page.node = node = stack.enter_context(shop.node(node.port))
                wait_until(lambda page=page, before=before: page.take() or len(page.rows) > before)
        page.reach(ask(shop.writer, "/page")["items"])
        page.leave()
