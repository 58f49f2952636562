"""Starts a server of the bench and sees to it that it has gone: by SIGTERM to its own process group, then by SIGKILL.

Nothing outlives the bench: the group ends with the run, and the kernel ends its first process if the bench itself dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from servers import BENCH, Server, Start

START_LIMIT = 20.0  # seconds until a server must answer
STOP_LIMIT = 10.0  # seconds from SIGTERM until it is killed
PR_SET_PDEATHSIG = 1  # prctl(2)
libc = ctypes.CDLL(None)


class Running:
    """A server under way: its port and process."""

    def __init__(self, server: Server, start: Start) -> None:
        self.server = server
        self.port = start.port
        self.errors = start.scratch / "stderr"
        self.process = spawn(server.command(start), start)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_up(self) -> None:
        """Raises RuntimeError when the server has ended, TimeoutError when it does not listen within START_LIMIT."""
        until = time.monotonic() + START_LIMIT
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        if self.process.poll() is not None:
            said = self.errors.read_text(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"ended with {self.process.returncode} before it listened: {said}")
        raise TimeoutError(f"does not listen after {START_LIMIT:g} s")

    def stop(self) -> float:
        """Seconds from SIGTERM until it had gone; STOP_LIMIT if it had to be killed."""
        began = time.monotonic()
        end(self.process)
        return time.monotonic() - began


@contextlib.contextmanager
def running(server: Server, python: str, rate: float, clients: int) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="fanout-") as scratch, contextlib.ExitStack() as stack:
        start = Start(sys.executable if server.ours else python, free_port(), rate, clients, Path(scratch))
        started = Running(server, start)
        stack.callback(started.stop)
        started.wait_until_up()
        if server.beside:
            stack.callback(end, spawn(server.beside(start), start))
        yield started


def spawn(command: list[str], start: Start) -> subprocess.Popen[bytes]:
    environ = os.environ | {"BENCH_RATE": str(start.rate), "PYTHONPATH": f"{BENCH.parent}:{BENCH / 'peers'}"}
    with (start.scratch / "stderr").open("ab") as errors:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """By SIGTERM to the first process; whatever of its group is left when it has gone, or STOP_LIMIT has, is killed."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
