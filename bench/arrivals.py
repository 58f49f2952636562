"""What it costs a server that clients come: pages, streams and long polls, in CPU time of its process.

usage: python bench/arrivals.py [--rounds N] [--streams N] [--back N] [--pages N] [--only ROW,...] [--before CHECKOUT]

Rounds are interleaved: each has every server once, started anew for each row. The application is the same on pushdemo's
server and on waitress (arrivals_app.py); aiohttp + uvloop has one of its own. `--before` adds another checkout of
pushdemo. Each row's figure is the CPU time of the server's process for one request, arrival or answer; printed are the
medians, and the medians of the ratios of each round with their quartiles. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from clients import socket_from
from process import thread_seconds
from tables import markdown

BENCH = Path(__file__).parent
PATIENCE = 60.0  # seconds without progress after which a row has failed
TOGETHER = 64  # connections under way at a time, where not all come at once
KEPT = 16  # kept connections that ask for pages; of 64, waitress's loop takes 1-2 ms a page, which would prove nothing
HISTORY = 10  # messages that each has missed who comes back
OPENED = itertools.count()
PAGE = b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n"
LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], checkout: Path, port: int) -> Iterator[int]:
    """A server that listens; its process's number."""
    environ = os.environ | {"PYTHONPATH": f"{checkout}:{checkout / 'bench'}:{checkout / 'bench' / 'peers'}"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *command], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


class Crowd:
    """Clients of one server in one epoll loop. `take` gets what comes; it returns whether the client has its answer."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.data: dict[int, bytes] = {}

    def open(self, request: bytes) -> int:
        number = next(OPENED) // 8_000  # each address has ports enough, also for those that wait for their end
        sock = socket_from(f"127.0.{number // 200}.{2 + number % 200}")
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", self.port))
        fd = sock.fileno()
        self.sockets[fd] = sock
        self.data[fd] = b""
        self.epoll.register(fd, select.EPOLLOUT)
        self.data[fd] = request
        return fd

    def ask(self, fd: int, request: bytes) -> None:
        self.data[fd] = b""
        self.sockets[fd].send(request)

    def events(self, timeout: float) -> Iterator[int]:
        """Who has got something; what they have so far is in `data`."""
        for fd, event in self.epoll.poll(timeout, 20_000):
            if event & select.EPOLLOUT:
                self.epoll.modify(fd, select.EPOLLIN)
                self.ask(fd, self.data[fd])
                continue
            data = self.sockets[fd].recv(65_536)
            if not data:
                raise ConnectionError("a client was refused")
            self.data[fd] += data
            yield fd

    def close(self, fd: int) -> None:
        self.epoll.unregister(fd)
        self.sockets.pop(fd).close()
        del self.data[fd]

    def close_all(self) -> None:
        for fd in list(self.sockets):
            self.close(fd)
        self.epoll.close()


def whole(data: bytes) -> bool:
    """Whether a response with a length is there."""
    head, mark, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(mark and length and len(body) >= int(length[1]))


def waited(crowd: Crowd, done: Callable[[int], bool], count: int) -> None:
    """Turn the loop until `done` has been true for so many events."""
    last = time.monotonic()
    while count > 0:
        for fd in crowd.events(0.05):
            if done(fd):
                count -= 1
                last = time.monotonic()
        if time.monotonic() > last + PATIENCE:
            raise TimeoutError(f"{count} still wait")


def settled(pid: int) -> float:
    """The process's CPU seconds, once it does nothing more."""
    used = thread_seconds(pid)
    while True:
        time.sleep(0.15)
        now = thread_seconds(pid)
        if now - used < 0.02:
            return now
        used = now


def measured(pid: int, count: int, do: Callable[[], None]) -> float:
    """CPU microseconds for each of `count` that `do` does."""
    before = settled(pid)
    do()
    return (settled(pid) - before) / count * 1e6


# -- rows


def page_new(pid: int, port: int, options: Any) -> float:
    """A plain page, a new connection each."""
    crowd, left = Crowd(port), options.pages

    def done(fd: int) -> bool:
        nonlocal left
        if not whole(crowd.data[fd]):
            return False
        crowd.close(fd)
        if left > 0:
            left -= 1
            crowd.open(PAGE)
        return True

    def all_pages() -> None:
        nonlocal left
        left -= TOGETHER
        for _ in range(TOGETHER):
            crowd.open(PAGE)
        waited(crowd, done, options.pages)

    try:
        return measured(pid, options.pages, all_pages)
    finally:
        crowd.close_all()


def page_kept(pid: int, port: int, options: Any, idle: int = 0) -> float:
    """A plain page on kept connections."""
    crowd, left = Crowd(port), options.pages

    def done(fd: int) -> bool:
        nonlocal left
        if not whole(crowd.data[fd]):
            return False
        if left > 0:
            left -= 1
            crowd.ask(fd, PAGE)
        return True

    def again() -> None:
        nonlocal left
        left = options.pages - KEPT
        for fd in fds:
            crowd.ask(fd, PAGE)
        waited(crowd, done, options.pages)

    try:
        left = 0
        everyone = []
        for _ in range(0, idle + KEPT, KEPT):
            everyone += [crowd.open(PAGE) for _ in range(KEPT)]
            waited(crowd, done, KEPT)
        fds = everyone[:KEPT]
        return measured(pid, options.pages, again)
    finally:
        crowd.close_all()


def page_beside_idle(pid: int, port: int, options: Any) -> float:
    """A plain page on kept connections beside thousands that are idle."""
    return page_kept(pid, port, options, idle=options.streams)


def stream(pid: int, port: int, options: Any) -> float:
    """A stream's arrival, to its first message."""
    crowd, left = Crowd(port), options.streams
    request = b"GET /stream?transport=sse HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def done(fd: int) -> bool:
        nonlocal left
        if b"the first" not in crowd.data[fd]:
            return False
        if left > 0:
            left -= 1
            crowd.open(request)
        return True

    def all_streams() -> None:
        nonlocal left
        left -= TOGETHER
        for _ in range(TOGETHER):
            crowd.open(request)
        waited(crowd, done, options.streams)

    try:
        return measured(pid, options.streams, all_streams)
    finally:
        crowd.close_all()


def poll(pid: int, port: int, options: Any, rounds: int = 3) -> float:
    """A long poll, answered and asked again."""
    crowd = Crowd(port)

    def request(last: str) -> bytes:
        return f"GET /stream?transport=longpoll&last_event_id={last} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    def done(fd: int) -> bool:
        if not whole(crowd.data[fd]):
            return False
        crowd.ask(fd, request(json.loads(crowd.data[fd].partition(b"\r\n\r\n")[2])["last_event_id"]))
        return True

    def all_polls() -> None:
        for number in range(rounds):
            publish(port, f"message{number}")
            waited(crowd, done, options.streams)
            settled(pid)

    try:
        for first in range(0, options.streams, TOGETHER):
            some = min(TOGETHER, options.streams - first)
            for _ in range(some):
                crowd.open(request("none"))
            waited(crowd, done, some)
        return measured(pid, rounds * options.streams, all_polls)
    finally:
        crowd.close_all()


def back(pid: int, port: int, options: Any) -> float:
    """All come back at once after a restart, and have their first message."""
    return all_back(pid, port, options, "00000000-7", b"the first")


def resumed(pid: int, port: int, options: Any) -> float:
    """All come back at once, and have the ten messages that they have missed."""
    ids = [publish(port, f"message{number}") for number in range(HISTORY + 1)]
    return all_back(pid, port, options, ids[0], f"message{HISTORY}".encode())


def all_back(pid: int, port: int, options: Any, last_event_id: str, awaited: bytes) -> float:
    """CPU time of each. When the last is served, and how long a page takes meanwhile, is noted."""
    crowd = Crowd(port)
    request = f"GET /stream?transport=sse&last_event_id={last_event_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    got: set[int] = set()
    kept, new = Crowd(port), Crowd(port)
    asked, times = dict[Crowd, float](), dict[Crowd, list[float]]({kept: [], new: []})

    def served(timeout: float) -> None:
        for fd in crowd.events(timeout):
            if awaited in crowd.data[fd]:
                got.add(fd)

    def pages(pages: Crowd) -> None:
        for fd in pages.events(0):
            if whole(pages.data[fd]):
                times[pages].append(time.monotonic() - asked[pages])
                asked[pages] = time.monotonic()
                if pages is kept:
                    pages.ask(fd, PAGE)
                else:
                    pages.close(fd)
                    pages.open(PAGE)

    try:
        kept.open(PAGE)
        waited(kept, lambda fd: whole(kept.data[fd]), 1)
        before, began = thread_seconds(pid), time.monotonic()
        for number in range(options.back):
            crowd.open(request)
            if number % TOGETHER == 0:
                served(0)  # a client asks as soon as it is connected
        asked[kept] = asked[new] = time.monotonic()
        kept.ask(next(iter(kept.sockets)), PAGE)
        new.open(PAGE)
        while len(got) < options.back:
            served(0.005)
            pages(kept)
            pages(new)
            if time.monotonic() > began + PATIENCE:
                raise TimeoutError(f"{options.back - len(got)} still wait")
        taken = time.monotonic() - began
        medians = [median(each) * 1000 if each else float("nan") for each in times.values()]
        options.notes.setdefault((options.row, options.server), []).append(
            (taken, thread_seconds(pid) - before, *medians)
        )
        return (thread_seconds(pid) - before) / options.back * 1e6
    finally:
        for each in (crowd, kept, new):
            each.close_all()


def publish(port: int, text: str) -> str:
    """The message's id."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET /publish?{text} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := sock.recv(4096):
            data += more
    return data.partition(b"\r\n\r\n")[2].decode()


ROWS: dict[str, Callable[[int, int, Any], float]] = {
    "page_new": page_new,
    "page_kept": page_kept,
    "stream": stream,
    "poll": poll,
    "page_beside_idle": page_beside_idle,
    "back": back,
    "resumed": resumed,
}
# What a row of which server is compared with, and the bar.
BARS = {
    "page_new": ("waitress", "page_new", 1.05),
    "page_kept": ("waitress", "page_kept", 0.95),
    "stream": ("waitress", "page_new", 1.4),
    "poll": ("waitress", "page_kept", 0.9),
    "page_beside_idle": ("pushdemo", "page_kept", 1.1),
    "back": ("before", "back", 0.5),
    "resumed": ("before", "resumed", 0.5),
}


@dataclass
class Server:
    name: str
    command: list[str]
    checkout: Path
    rows: tuple[str, ...] = tuple(ROWS)
    samples: dict[str, list[float]] = field(default_factory=dict)


def servers(before: Path | None) -> list[Server]:
    here = BENCH.parent
    app = str(BENCH / "arrivals_app.py")
    found = [
        Server("waitress", [app, "{port}", "waitress"], here, ("page_new", "page_kept")),
        Server("pushdemo", [app, "{port}", "pushdemo"], here),
        Server("aiohttp + uvloop", [str(BENCH / "peers" / "aiohttp_arrivals.py"), "{port}"], here),
    ]
    if before:
        found.append(Server("before", [app, "{port}", "pushdemo"], before))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--back", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=4_000)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    options.notes = {}
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    everyone = servers(options.before)
    with contextlib.suppress(KeyboardInterrupt):  # then what there is is printed
        for number in range(options.rounds):
            for row in options.only.split(","):
                for server in everyone:
                    if row in server.rows:
                        measure(server, row, options)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(table(everyone))
    print()
    print(comings_back(options.notes))


def measure(server: Server, row: str, options: Any) -> None:
    port = free_port()
    options.server, options.row = server.name, row
    with running([part.format(port=port) for part in server.command], server.checkout, port) as pid:
        try:
            figure = ROWS[row](pid, port, options)
        except (OSError, TimeoutError) as error:
            print(f"{server.name}, {row}: {error}", file=sys.stderr)
            figure = float("nan")
    server.samples.setdefault(row, []).append(figure)


def table(everyone: list[Server]) -> str:
    by_name = {server.name: server for server in everyone}
    lines = []
    for row in ROWS:
        cells = [f"{median(each.samples[row]):.0f}" if row in each.samples else "-" for each in everyone]
        base, other, bar = BARS[row]
        ours, theirs = (
            by_name["pushdemo"].samples.get(row),
            by_name[base].samples.get(other) if base in by_name else None,
        )
        ratio = spread(ours, theirs) if ours and theirs else "-"
        lines.append([ROWS[row].__doc__ or row, *cells, ratio, f"{bar} x {base}, {other}"])
    return markdown(["CPU µs", *(each.name for each in everyone), "ratio (quartiles)", "bar"], lines)


def comings_back(notes: dict[tuple[str, str], list[tuple[float, ...]]]) -> str:
    """Medians; of the time also relative to that of "before" in the same round."""
    lines = []
    for (row, server), found in notes.items():
        seconds, cpu, kept, new = (median(each) for each in zip(*found, strict=True))
        others = notes.get((row, "before"), [])
        ratio = spread([each[0] for each in found], [each[0] for each in others]) if others else "-"
        cells = [f"{seconds:.2f}", ratio, f"{cpu:.2f}", f"{kept:.0f}", f"{new:.0f}"]
        lines.append([f"{row}, {server}", *cells])
    header = ["who", "last served after s", "x before (quartiles)", "CPU s", "page, kept: ms", "page, new: ms"]
    return markdown(header, lines)


def spread(ours: list[float], theirs: list[float]) -> str:
    ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
    if len(ratios) < 3:
        return f"{median(ratios):.2f}"
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
