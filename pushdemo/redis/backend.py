"""Topics and memorized values that several nodes share, at one Redis. Imported only where `pushdemo.redis_url` is set.

Here the parts are put together: the way to Redis (redis/connection.py), topics that mirror streams (redis/topic.py) and
what brings them news (redis/listener.py), one producer for each topic (redis/leases.py), the store of values
(redis/store.py), the processes of generator sessions (redis/ownership.py). They alone know the `redis` package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

from pushdemo.cache.functions import may_pickle
from pushdemo.cache.store import CachetoolsStore, Store, Timer
from pushdemo.redis.connection import Link, RedisUnavailableError
from pushdemo.redis.leases import RedisProducer, Renewals
from pushdemo.redis.listener import Reader
from pushdemo.redis.ownership import SessionOwnership
from pushdemo.redis.store import Deletions, RedisStore
from pushdemo.redis.topic import RedisTopic
from pushdemo.topics.topic import Source, Topic


class RedisBackend:
    """See Backend. Raises ValueError for a URL that will not do, without repeating it."""

    def __init__(self, url: str, namespace: str = "pushdemo", clock: Callable[[], float] = time.monotonic) -> None:
        self.namespace = namespace
        self._link = Link(url, namespace, clock)
        self._clock = clock
        self._reader = Reader(self._link, clock)
        self._renewals = Renewals()
        self._producers: list[RedisProducer] = []
        self._deletions = Deletions(self._link)
        self._reader.follow(self._deletions)
        self.ownership = SessionOwnership(self._link)

    @property
    def trouble(self) -> str:
        return self._link.trouble

    def topic(self, name: str, *, content_type: str, history: int) -> RedisTopic:
        return RedisTopic(self._link, name, content_type=content_type, history=history, clock=self._clock)

    def producer(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]],
    ) -> Source:
        assert isinstance(topic, RedisTopic)
        producer = RedisProducer(self._link, self._renewals, topic, source, interval, around=around)
        self._producers.append(producer)
        return producer

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        if "<" in name:  # <locals>, <lambda>: several functions may have this name, and each its own values
            return CachetoolsStore(name, maxsize, timer)
        pickles = may_pickle(name)
        store = RedisStore(self._link, self._renewals, name, maxsize, timer, may_pickle=pickles)
        self._deletions.add(store)
        return store

    def start(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            if isinstance(topic, RedisTopic):
                self._reader.follow(topic)
        self._reader.start()

    def close(self) -> None:
        """Let the leases go, so that other nodes take over at once."""
        self._renewals.close()
        self._reader.close()
        with suppress(RedisUnavailableError):  # then they expire
            for producer in self._producers:
                producer.release()
        self._link.close()
