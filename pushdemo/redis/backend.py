"""Topics and memorized values that several nodes share, at one Redis. Imported only where `pushdemo.redis_url` is set.

Here the parts are put together: the way to Redis (redis/connection.py), topics that mirror streams (redis/topic.py),
what keeps them so (redis/reader.py, redis/upkeep.py), one producer for each topic (redis/leases.py), the store of
values (redis/store.py), the processes of generator sessions (redis/ownership.py). They alone know the `redis` package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from pushdemo.cache.functions import may_pickle
from pushdemo.cache.store import CachetoolsStore, Store, Timer
from pushdemo.redis.connection import Link
from pushdemo.redis.leases import Leases
from pushdemo.redis.ownership import SessionOwnership
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.presence import Orders, Presence
from pushdemo.redis.producer import RedisProducer
from pushdemo.redis.reader import Reader
from pushdemo.redis.renewals import Renewals
from pushdemo.redis.store import Deletions, RedisStore
from pushdemo.redis.topic import RedisTopic
from pushdemo.redis.upkeep import Declaration, Upkeep
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.topic import MessageProducer, Topic


class RedisBackend:
    """See Backend. Raises ValueError for a URL that will not do, without repeating it."""

    def __init__(
        self,
        url: str,
        namespace: str = "pushdemo",
        clock: Callable[[], float] = time.monotonic,
        *,
        pool: SourcePool | None = None,
        stale: float = 10.0,
    ) -> None:
        self.namespace = namespace
        self.pool = pool or SourcePool(clock=clock)
        self._link = Link(url, namespace, clock)
        self._clock = clock
        self._presence = Presence(self._link)
        self._upkeep = Upkeep(self._link, self._presence, clock)
        self._reader = Reader(self._link, self._upkeep, stale=stale, clock=clock)
        self._leases = Leases(self._link, clock)
        self._claims = Renewals()
        self._deletions = Deletions(self._link)
        self._reader.follow(self._deletions)
        self._reader.follow(self._leases)
        self._orders = Orders(self._link, lambda: self._presence.node)
        self._reader.follow(self._orders)
        self.ownership = SessionOwnership(self._link)

    @property
    def trouble(self) -> str:
        return self._link.trouble

    @property
    def warning(self) -> str:
        return self._link.warning

    @property
    def figures(self) -> Mapping[str, float]:
        pool = self._link.pool
        return {
            "leases_held": self._leases.held,
            "leases_lost": self._leases.lost,
            "topics_followed": self._reader.following,
            "reader_lag_seconds": round(self._reader.lag, 3),
            "connections_in_use": pool.in_use,
            "connections_idle": pool.idle,
            "connections_limit": pool.size,
        }

    @property
    def errors(self) -> Mapping[str, int]:
        return self._link.errors

    def topic(
        self,
        name: str,
        *,
        content_type: str,
        history: int,
        history_bytes: int | None = None,
        lifetime: float | None = None,
        pattern: str = "",
    ) -> RedisTopic:
        return RedisTopic(
            self._link,
            name,
            content_type=content_type,
            history=history,
            history_bytes=history_bytes,
            pattern=pattern,
            lifetime=lifetime,
            keeper=self._reader,
            clock=self._clock,
        )

    def producer(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]],
        spread: bool = False,
    ) -> MessageProducer:
        assert isinstance(topic, RedisTopic)
        return RedisProducer(self._leases, topic, source, interval, pool=self.pool, around=around, spread=spread)

    def declare(self, pattern: str, *, content_type: str, history: int, lifetime: float | None) -> None:
        self._upkeep.declare(Declaration(pattern, content_type, history, lifetime))

    def forget(self, topic: Topic) -> None:
        assert isinstance(topic, RedisTopic)
        self._reader.forget(topic)

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        if "<" in name:  # <locals>, <lambda>: several functions may have this name, and each its own values
            return CachetoolsStore(name, maxsize, timer)
        pickles = may_pickle(name)
        listens = self._reader.resume
        store = RedisStore(self._link, self._claims, name, maxsize, timer, may_pickle=pickles, listens=listens)
        self._deletions.add(store)
        return store

    def hear_orders(self, end: Callable[[str | None, str | None], None]) -> None:
        self._orders.end = end

    def order_end(self, owner: str | None, topic: str | None) -> None:
        self._orders.give(owner, topic)

    def count_listeners(self, topic: str, here: int) -> int:
        try:
            return self._presence.count(topic, here)
        except RedisUnavailableError:  # it is in the log
            return here

    def start(self, topics: Iterable[Topic]) -> None:
        with suppress(RedisUnavailableError):  # the log knows, and the reader goes on trying
            self._upkeep.survey()
        self._reader.start()

    def close(self) -> None:
        """Let the leases go, so that other nodes take over at once."""
        self._claims.close()
        self._reader.close()
        with suppress(RedisUnavailableError):  # then they expire
            self._leases.close()
        self._link.close()
