"""A thread that calls what renews something at Redis, again and again: leases of topics, claims of memorized values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pushdemo.forking import call_in_child
from pushdemo.redis.pool import RedisUnavailableError

log = logging.getLogger("pushdemo")

LEASE_TIME = 2.0  # seconds until a lease or a claim that is not renewed is another's
BEAT = 0.5  # seconds between two renewals


class Renewals:
    """Calls the beats that it has been given, every BEAT seconds and whenever it is rung."""

    def __init__(self, name: str = "pushdemo-redis-claims") -> None:
        self._name = name
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin without beats and thread: in a forked process they are the parent's."""
        # Guards all below. An interrupt in a condition's own `with` would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._beats: dict[Callable[[], None], None] = {}
        self._thread: threading.Thread | None = None
        self._rung = False
        self._closed = False

    def add(self, beat: Callable[[], None], *, at_once: bool = True) -> None:
        """Call `beat` from now on. It may block; what it raises does not end it."""
        with self._lock:
            self._rung = self._rung or at_once or not self._beats
            self._beats[beat] = None
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()  # raises RuntimeError where the system has none left: `add` is called again then
                self._thread = thread
            self._changed.notify_all()

    def ring(self) -> None:
        """Call all of them now."""
        with self._lock:
            self._rung = True
            self._changed.notify_all()

    def discard(self, beat: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._beats.pop(beat, None)

    def close(self) -> None:
        """The application stops."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._rung or self._closed, BEAT if self._beats else None)
                if self._closed:
                    return
                self._rung = False
                beats = list(self._beats)
            for beat in beats:
                try:
                    beat()
                except RedisUnavailableError:
                    break  # none of the others would fare better
                except Exception:
                    log.exception("the renewal of a lease met an error and goes on")
