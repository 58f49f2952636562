"""What a topic of its own costs for each client: pushdemo beside aiohttp + uvloop with a queue a client, in one run.

usage: python bench/own_topics.py [--mode NAME ...] [--seconds S] [--rounds 3] [--peers-python PYTHON]

Rounds are interleaved, as fanout.py's are; what pushdemo must reach stands below each table.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from collections.abc import Callable

import tables
from fanout import Mode, measure
from servers import BENCH, PEERS, Server, bare_loop, describe, script

OURS, QUEUES, LOOP, ONE = "pushdemo", "aiohttp + uvloop, a queue a client", "send loop", "pushdemo, one topic"

MODES = (
    Mode("own", "streams", "/stream/{}?transport=sse", 1_000, 2_000, 8),
    Mode("own 5,000", "streams", "/stream/{}?transport=sse", 5_000, 5_000, 8),
    Mode("pair", "streams", "/pair/{}?transport=sse&ids=topic", 5_000, 10, 8),
)


def servers(mode: Mode) -> list[Server]:
    told = "all" if mode.name == "pair" else "each"
    ours, modes = BENCH / "own_app.py", (mode.name,)
    needs = ("pyramid", "waitress")
    chosen = [
        Server(OURS, script(ours, told), needs, modes=modes, page=False, ours=True),
        Server("pushdemo, no io_uring", script(ours, told, "--no-ring"), needs, modes=modes, page=False, ours=True),
        Server(QUEUES, script(PEERS / "aiohttp_queues.py", told), ("aiohttp", "uvloop"), modes=modes, page=False),
    ]
    if mode.name == "pair":
        one = Server(ONE, script(ours, told), needs, modes=modes, page=False, ours=True, path="/stream?transport=sse")
        chosen += [one, Server(LOOP, bare_loop, modes=modes, page=False)]
    return chosen


def columns(rows: dict[str, tables.Sample]) -> dict[str, tables.Cell]:
    return {
        "held": tables.held,
        "CPU µs a message": tables.cost,
        f"x {QUEUES}": lambda row: f"{row['cpu_us'] / rows[QUEUES]['cpu_us']:.2f}",
        "cores used": lambda row: f"{row['cpu']:.2f}",
        "KB a client": lambda row: f"{row['added'] / 1e3 / row['held']:.1f}",
        "published to last byte p50 / p99 ms": lambda row: f"{row['last_p50']:.1f} / {row['last_p99']:.1f}",
        "messages / s": lambda row: f"{row['rate']:,.0f}",
    }


def bars(mode: Mode, rows: dict[str, tables.Sample]) -> str:
    def ratio(name: str, other: str) -> Callable[[], float]:
        return lambda: rows[name]["cpu_us"] / rows[other]["cpu_us"]

    if mode.name == "pair":
        return "\n".join(
            [
                tables.bar("common and own topic / one topic", ratio(OURS, ONE), 1.2),
                tables.bar("one topic / send loop", ratio(ONE, LOOP), 1.15),
            ]
        )
    return "\n".join(
        [
            tables.bar(f"CPU a message / {QUEUES}", ratio(OURS, QUEUES), 1.0),
            tables.bar("KB a client", lambda: rows[OURS]["added"] / 1e3 / rows[OURS]["held"], 7),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A topic for each client; bench/README.md says how to read it.")
    names = [mode.name for mode in MODES]
    parser.add_argument("--mode", nargs="+", choices=names, default=names, help="tables to make (default: all)")
    parser.add_argument("--seconds", type=float, default=8, help="length of one measurement (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="servers (default: all)")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that has the peers installed")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    for mode in MODES:
        if mode.name in options.mode:
            run(mode, options)


def run(mode: Mode, options: argparse.Namespace) -> None:
    mode = Mode(mode.name, mode.kind, mode.path, mode.clients, mode.rate, options.seconds)
    chosen = [server for server in servers(mode) if not options.only or server.name in options.only]
    known = {server.name: describe(server, options.peers_python) for server in chosen}
    present = [server for server in chosen if not known[server.name][1]]
    for server in chosen:
        if server not in present:
            print(f"{server.name}: {known[server.name][1]}")
    tables.COLUMNS[mode.name] = columns
    samples = measure(mode, present, options)
    title = f"{mode.name}: {mode.clients:,} clients, {mode.rate:,g} messages/s, {mode.seconds:g} s"
    print(tables.table(mode.name, title, samples, judged=False))
    rows = {
        name: tables.medians([each for each in all_ if not isinstance(each, str)]) for name, all_ in samples.items()
    }
    print(bars(mode, rows), flush=True)


if __name__ == "__main__":
    main()
