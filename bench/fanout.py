"""What it costs to tell many clients at once: pushdemo, a bare loop of send(), and the servers people use instead.

usage: python bench/fanout.py [--clients N] [--rate M] [--seconds S] [--rounds 3] [--only NAME ...]

One run takes every server in turn, round after round, and prints the medians as Markdown; see README.md beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import multiprocessing
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import process
import tables
from clients import Order, percentiles, request
from launch import Running, running
from load import run
from servers import SERVERS, Server, describe

QUIET_LIMIT = 60.0  # seconds that a run waits for the machine to be quiet
RUN_LIMIT = 300.0  # seconds that one load may take
PAGES, PAGES_LIMIT = 100, 20.0  # pages asked for beside the streams, seconds after which no more are
PAGE_LIMIT = 10.0  # seconds after which a page is taken for one that took them


@dataclass(frozen=True)
class Mode:
    """One table: a load of one kind on every server that is in it."""

    name: str
    kind: str
    path: str
    clients: int
    rate: float
    seconds: float


MODES = (
    Mode("fanout", "streams", "/stream?transport=sse", 5_000, 10, 10),
    Mode("hold", "streams", "/stream?transport=sse", 10_000, 1, 5),
    Mode("polls", "polls", "/stream?transport=longpoll", 5_000, 0.2, 15),
)


def main() -> None:
    options = arguments()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    chosen = [server for server in SERVERS if not options.only or server.name in options.only]
    known = {server.name: describe(server, options.peers_python) for server in chosen}
    print(tables.versions(known, options.peers_python), flush=True)
    present = [server for server in chosen if not known[server.name][1]]
    for mode in MODES:
        if mode.name in options.mode:
            mode = with_options(mode, options)
            title = f"{mode.name}: {mode.clients:,} clients, {mode.rate:g} messages/s, {mode.seconds:g} s"
            print(tables.table(mode.name, title, measure(mode, present, options), judged=mode in MODES), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The fan-out benchmark; bench/README.md says how to read it.")
    names = [server.name for server in SERVERS]
    modes = [mode.name for mode in MODES]
    parser.add_argument("--mode", nargs="+", choices=modes, default=modes, help="tables to make (default: all)")
    parser.add_argument("--clients", type=int, help="clients (default: fanout and polls 5000, hold 10000)")
    parser.add_argument("--rate", type=float, help="messages a second (default: fanout 10, hold 1, polls 0.2)")
    parser.add_argument(
        "--seconds", type=float, help="length of one measurement (default: fanout 10, hold 5, polls 15)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server (default: 3)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"servers, of: {', '.join(names)}")
    parser.add_argument("--transport", default="sse", help="of the streams, where the server offers several")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that has the peers installed")
    return parser.parse_args()


def with_options(mode: Mode, options: argparse.Namespace) -> Mode:
    given = {name: getattr(options, name) for name in ("clients", "rate", "seconds")}
    path = mode.path.replace("sse", options.transport)
    return replace(mode, path=path, **{name: value for name, value in given.items() if value is not None})


def measure(mode: Mode, servers: list[Server], options: argparse.Namespace) -> tables.Samples:
    """Every server's samples: the rounds interleave them, so that a change of the machine's mood touches all."""
    samples: tables.Samples = {server.name: [] for server in servers if mode.name in server.modes}
    for number in range(1, options.rounds + 1):
        for server in servers:
            if server.name in samples:
                print(f"{mode.name} {number}/{options.rounds}: {server.name}", file=sys.stderr, flush=True)
                samples[server.name].append(quiet_run(server, mode, options.peers_python))
    return samples


def quiet_run(server: Server, mode: Mode, python: str) -> tables.Sample | str:
    """One run; where something else used the machine meanwhile a second one, and the quieter of the two."""
    best: tables.Sample = {}
    for _ in range(2):
        wait_for_quiet()
        run = one_run(server, mode, python)
        if isinstance(run, str):
            return run
        best = min(best or run, run, key=lambda sample: sample["others"])
        if best["others"] < tables.QUIET:
            break
    return best


def wait_for_quiet() -> None:
    """Until the machine has been all but idle for two seconds, or QUIET_LIMIT is over; the tables say how it was."""
    until = time.monotonic() + QUIET_LIMIT
    while time.monotonic() < until:
        before = process.machine_seconds()
        time.sleep(2)
        if (process.machine_seconds() - before) / 2 < tables.QUIET:
            return


def one_run(server: Server, mode: Mode, python: str) -> tables.Sample | str:
    """What was measured, or why nothing was."""
    try:
        path = server.path or mode.path
        with running(server, python, mode.rate, mode.clients) as started:
            warm_up(started, path.format(0))
            idle = process.resident_bytes(process.family(started.pid))
            order = Order(mode.kind, started.port, path, mode.clients, mode.rate, mode.seconds, started.pid)
            with loaded(order) as pipe:
                sample = received(pipe) | received(pipe)
                sample["added"] = sample["memory"] - idle
                if mode.name == "fanout" and server.page:
                    sample |= page_times(started.port)
                if mode.name == "hold":
                    sample["stop"] = started.stop()
        return sample
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def warm_up(started: Running, path: str) -> None:
    """Whatever a server makes only once for its first client shall not count as that of the others."""
    with socket.create_connection(("127.0.0.1", started.port), timeout=10) as client:
        client.sendall(request(path))
        client.recv(4096)
    if started.server.page:
        for _ in range(20):
            page_time(started.port)
    time.sleep(1)


def page_times(port: int) -> tables.Sample:
    """Plain pages while the clients are told messages, asked for at odd moments."""
    times: list[int] = []
    until = time.monotonic() + PAGES_LIMIT
    while len(times) < PAGES and time.monotonic() < until:
        time.sleep(0.037)
        try:
            times.append(page_time(port))
        except TimeoutError:
            times.append(int(PAGE_LIMIT * 1e9))
    return percentiles("page", times)


def page_time(port: int) -> int:
    """Nanoseconds from connecting to the last byte of /page."""
    begin = time.monotonic_ns()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PAGE_LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", "/page")
        answer = connection.getresponse()
        if answer.status != 200 or answer.read() != b"a plain page":
            raise RuntimeError(f"/page answered {answer.status}")
    return time.monotonic_ns() - begin


@contextlib.contextmanager
def loaded(order: Order) -> Iterator[Connection]:
    """The load process, connecting and then measuring; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    child = context.Process(target=run, args=(other, order), daemon=True)
    child.start()
    other.close()
    try:
        yield pipe
    finally:
        pipe.close()
        child.kill()  # it has nothing to tidy up, and may be in the middle of a window
        child.join()


def received(pipe: Connection) -> tables.Sample:
    if not pipe.poll(RUN_LIMIT):
        raise TimeoutError(f"the load did not end within {RUN_LIMIT:g} s")
    sample: tables.Sample = pipe.recv()
    return sample


if __name__ == "__main__":
    main()
