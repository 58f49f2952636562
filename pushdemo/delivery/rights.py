"""Who may listen, and until when: a client's right, and the orders that end clients before their topics end.

A stream is checked once, by its view, when it begins. Its right ends it at its time; an order ends those of an owner,
of a topic, or of both. The client comes back by itself with its last id, and the view decides anew. Each client looks
for orders when it begins and in each sweep of the hub. Any thread may call anything.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pushdemo.topics.topic import Topic

KEPT = 300.0  # seconds that an order is remembered, for requests that began before it and have yet to become streams
LOOK = 0.5  # seconds between two looks for orders


class Right(NamedTuple):
    """The right of one client to listen."""

    owner: str | None = None  # the user whose client it is
    began: float = math.inf  # when its request began, by the clock of `Orders`; an order of that moment ends it
    expires: float = math.inf  # by the same clock


UNLIMITED = Right()


class Orders:
    """The orders to end clients, of one application. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.number = 0  # of orders so far; read by any thread without the lock, as is the next line
        self._latest: dict[tuple[str | None, str | None], float] = {}  # (owner, topic) -> when; the oldest first
        self._lock = threading.Lock()  # held by who adds an order

    def add(self, owner: str | None, topic: str | None) -> None:
        """End the clients of an owner, of a topic (its name, or a pattern for all of its topics), or of both."""
        if owner is None and topic is None:
            raise TypeError("an owner, a topic, or both")
        with self._lock:
            now = self.clock()
            latest = {key: at for key, at in self._latest.items() if at > now - KEPT and key != (owner, topic)}
            latest[owner, topic] = now
            self._latest = latest
            self.number += 1

    def end(self, right: Right, topics: Iterable[Topic] = ()) -> bool:
        """Whether an order ends a client with this right and these topics."""
        latest = self._latest
        if not latest:
            return False
        owner = right.owner
        keys: list[tuple[str | None, str | None]] = [] if owner is None else [(owner, None)]
        for topic in topics:
            names = (topic.name,) if topic.name == topic.pattern else (topic.name, topic.pattern)
            keys += [(None, name) for name in names]
            if owner is not None:
                keys += [(owner, name) for name in names]
        return any(right.began <= latest.get(key, -math.inf) for key in keys)
