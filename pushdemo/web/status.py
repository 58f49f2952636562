"""An application's own figures, of this process alone, for people, scripts and Prometheus. Any thread."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from pushdemo.cache.functions import Caches
from pushdemo.delivery.metrics import Figures
from pushdemo.topics.catalog import Catalog
from pushdemo.web.admission import Clients
from pushdemo.web.broker import Backend
from pushdemo.web.sessions import Sessions

INTERVAL = 2.0  # seconds from one message to the next
_SHORTEST = 1.0  # seconds that a rate covers at least

# Why requests are refused, by what they asked for and the HTTP status. web/push.py and web/json_yield.py refuse them.
REASONS = {
    ("topic", 400): "an unknown transport or topic, or a query that cannot be read",
    ("topic", 405): "a method other than GET",
    ("topic", 406): "no transport that the client takes",
    ("topic", 503): "no place left (pushdemo.max_clients, or pushdemo.max_threads where clients hold threads)",
    ("generator", 400): "a query that will not do",
    ("generator", 403): "a page of another site would close the session",
    ("generator", 405): "a method that has no meaning",
    ("generator", 406): "no transport that the client takes",
    ("generator", 409): "another call runs the session's generator",
    ("generator", 410): "no such session: closed, idle for too long, or in another process",
    ("generator", 421): "the session is another process's",
    ("generator", 500): "the generator has failed",
    ("generator", 503): "no session left (pushdemo.generators.limit), no place for its stream, or the server stops",
}


class Reading(NamedTuple):
    """The figures at `time`."""

    time: float
    figures: dict[tuple[str, str], Figures]


class Status:
    """Reads the counters of one application's parts."""

    def __init__(self, backend: Backend, topics: Catalog, clients: Clients, sessions: Sessions, caches: Caches) -> None:
        self.backend = backend
        self.topics = topics
        self.clients = clients
        self.sessions = sessions
        self.caches = caches
        self._lock = threading.Lock()  # guards what follows
        self._before = self._last = Reading(clients.counters.started, {})

    def report(self) -> dict[str, Any]:
        """Return all figures, ready for JSON. Rates cover the last `rates_over` seconds."""
        counters = self.clients.counters
        now = Reading(counters.clock(), counters.figures())
        before = self._base(now)
        seconds = now.time - before.time
        streams = [
            {"topic": topic or None, "transport": transport, **figures._asdict()}
            | _rates(figures, before.figures.get((topic, transport)), seconds)
            for (topic, transport), figures in now.figures.items()
        ]
        return {
            "uptime": round(now.time - counters.started, 1),
            "rates_over": round(seconds, 1),
            "trouble": self.backend.trouble,
            "total": self._total(streams),
            "streams": streams,
            "topics": [figures._asdict() for figures in self.topics.figures()],
            "refusals": [
                {"kind": kind, "reason": REASONS.get((kind, status), ""), "status": status, "count": count}
                for (kind, status), count in counters.refusals().items()
            ],
            "unsent": [
                {"topic": topic, "why": why, "count": count}
                for (topic, why), count in counters.unsent_messages().items()
            ],
            "redis": [
                *({"figure": name.replace("_", " "), "value": value} for name, value in self.backend.figures.items()),
                *({"figure": f"errors: {kind}", "value": count} for kind, count in self.backend.errors.items()),
            ],
            "generators": self.sessions.info(),
            "memorize": [
                {"function": name, **info._asdict(), "age": None if info.age is None else round(info.age, 1)}
                for name, info in self.caches.info().items()
            ],
        }

    def _total(self, streams: list[dict[str, Any]]) -> dict[str, Any]:
        sums = (
            "behind",
            "messages",
            "bytes",
            "resets",
            "stalled",
            "failed",
            "messages_per_second",
            "bytes_per_second",
        )
        return {
            "clients": self.clients.all.taken + self.clients.threads.taken,  # one of several topics is in several rows
            **{key: round(sum(stream[key] for stream in streams), 1) for key in sums},
            "lag": max((stream["lag"] for stream in streams), default=0),
            "refused": sum(self.clients.counters.refusals().values()),
            "places": self.clients.all.taken,
            "max_clients": self.clients.all.limit,
            "threads": self.clients.threads.taken,
            "max_threads": self.clients.threads.limit,
        }

    def _base(self, now: Reading) -> Reading:
        """Return the reading that rates are counted from."""
        with self._lock:
            if now.time - self._last.time >= _SHORTEST:
                self._before, self._last = self._last, now
            return self._before


def _rates(now: Figures, before: Figures | None, seconds: float) -> dict[str, float]:
    def rate(count: int, earlier: int) -> float:
        return round(max(0, count - earlier) / seconds, 1) if seconds > 0 else 0.0

    return {
        "messages_per_second": rate(now.messages, before.messages if before else 0),
        "bytes_per_second": rate(now.bytes, before.bytes if before else 0),
    }
