"""Redis at many topics: what `cluster.py --topics` measures.

Each table has nodes in processes of their own, without HTTP, at a real redis-server, most of them through proxy.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import redis
from launch import free_port
from servers import BENCH

ROUND_TRIP = 0.005  # seconds


class Process:
    """A process of the bench, which answers each line that it is told with one."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, *words: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def cluster(nodes: int, round_trip: float | None) -> Iterator[tuple[list[Process], Process | None]]:
    """Nodes at a redis-server, and the proxy between them where there is one."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        with redis.Redis(port=port) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    break
                time.sleep(0.05)
        proxy = None
        if round_trip is not None:
            upstream, port = port, free_port()
            proxy = Process(str(BENCH / "proxy.py"), str(port), str(upstream), str(round_trip))
            stack.callback(proxy.end)
            time.sleep(0.5)
        made = []
        for _ in range(nodes):
            made.append(Process(str(BENCH / "topics_node.py"), f"redis://127.0.0.1:{port}/0"))
            stack.callback(made[-1].end)
        yield made, proxy


def settle(nodes: list[Process], topics: int) -> None:
    """Wait until the news of all topics arrive everywhere."""
    while any(node.tell("figures")["current"] < topics for node in nodes):
        time.sleep(0.2)


def delivery(seconds: float) -> str:
    with cluster(2, ROUND_TRIP) as ((here, there), _):
        there.tell("listen", 1000)
        settle([there], 1000)
        there.tell("begin")
        here.tell("publish", 0, 1000, 200, seconds)
        time.sleep(seconds + 1)
        row = there.tell("figures")
    return (
        f"1,000 topics, 200 messages/s, 2 nodes, 5 ms to Redis, {seconds:g} s: {row['messages']} messages on the other "
        f"node after {row['p50']:.1f} ms (p50), {row['p99']:.1f} ms (p99), {row['most']:.1f} ms (most)"
    )


def leases(seconds: float, sources: int, round_trip: float | None) -> str:
    with cluster(2, round_trip) as (nodes, _):
        for node in nodes:
            node.tell("source", sources, 1)
        settle(nodes, sources)
        time.sleep(3)
        for node in nodes:
            node.tell("begin")
        time.sleep(seconds)
        rows = [node.tell("figures") for node in nodes]
    lost, held = sum(row["lost"] for row in rows), sum(row["held"] for row in rows)
    late = ", ".join(f"{row['p99']:.0f} ms" for row in rows)
    cpu = ", ".join(f"{row['cpu'] / seconds:.0%}" for row in rows)
    return (
        f"{sources:,} sources at 1 s, 2 nodes, {(round_trip or 0) * 1000:g} ms to Redis, {seconds:g} s: {held} leases "
        f"held, {lost} lost; {sum(row['messages'] for row in rows) / seconds / 2:,.0f} messages/s; late (p99, by node) "
        f"{late}; CPU {cpu}"
    )


def idle(seconds: float, nodes: int, topics: int) -> str:
    with cluster(nodes, 0.0) as (made, proxy):
        assert proxy
        for node in made:
            node.tell("listen", topics)
        settle(made, topics)
        time.sleep(5)
        before = proxy.tell("count")
        time.sleep(seconds)
        rate = (proxy.tell("count") - before) / seconds
    return f"{nodes} idle nodes, {topics:,} topics listened to and silent, {seconds:g} s: {rate:.1f} requests/s in all"


def unheard(seconds: float) -> str:
    with cluster(2, None) as ((here, there), _):
        there.tell("listen", 10)
        settle([there], 10)
        cpu = []
        for rate in (0, 1000):
            if rate:
                here.tell("publish", 10, 1010, rate, seconds + 2)
            time.sleep(1)
            there.tell("begin")
            time.sleep(seconds)
            cpu.append(there.tell("figures")["cpu"] / seconds)
    return (
        f"1,000 messages/s of 1 KB to topics that a node does not listen to, {seconds:g} s: that node's CPU "
        f"{cpu[0]:.2%} without, {cpu[1]:.2%} with"
    )


def main(seconds: float) -> None:
    """All tables; each figure for so many seconds."""
    os.environ.setdefault("PYTHONPATH", str(BENCH.parent))
    print(delivery(seconds), flush=True)
    print(leases(seconds, 1000, ROUND_TRIP), flush=True)
    print(leases(seconds, 2000, None), flush=True)
    print(leases(seconds, 5000, None), flush=True)
    print(unheard(seconds), flush=True)
    print(idle(seconds, 20, 10_000), flush=True)
