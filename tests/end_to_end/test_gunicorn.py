"""deploy/gunicorn.conf.py, by each kind of worker: streams are live, bounded, and end when the server stops."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.test_proxies import get
from tests.readers import Reader
from tests.support import PATIENCE, ROOT, Client, wait_until, write_ini

pytestmark = pytest.mark.heavy

STREAM = "/server/index"
WORKERS = ("sync", "gthread", "gevent")
THREADS = 4
STOPPED = 4.0  # seconds after SIGTERM, on a busy machine; without the hook it takes graceful_timeout, 30 s by default


class Gunicorn(NamedTuple):
    """A running gunicorn."""

    process: subprocess.Popen[bytes]
    port: int


@contextmanager
def gunicorn(tmp_path: Path, worker: str, max_threads: int) -> Iterator[Gunicorn]:
    for package in ("gunicorn", "gevent"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install {package}")
    app = {"pushdemo.interval": 0.1, "pushdemo.heartbeat": 1, "pushdemo.max_threads": max_threads}
    ini = write_ini(tmp_path, app)
    path = tmp_path / "gunicorn.log"
    options = f"--worker-class={worker} --threads={THREADS if worker == 'gthread' else 1} --bind=127.0.0.1:0".split()
    configuration = ["--config", str(ROOT / "deploy" / "gunicorn.conf.py"), "--graceful-timeout=30"]
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *configuration, *options, "--paste", str(ini)]
    with path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT) as process:

        def address() -> re.Match[str] | None:
            assert process.poll() is None, path.read_text()
            return re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", path.read_text())

        try:
            port = int(wait_until(address, what="gunicorn's address")[1])
            yield Gunicorn(process, port)
        finally:
            process.kill()
            process.wait(PATIENCE)


@pytest.mark.parametrize("worker", WORKERS)
def test_streams_end_with_a_time_to_come_back_when_the_server_stops(tmp_path: Path, worker: str) -> None:
    count = 1 if worker == "sync" else THREADS - 1
    with gunicorn(tmp_path, worker, count) as server:
        readers = [Reader(server.port, "sse", STREAM) for _ in range(count)]
        for reader in readers:
            assert len(reader.take(3)) == 3
        if worker != "sync":  # whose only thread is taken
            with Client(server.port) as client:
                status, headers = client.get(STREAM).head()
            assert (status, "retry-after" in headers) == (503, True)
            assert get(server.port, "/health/live")[0] == 200
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < STOPPED
        for reader in readers:
            assert reader.client
            assert b"\nretry: " in reader.raw + reader.client.rest()
            reader.leave()
