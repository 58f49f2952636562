"""gunicorn + gevent: a WSGI application that holds each stream in one greenlet. Rate: the environment's BENCH_RATE."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.event import Event
from message import event, pauses

HISTORY = 100


class Feed:
    """The last messages, encoded once, and the event that tells all clients of the next."""

    def __init__(self) -> None:
        self.number = 0
        self.events = [b""] * HISTORY
        self.changed = Event()

    def publish(self, rate: float) -> None:
        for pause in pauses(rate):
            gevent.sleep(pause)
            self.number += 1
            self.events[self.number % HISTORY] = event(self.number)
            changed, self.changed = self.changed, Event()
            changed.set()

    def stream(self) -> Iterator[bytes]:
        number = self.number
        yield b":\n\n"
        while True:
            while number == self.number:
                self.changed.wait()
            number += 1
            yield self.events[number % HISTORY]


feed = Feed()
gevent.spawn(feed.publish, float(os.environ["BENCH_RATE"]))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    if environ["PATH_INFO"] == "/page":
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "12")])
        return iter([b"a plain page"])
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
    return feed.stream()
