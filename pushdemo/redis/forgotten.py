"""What other nodes have deleted from the cache, so that copies go too: the news of it, and what was deleted last.

Run by: the reader's thread; `add` by any.
"""

from __future__ import annotations

import threading
import weakref

from pushdemo.redis.connection import Fields, Link
from pushdemo.redis.store import RedisStore


class Forgotten:
    """Follows the deletions; see Follower in redis/listener.py."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.key = link.key("deletions")
        self._known: tuple[int, bytes] | None = None  # the newest deletion that is; the reader's thread alone uses it
        self._lock = threading.Lock()  # guards the next line
        self._stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()

    def add(self, store: RedisStore) -> None:
        """Tell this store."""
        with self._lock:
            self._stores.add(store)

    def absorb(self, news: Fields) -> bool:
        """See Follower."""
        number = int(news[b"c"])
        if self._known is None or (number >= self._known[0] and self._known[1] not in (news[b"p"], news[b"n"])):
            return False
        if number > self._known[0]:
            self._known = number, news[b"n"]
            self._forget(news[b"b"].decode(), news[b"d"].decode())
        return True

    def catch_up(self) -> None:
        """See Follower. Which deletions were missed nobody knows any more: all copies go."""
        found = self._link.call(lambda: self._link.client.get(self.key))
        number, _, token = (found or b"0 ").partition(b" ")
        if self._known != (known := (int(number), token)):
            self._known = known
            self._forget("", "")

    def tell(self) -> None:
        """Nobody else is to be told."""

    def _forget(self, function: str, digest: str) -> None:
        with self._lock:
            stores = list(self._stores)
        for store in stores:
            if function in ("", store.name):
                store.forget(digest)
