"""The load process: holds the clients, has one window measured, and says what came of it. One thread."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import time
from multiprocessing.connection import Connection

import process
from clients import Clients, Order, Polls, Streams

SETTLE = 2.0  # seconds between the last client's first bytes and a window: a server may still be busy taking it in
GRACE = 10.0  # seconds after a window that its late messages are waited for


def measure(clients: Clients) -> dict[str, float]:
    """One window: what the server spent in it and what the clients got of it."""
    order, server, own = clients.order, process.family(clients.order.pid), [os.getpid()]
    clients.read(SETTLE)
    clients.read_until_pause()
    held, lost = len(clients.sockets), clients.lost
    begin, received = time.monotonic_ns(), clients.received
    before = [process.cpu_seconds(server), process.cpu_seconds(own), process.machine_seconds()]
    clients.read(order.seconds)
    end, received = time.monotonic_ns(), clients.received - received
    after = [process.cpu_seconds(server), process.cpu_seconds(own), process.machine_seconds()]
    memory, threads = process.resident_bytes(server), process.threads(server)
    cpu, load, machine = (late - early for early, late in zip(before, after, strict=True))
    outcome = late(clients, begin, end, held)
    return {
        "cpu_us": cpu / max(1, received) * 1e6,
        "cpu": cpu / order.seconds,
        "load": load / order.seconds,
        "others": (machine - cpu - load) / order.seconds,
        "memory": memory,
        "threads": threads,
        "lost": clients.lost - lost,
        **outcome,
        "rate": outcome["published"] / order.seconds,
        "expected": outcome["published"] * held,
    }


def late(clients: Clients, begin: int, end: int, held: int) -> dict[str, float]:
    """The outcome of a window once all of the `held` clients have all of it, or GRACE is over."""
    until = time.monotonic() + GRACE
    while True:
        clients.read(0.5)
        outcome = clients.outcome(begin, end)
        if outcome["delivered"] >= outcome["published"] * held or time.monotonic() > until:
            return outcome


def connect(clients: Clients) -> dict[str, float]:
    begin = time.monotonic()
    answered = clients.hold()
    result: dict[str, float] = {"held": len(clients.sockets), "connecting": time.monotonic() - begin}
    if len(answered) >= 2000:
        result |= {"first_1000": answered[999] - begin, "last_1000": answered[-1] - answered[-1001]}
    return result


def run(pipe: Connection, order: Order) -> None:
    """The load process: connects, measures one window, sends its result, and reads on until it is told to end."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    gc.disable()
    clients = {"streams": Streams, "polls": Polls}[order.kind](order)
    pipe.send(connect(clients))
    pipe.send(measure(clients))
    with contextlib.suppress(EOFError):
        while not pipe.poll():
            clients.read(0.1)
