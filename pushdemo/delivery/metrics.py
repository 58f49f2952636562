"""What an application counts: plain numbers, read when someone asks. Standard library alone.

One `Counters` for an application; subscriptions and the hub reach it by `Pace.counters`. The hot path
(delivery/feed.py) adds once for each message and group of clients, not for each client: under a lock, some 0.4 µs
beside a `send` of several µs for each client. Threads: the hub's adds what it writes and who falls behind; the server's
threads add connections, refusals and what they write themselves; any thread reads. `+=` is several steps, hence the
locks, each held for those.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

OTHER_SETS = "(other sets of topics)"
_SETS = 100  # of topics, each by each transport, that are counted by themselves


class Cursor(Protocol):
    """What is known here of a subscription: its place in its topic."""

    position: int
    topic: Any


class Figures(NamedTuple):
    """What one topic has come to by one transport, as `Tally.figures` reads it.

    `clients` are connected; `behind` of them lack messages, the slowest one as many as `lag`, that which it is being
    written not among them. Counted since the start: `messages` and `bytes` given to clients (whole as
    soon as begun; with framing and heartbeats, without HTTP headers), `resets` told, `stalled` clients closed, and
    clients dropped for an error of ours (`failed`).
    """

    clients: int
    behind: int
    lag: int
    messages: int
    bytes: int
    resets: int
    stalled: int
    failed: int = 0


class Tally:
    """One topic by one transport. Any thread calls anything."""

    def __init__(self) -> None:
        # Guards all of the below, and is held for no call into other modules. Reentrant, since a garbage collection in
        # its midst may close a stream that nobody iterates any more.
        self._lock = threading.RLock()
        self._clients = 0
        self._cursors: dict[Cursor, None] = {}  # of those that do not keep pace with the feed, but have their own
        self._messages = 0
        self._bytes = 0
        self._resets = 0
        self._stalled = 0
        self._failed = 0

    def joined(self) -> None:
        """One client more."""
        with self._lock:
            self._clients += 1

    def left(self, cursor: Cursor | None = None) -> None:
        """One client less, with its position where it has one."""
        with self._lock:
            self._clients -= 1
            if cursor is not None:
                self._cursors.pop(cursor, None)

    def wrote(self, size: int, *, messages: int = 0, resets: int = 0) -> None:
        """So many bytes, messages and resets have been given to clients."""
        with self._lock:
            self._bytes += size
            self._messages += messages
            self._resets += resets

    def alone(self, cursor: Cursor) -> None:
        """A client goes by its own position from now on; it may be called again."""
        with self._lock:
            self._cursors[cursor] = None

    def caught_up(self, cursor: Cursor) -> None:
        """The client has everything, and goes with the others."""
        with self._lock:
            self._cursors.pop(cursor, None)

    def closed_stalled(self) -> None:
        """A client that did not read has been closed."""
        with self._lock:
            self._stalled += 1

    def failed(self) -> None:
        """A client has been dropped for an error of ours."""
        with self._lock:
            self._failed += 1

    def figures(self) -> Figures:
        """The figures of this moment."""
        with self._lock:
            cursors = list(self._cursors)
            counted = (self._messages, self._bytes, self._resets, self._stalled, self._failed)
            clients = self._clients
        lags = [cursor.topic.head - cursor.position for cursor in cursors]
        return Figures(clients, sum(lag > 0 for lag in lags), max(0, *lags, 0), *counted)


class Counters:
    """All that one application counts. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self._lock = threading.Lock()  # guards what follows
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._refusals: Counter[tuple[str, int]] = Counter()
        self._unsent: Counter[tuple[str, str]] = Counter()

    def tally(self, topic: str, transport: str) -> Tally:
        """That of a topic (the names of several, joined by commas, where they share a connection) by a transport.

        Clients choose which topics share a connection: beyond a number of sets, all others are counted as one.
        """
        # Without the lock, where it is there: all workers come by, and would stand in line for it in each request.
        tally = self._tallies.get((topic, transport))
        if tally is None:
            with self._lock:
                if "," in topic and sum("," in known for known, _ in self._tallies) >= _SETS:
                    topic = OTHER_SETS
                tally = self._tallies.setdefault((topic, transport), Tally())
        return tally

    def refused(self, kind: str, status: int) -> None:
        """A request for a "topic" or a "generator" has been answered with an error that is its own or the load's."""
        with self._lock:
            self._refusals[kind, status] += 1

    def unsent(self, topic: str, why: str) -> None:
        """A message was not sent: its transaction was "aborted", or sending it has "failed" after the commit."""
        with self._lock:
            self._unsent[topic, why] += 1

    def figures(self) -> dict[tuple[str, str], Figures]:
        """The figures by topic and transport."""
        with self._lock:
            tallies = sorted(self._tallies.items())
        return {key: tally.figures() for key, tally in tallies}

    def refusals(self) -> dict[tuple[str, int], int]:
        """How many were refused, by kind and HTTP status."""
        with self._lock:
            return dict(sorted(self._refusals.items()))

    def unsent_messages(self) -> dict[tuple[str, str], int]:
        """How many messages were not sent, by their topic's pattern and why."""
        with self._lock:
            return dict(sorted(self._unsent.items()))
