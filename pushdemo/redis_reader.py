"""The reader: one thread and one connection that bring all of an application's topics what the cluster publishes.

It knows topics as keys and places in streams; what an entry is, redis_topics.py knows. Its thread alone reads; `watch`
is called before it starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from pushdemo.redis_link import Link, RedisUnavailableError
from pushdemo.redis_topics import Entry

log = logging.getLogger("pushdemo")

LOOK = 1.0  # seconds between two looks whether a topic has begun a new life, which a blocked XREAD would never tell
_AGAIN = 0.5  # seconds before the next try of a Redis that is gone
_AT_ONCE = 100  # entries of a stream that one answer brings at most


class Stream(Protocol):
    """What is read: a stream at Redis, and what becomes of its entries."""

    @property
    def place(self) -> tuple[str, str]:
        """Its key, and the id of the last entry that is known."""

    def absorb(self, key: str, entries: list[Entry]) -> bool:
        """Take over entries of the stream `key`; False where `catch_up` must find out what has become of it."""

    def catch_up(self) -> None:
        """Make sure that the stream is still the one that is known, and take over what is new. Asks Redis itself."""

    def tell(self) -> None:
        """Tell whoever wants to know what has been taken over, in this or another thread."""


class Reader:
    """Reads the streams that it is told to watch."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        self._client = link.reader(LOOK)
        self._streams: list[Stream] = []
        self._closed = threading.Event()

    def watch(self, stream: Stream) -> None:
        """Read this stream too, once started."""
        self._streams.append(stream)

    def start(self) -> None:
        """Fill the streams' mirrors now, before the first client comes, if Redis can be reached; then read on."""
        with suppress(RedisUnavailableError):  # the log knows, and the thread goes on trying
            self._look()
        threading.Thread(target=self._run, name="pushdemo-redis-reader", daemon=True).start()

    def close(self) -> None:
        """The application stops: the thread ends its connection and itself, within LOOK seconds."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._look()
                until = self._clock() + LOOK
                # Where others have met trouble, a look ends it, or else meets it too.
                while (left := until - self._clock()) > 0 and not (self._closed.is_set() or self._link.trouble):
                    self._read(left)
            except RedisUnavailableError:
                self._closed.wait(_AGAIN)
            except Exception:
                log.exception("the reader met an error and goes on")
                self._closed.wait(_AGAIN)
        self._client.close()

    def _look(self) -> None:
        for stream in self._streams:
            try:
                stream.catch_up()
            except RedisUnavailableError:
                if self._link.trouble:
                    raise
                # Refused: a full Redis has no room for a topic that is new to it. The others are read all the same.
            stream.tell()

    def _read(self, seconds: float) -> None:
        """Take over what comes within so many seconds, up to the first answer."""
        by_key = {stream.place[0].encode(): stream for stream in self._streams}
        places: dict[Any, Any] = {key: stream.place[1] for key, stream in by_key.items()}
        # What other threads have taken over up to here is told now; what they do from here on is in the answer.
        for stream in self._streams:
            stream.tell()
        if not places:
            self._closed.wait(seconds)
            return
        block = max(1, round(seconds * 1000))
        answer: list[tuple[bytes, list[Entry]]] = self._link.call(
            lambda: self._client.xread(places, count=_AT_ONCE, block=block)
        )
        for key, entries in answer or ():
            stream = by_key[key]
            if not stream.absorb(key.decode(), entries):
                stream.catch_up()
            stream.tell()
