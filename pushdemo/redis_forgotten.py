"""What other nodes have deleted from the cache, so that copies go too: the news of it, and a count of all deletions.

Run by: the reader's thread; `add` by any.
"""

from __future__ import annotations

import threading
import weakref

from pushdemo.redis_link import Fields, Link
from pushdemo.redis_store import RedisStore


class Forgotten:
    """Follows the deletions; see Follower in redis_reader.py."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.key = link.key("deletions")
        self._count: int | None = None  # deletions that are known; the reader's thread alone uses it
        self._lock = threading.Lock()  # guards the next line
        self._stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()

    def add(self, store: RedisStore) -> None:
        """Tell this store."""
        with self._lock:
            self._stores.add(store)

    def absorb(self, news: Fields) -> bool:
        """See Follower."""
        count = int(news[b"c"])
        if self._count is None or count > self._count + 1:
            return False
        if count > self._count:
            self._count = count
            self._forget(news[b"b"].decode(), news[b"d"].decode())
        return True

    def catch_up(self) -> None:
        """See Follower. Which deletions were missed nobody knows any more: all copies go."""
        count = int(self._link.call(lambda: self._link.client.get(self.key)) or 0)
        missed = self._count not in (None, count)
        self._count = count
        if missed:
            self._forget("", "")

    def tell(self) -> None:
        """Nobody else is to be told."""

    def _forget(self, function: str, digest: str) -> None:
        with self._lock:
            stores = list(self._stores)
        for store in stores:
            if function in ("", store.name):
                store.forget(digest)
