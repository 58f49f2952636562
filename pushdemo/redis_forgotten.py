"""What other nodes have deleted from the cache: a stream at Redis, which the reader brings, so that copies go too.

Run by: the reader's thread; `add` by any.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from pushdemo.redis_link import Link
from pushdemo.redis_store import RedisStore
from pushdemo.redis_topics import Entry


class Forgotten:
    """The stream of deletions; see Stream in redis_reader.py."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._key = link.key("forgotten")
        self._last = ""  # id of the newest entry that is known; the reader's thread alone uses it
        self._lock = threading.Lock()  # guards the next line
        self._stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()

    def add(self, store: RedisStore) -> None:
        """Tell this store."""
        with self._lock:
            self._stores.add(store)

    @property
    def place(self) -> tuple[str, str]:
        """See Stream."""
        return self._key, self._last or "0-0"

    def absorb(self, key: str, entries: Sequence[Entry]) -> bool:
        """See Stream."""
        for id, fields in entries:
            self._last = id.decode()
            self._forget(fields[b"f"].decode(), fields[b"d"].decode())
        return True

    def catch_up(self) -> None:
        """See Stream. Where so much was deleted that some of it has left the stream, all copies go."""
        if not self._last:
            newest = self._link.call(lambda: self._link.client.xrevrange(self._key, count=1))
            self._last = newest[0][0].decode() if newest else "0-0"
            return
        oldest = self._link.call(lambda: self._link.client.xrange(self._key, count=1))
        if oldest and self._last != "0-0" and _number(oldest[0][0]) > _number(self._last.encode()):
            self._last = ""  # from the newest on: the next look
            self._forget("", "")

    def tell(self) -> None:
        """Nobody else is to be told."""

    def _forget(self, function: str, digest: str) -> None:
        with self._lock:
            stores = list(self._stores)
        for store in stores:
            if function in ("", store.name):
                store.forget(digest)


def _number(id: bytes) -> tuple[int, ...]:
    return tuple(map(int, id.split(b"-")))
