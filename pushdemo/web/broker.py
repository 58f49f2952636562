"""Where topics and memorized values live: in the process, unless the ini names a Redis. What the add-on makes them by.

Runs while the application is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pushdemo.cache.store import CachetoolsStore, Store, Timer
from pushdemo.topics.producer import Producer
from pushdemo.topics.topic import Source, Topic
from pushdemo.web.sessions import Ownership


class Backend(Protocol):
    """What makes an application's topics, their sources, and the stores of memorized functions."""

    @property
    def ownership(self) -> Ownership | None:
        """What tells which process has a generator session; None where processes do not know of each other."""

    @property
    def trouble(self) -> str:
        """Why the application is not ready for clients as it should be; empty where it is."""

    def topic(self, name: str, *, content_type: str, history: int) -> Topic:
        """See Topic."""

    def producer(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]],
    ) -> Source:
        """See Producer."""

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        """See Store."""

    def start(self, topics: Iterable[Topic]) -> None:
        """The application is configured, these are its topics, and its first request may come."""

    def close(self) -> None:
        """The application stops; its topics have been closed."""


class InProcess:
    """The backend without any other service: nodes share nothing."""

    ownership = None
    trouble = ""

    def topic(self, name: str, *, content_type: str, history: int) -> Topic:
        return Topic(name, content_type=content_type, history=history)

    def producer(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]],
    ) -> Source:
        return Producer(topic, source, interval, around=around)

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        return CachetoolsStore(name, maxsize, timer)

    def start(self, topics: Iterable[Topic]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
