"""What topics made at run time cost when few listen: memory of an idle one, lives that come and go, sources on time.

usage: python bench/topics.py [--topics 100000] [--sourced 5000] [--seconds 10]

In one process, without a server; own_topics.py measures clients that have a topic each. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

import process
import tables

from pushdemo.topics.catalog import Catalog, Declaration
from pushdemo.topics.pattern import Pattern, Reference, topic
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.producer import Producer
from pushdemo.topics.topic import MessageProducer, Topic

BODY = "x" * 120
LIFETIME = 3600.0


class Clock:
    """Seconds that pass when the bench says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def catalog(
    clock: Callable[[], float],
    limit: int,
    equip: Callable[..., MessageProducer] | None = None,
    pool: SourcePool | None = None,
) -> Catalog:
    """A catalog with the pattern `own.{id}`."""

    def make(reference: Reference) -> Topic:
        return Topic(reference.name, content_type="text/plain", history=10, pattern=reference.pattern)

    made = Catalog(limit=limit, clock=clock, pool=pool)
    made.declare(Declaration(Pattern("own.{id}"), make, "text/plain", equip=equip, lifetime=LIFETIME))
    return made


def resident() -> int:
    """Resident memory without what Python has given back and the C library keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return process.resident_bytes([os.getpid()])


def bytes_a_topic(count: int, messages: int) -> float:
    """Resident memory of one of so many idle topics, with so many messages in each."""
    topics = catalog(time.monotonic, 2 * count)
    before = resident()
    for number in range(count):
        reference = topic("own.{id}", id=number)
        topics.open(reference)
        for _ in range(messages):
            topics.publish(reference, BODY)
    return (resident() - before) / count


def lives(count: int) -> list[int]:
    """Resident memory after each of three times that so many topics were made, published to and forgotten."""
    clock, sizes = Clock(), []
    topics = catalog(clock, 2 * count)
    for _ in range(3):
        for number in range(count):
            topics.publish(topic("own.{id}", id=number), BODY)
        clock.now += LIFETIME
        while len(topics):
            topics.sweep()
        sizes.append(resident())
    return sizes


def lateness(count: int, seconds: float) -> tuple[list[float], int, float]:
    """How late the values of so many sources of one second are; the most threads; and the cores used."""
    late: list[float] = []
    pool = SourcePool(threads=8)

    def equip(topic: Topic, values: object) -> MessageProducer:
        def source() -> str:
            late.append(pool.clock() - (producer.due - producer.interval))
            return BODY

        producer = Producer(topic, source, 1.0, pool=pool, around=nullcontext, spread=True)
        return producer

    topics = catalog(time.monotonic, 2 * count, equip, pool)
    clients = [topics.open(topic("own.{id}", id=number)) for number in range(count)]
    for client in clients:
        client.join()
    time.sleep(2)  # the first value of each is made at once, the second at a time of its own
    late.clear()
    used, threads = process.cpu_seconds([os.getpid()]), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        threads = max(threads, sum(thread.name.startswith("pushdemo-source") for thread in threading.enumerate()))
        time.sleep(0.1)
    cores = (process.cpu_seconds([os.getpid()]) - used) / seconds
    made = list(late)
    topics.close()
    return sorted(made), threads, cores


def main() -> None:
    parser = argparse.ArgumentParser(description="Topics made at run time; bench/README.md says how to read it.")
    parser.add_argument("--topics", type=int, default=100_000, help="idle topics (default: 100000)")
    parser.add_argument("--sourced", type=int, default=5_000, help="topics with a source (default: 5000)")
    parser.add_argument("--seconds", type=float, default=10, help="length of the measurement of sources (default: 10)")
    options = parser.parse_args()
    late, threads, cores = lateness(options.sourced, options.seconds)
    p99 = late[int(len(late) * 0.99)]
    print(
        f"{options.sourced:,} sources of 1 s: {len(late) / options.seconds:,.0f} values/s in {threads} threads, "
        f"{cores:.2f} cores; late by {late[len(late) // 2] * 1e3:.1f} ms (p50), {p99 * 1e3:.1f} ms (p99)"
    )
    print(tables.bar("late, p99, s", lambda: p99, 0.25))
    print(tables.bar("threads", lambda: threads, 8))
    sizes = lives(options.topics)
    megabytes = ", ".join(f"{size / 1e6:.1f}" for size in sizes)
    print(f"{options.topics:,} topics made, published to and forgotten, three times: {megabytes} MB")
    print(tables.bar("memory after the third time / after the first", lambda: sizes[2] / sizes[0], 1.05))
    idle, full = bytes_a_topic(options.topics, 0), bytes_a_topic(options.topics // 10, 10)
    print(f"an idle topic: {idle:,.0f} bytes; with 10 messages of {len(BODY)} bytes: {full:,.0f}")
    print(tables.bar("bytes of an idle topic", lambda: idle, 1024))


if __name__ == "__main__":
    main()
