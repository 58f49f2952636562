"""What every Python server of the bench publishes, and when: the same 100 bytes, the same steady rate."""

from __future__ import annotations

import time
from collections.abc import Iterator


def body() -> str:
    """100 bytes: `@`, the monotonic clock in ns as 19 digits (all processes of a machine share it), and padding."""
    return f"@{time.monotonic_ns():019d} ".ljust(100, "x")


def event(number: int) -> bytes:
    """The body as a server-sent event with an id, as the WHATWG's "event stream" has it."""
    return f"id: 5e4d10c0-{number}\ndata: {body()}\n\n".encode()


def pauses(rate: float) -> Iterator[float]:
    """Seconds to sleep before each message, so that `rate` a second are made however long making one takes.

    A server that cannot keep up makes fewer: what it has missed is not made up for, or it would drown.
    """
    due = time.monotonic()
    while True:
        due = max(due + 1 / rate, time.monotonic())
        yield max(0.0, due - time.monotonic())


TICK = 0.005


def turns(rate: float) -> Iterator[tuple[float, int]]:
    """Seconds to sleep, and how many messages to publish then: `rate` a second, in a burst every TICK at most.

    As `pauses`, it makes up for nothing that has been missed.
    """
    due, step = time.monotonic(), max(TICK, 1 / rate)
    while True:
        due = max(due + step, time.monotonic())
        yield max(0.0, due - time.monotonic()), round(rate * step)
