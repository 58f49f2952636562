"""What sharing costs: three `pserve` nodes at one redis-server against one process on its own.

usage: python bench/cluster.py [--clients 1000] [--rate 10] [--seconds 10] [--rounds 3]
       python bench/cluster.py --topics [--seconds 60]

"Fan-out": so many clients on each of three nodes, of which one makes the messages; all of those clients on one process
without Redis; and on three processes that share nothing, which is what three processes cost on this machine, whatever
they say to each other. "Delay": how late the last client of all nodes is, where each has few. "Computations": 300
clients on three nodes ask for one memorized value all the time. With `--topics`: thousands of topics and sources, with
a proxy that makes the round trip to Redis longer (many_topics.py).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import many_topics
import process
import tables
from clients import Order
from fanout import loaded, received, wait_for_quiet
from launch import end, free_port
from servers import BENCH

NODES = 3
FEW = 20  # clients of a node where the delay between nodes is measured, and not the time that a thousand sends take
ASKING = 300  # clients that ask for the value, on all nodes together
DURATION = 2.0  # seconds that the value is used for
START_LIMIT = 20.0  # seconds until a process must listen

ROWS = {"one process": (1, False), "three processes": (NODES, False), "three nodes at Redis": (NODES, True)}

INI = """
[app:main]
use = call:cluster_app:main
pushdemo.redis_url = {redis}
pushdemo.interval = {interval}
pushdemo.memorize.duration = {duration}
[server:main]
use = egg:pushdemo
listen = 127.0.0.1:{port}
threads = {threads}
backlog = 4096
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = ERROR
handlers =
"""


def main() -> None:
    options = arguments()
    if not shutil.which("redis-server"):
        sys.exit("redis-server is missing: apt-get install redis-server")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if options.topics:
        many_topics.main(options.seconds)
        return
    rows: dict[str, list[tables.Sample]] = {name: [] for name in ROWS}
    for number in range(options.rounds):
        for name, (nodes, shared) in ROWS.items():
            print(f"{number + 1}/{options.rounds}: {name}", file=sys.stderr, flush=True)
            wait_for_quiet()
            rows[name].append(fan_out(options, nodes, options.clients * NODES // nodes, shared=shared))
    print(fan_out_table(options, rows), flush=True)
    wait_for_quiet()
    few = [fan_out(options, NODES, FEW, shared=True) for _ in range(options.rounds)]
    print(delay_line(few), flush=True)
    print(computations_table(options), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The cluster's bench.")
    parser.add_argument("--clients", type=int, default=1000, help="clients of a node (default: 1000)")
    parser.add_argument("--rate", type=float, default=10, help="messages a second (default: 10)")
    parser.add_argument("--seconds", type=float, default=10, help="length of one measurement (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default: 3)")
    parser.add_argument("--topics", action="store_true", help="measure thousands of topics instead")
    return parser.parse_args()


@contextlib.contextmanager
def cluster(nodes: int, *, shared: bool, rate: float, threads: int) -> Iterator[tuple[list[int], list[int], int, Path]]:
    """Running nodes: their ports and processes, redis-server's process (0: none), and the file of `value`'s calls."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as scratch, contextlib.ExitStack() as stack:
        folder, redis, url = Path(scratch), 0, ""
        calls = folder / "calls"
        calls.touch()
        os.environ["BENCH_CALLS"] = str(calls)
        if shared:
            port = free_port()
            command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", scratch]
            redis, url = started(stack, command, rate, port), f"redis://127.0.0.1:{port}/0"
        ports, pids = [], []
        for number in range(nodes):
            port, ini = free_port(), folder / f"{number}.ini"
            ini.write_text(INI.format(redis=url, interval=1 / rate, duration=DURATION, port=port, threads=threads))
            pserve = str(Path(sys.executable).with_name("pserve"))
            pids.append(started(stack, [pserve, str(ini)], rate, port))
            ports.append(port)
        yield ports, pids, redis, calls


def started(stack: contextlib.ExitStack, command: list[str], rate: float, port: int) -> int:
    """The id of a process that has begun to listen."""
    path = f"{BENCH.parent}:{BENCH}:{BENCH / 'peers'}"
    environ = os.environ | {"BENCH_RATE": str(rate), "PYTHONPATH": path}
    running = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, start_new_session=True)
    stack.callback(end, running)
    until = time.monotonic() + START_LIMIT
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
            return running.pid
        time.sleep(0.05)
    raise TimeoutError(f"{command[0]} does not listen after {START_LIMIT:g} s")


def fan_out(options: argparse.Namespace, nodes: int, clients: int, *, shared: bool) -> tables.Sample:
    """One measurement: the processor time of all nodes for each message delivered, and how late the messages are."""
    with (
        cluster(nodes, shared=shared, rate=options.rate, threads=4) as (ports, pids, redis, _),
        contextlib.ExitStack() as loads,
    ):
        orders = [
            Order("streams", port, "/stream?transport=sse", clients, options.rate, options.seconds, pid)
            for port, pid in zip(ports, pids, strict=True)
        ]
        pipes = []
        for order in orders:
            pipes.append(loads.enter_context(loaded(order)))
            received(pipes[-1])  # connected; each begins to measure at once
        before = process.cpu_seconds([redis]) if redis else 0.0
        samples = [received(pipe) for pipe in pipes]
        spent = process.cpu_seconds([redis]) - before if redis else 0.0
    delivered = sum(sample["delivered"] for sample in samples)
    return {
        "cpu_us": sum(sample["cpu_us"] * sample["delivered"] for sample in samples) / delivered,
        "redis_us": spent / delivered * 1e6,
        "last_p50": max(sample["last_p50"] for sample in samples),
        "last_p99": max(sample["last_p99"] for sample in samples),
        "missing": sum(sample["expected"] - sample["delivered"] for sample in samples),
    }


def fan_out_table(options: argparse.Namespace, rows: dict[str, list[tables.Sample]]) -> str:
    """The medians, as Markdown."""
    median = {
        name: {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for name, samples in rows.items()
    }
    one, three, shared = (median[name]["cpu_us"] for name in ROWS)
    lines = [
        f"\nFan-out: 3 x {options.clients:,} clients, {options.rate:g} messages/s, {options.seconds:g} s; "
        f"{options.rounds} rounds, medians",
        "",
        "| | nodes' CPU us a delivery | Redis's | last client p50 ms | p99 ms | missing |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in median.items():
        figures = f"{row['cpu_us']:.2f} | {row['redis_us']:.2f} | {row['last_p50']:.1f} | {row['last_p99']:.1f}"
        lines.append(f"| {name} | {figures} | {row['missing']:.0f} |")
    return "\n".join(
        [*lines, "", f"CPU at Redis / one process: {shared / one:.2f}; / three processes: {shared / three:.2f}"]
    )


def delay_line(samples: list[tables.Sample]) -> str:
    """How late the last client of all nodes was told, where there are few of them."""
    p50, p99 = (statistics.median(sample[key] for sample in samples) for key in ("last_p50", "last_p99"))
    return f"\nDelay: {NODES} x {FEW} clients, the last of them is told after {p50:.1f} ms (p50), {p99:.1f} ms (p99)"


def computations_table(options: argparse.Namespace) -> str:
    """How often the value was computed while all asked for it all the time."""
    with cluster(NODES, shared=True, rate=options.rate, threads=ASKING // NODES + 4) as (ports, _, _, calls):
        stop = threading.Event()
        answers: list[int] = []
        threads = [
            threading.Thread(target=ask, args=(ports[number % NODES], stop, answers), daemon=True)
            for number in range(ASKING)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(options.seconds)
        stop.set()
        for thread in threads:
            thread.join(10)
        seconds = time.monotonic() - began
        computed = calls.read_text().split()
    return (
        f"\nComputations: {ASKING} clients on {NODES} nodes, a value used for {DURATION:g} s, {seconds:.1f} s: "
        f"{len(answers):,} answers, {len(computed)} computations on {len(set(computed))} nodes; "
        f"{seconds / DURATION:.1f} durations"
    )


def ask(port: int, stop: threading.Event, answers: list[int]) -> None:
    """One client: asks again as soon as it is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        while not stop.is_set():
            connection.request("GET", "/value")
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"/value answered {answer.status}: {answer.read()!r}")
            answers.append(int(answer.read()))
            stop.wait(0.05)


if __name__ == "__main__":
    sys.path.insert(0, str(BENCH))
    main()
