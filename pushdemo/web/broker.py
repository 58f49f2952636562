"""Where topics and memorized values live: in the process, unless the ini names a Redis.

Runs while the application is configured, and whenever a topic is made or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pushdemo.cache.store import CachetoolsStore, Store, Timer
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.producer import Producer
from pushdemo.topics.topic import MessageProducer, Topic


class Ownership(Protocol):
    """Which process has a session, by the session's name. Raises ConnectionError where that cannot be known now."""

    def claim(self, name: str) -> bool:
        """Make the session this process's; False where it is another's."""

    def is_elsewhere(self, name: str) -> bool:
        """Return whether the session is another process's."""

    def renew(self, names: Sequence[str]) -> list[str]:
        """Keep the sessions this process's; return those that it has to close, or that are another's by now."""

    def release(self, names: Sequence[str]) -> None:
        """Give up this process's sessions."""

    def close(self, name: str) -> None:
        """Have the process that has the session close it."""


class Backend(Protocol):
    """What makes an application's topics, their producers, and the stores of memorized functions."""

    @property
    def ownership(self) -> Ownership | None:
        """What tells which process has a generator session; None where processes do not know of each other."""

    @property
    def trouble(self) -> str:
        """Why nothing can be published, in a sentence; empty where it can."""

    @property
    def warning(self) -> str:
        """What is wrong that is no reason to send clients elsewhere, in a sentence; empty where nothing is."""

    @property
    def figures(self) -> Mapping[str, float]:
        """What is shared with other nodes, in numbers: see web/prometheus.py for their names; none without others."""

    @property
    def errors(self) -> Mapping[str, int]:
        """How often what nodes share has failed, by the kind of error."""

    @property
    def pool(self) -> SourcePool:
        """The threads that run all sources."""

    def declare(self, pattern: str, *, content_type: str, history: int, lifetime: float | None) -> None:
        """The application has declared a topic, or those of a pattern."""

    def topic(
        self,
        name: str,
        *,
        content_type: str,
        history: int,
        history_bytes: int | None = None,
        lifetime: float | None = None,
        pattern: str = "",
    ) -> Topic:
        """Make a topic; see Topic. `lifetime` is how long it is remembered without clients, None for ever.

        Called under the catalog's lock for a topic of a pattern: it must not block.
        """

    def producer(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]],
        spread: bool = False,
    ) -> MessageProducer:
        """Make a producer; see Producer. It must not block."""

    def forget(self, topic: Topic) -> None:
        """Let go what was kept for a topic that nobody needs any more. It must not block."""

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        """See Store."""

    def hear_orders(self, end: Callable[[str | None, str | None], None]) -> None:
        """Call `end(owner, topic)` for each order that another node has given."""

    def order_end(self, owner: str | None, topic: str | None) -> None:
        """Have the other nodes end the clients of an owner, of a topic, or of both. Raises ConnectionError."""

    def count_listeners(self, topic: str, here: int) -> int:
        """How many clients listen to the topic of this name on all nodes; `here` of them in this process."""

    def start(self, topics: Iterable[Topic]) -> None:
        """The application is configured, these are its topics, and its first request may come."""

    def close(self) -> None:
        """The application stops; its topics have been closed."""


class InProcess:
    """The backend without any other service: nodes share nothing."""

    ownership = None
    trouble = warning = ""
    figures: Mapping[str, float] = {}
    errors: Mapping[str, int] = {}

    def __init__(self, pool: SourcePool) -> None:
        self.pool = pool

    def declare(self, pattern: str, *, content_type: str, history: int, lifetime: float | None) -> None:
        """Nothing to do."""

    def topic(
        self,
        name: str,
        *,
        content_type: str,
        history: int,
        history_bytes: int | None = None,
        lifetime: float | None = None,
        pattern: str = "",
    ) -> Topic:
        return Topic(
            name,
            content_type=content_type,
            history=history,
            history_bytes=history_bytes,
            pattern=pattern,
            clock=self.pool.clock,
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
        return Producer(topic, source, interval, pool=self.pool, around=around, spread=spread)

    def forget(self, topic: Topic) -> None:
        """Nothing to do."""

    def store(self, name: str, maxsize: int, timer: Timer) -> Store:
        return CachetoolsStore(name, maxsize, timer)

    def hear_orders(self, end: Callable[[str | None, str | None], None]) -> None:
        """Nothing to do."""

    def order_end(self, owner: str | None, topic: str | None) -> None:
        """Nothing to do."""

    def count_listeners(self, topic: str, here: int) -> int:
        return here

    def start(self, topics: Iterable[Topic]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
