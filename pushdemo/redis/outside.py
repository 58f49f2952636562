"""An application's topics as a process outside of it has them: to publish to, and no more. Any thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from pushdemo.redis.connection import Link
from pushdemo.redis.scripts import FORMAT
from pushdemo.redis.topic import RedisTopic
from pushdemo.redis.upkeep import Declaration
from pushdemo.topics.pattern import Reference

_KNOWN = 60.0  # seconds that a declaration is used before Redis is asked again


class Outside:
    """The topics that an application has declared at a Redis. Raises ValueError for a URL that will not do."""

    def __init__(self, url: str, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = Link(url, namespace, clock)
        self._clock = clock
        self._known: dict[str, tuple[Declaration, float]] = {}  # with when it was read; each access is one step

    def declared(self, pattern: str) -> Declaration:
        """What is declared of a topic. Raises KeyError, which names what there is; RedisUnavailableError."""
        known = self._known.get(pattern)
        if known and known[1] + _KNOWN > self._clock():
            return known[0]
        found = self._link.command("GET", self._link.key(FORMAT, "declared", pattern))
        if found is None:
            raise KeyError(f"no topic {pattern}; there are: {', '.join(sorted(self._patterns())) or 'none'}")
        declaration = Declaration(pattern=pattern, **json.loads(found))
        self._known[pattern] = declaration, self._clock()
        return declaration

    def topic(self, reference: Reference, declared: Declaration) -> RedisTopic:
        """A topic to publish to."""
        return RedisTopic(
            self._link,
            reference.name,
            content_type=declared.content_type,
            history=declared.history,
            pattern=declared.pattern,
            lifetime=declared.lifetime,
            keeper=_Nobody(),
            clock=self._clock,
        )

    def close(self) -> None:
        """Close the connections."""
        self._link.close()

    def _patterns(self) -> set[str]:
        prefix = self._link.key(FORMAT, "declared", "")
        found, cursor = set[str](), b"0"
        while True:
            cursor, keys = self._link.command("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
            found |= {key.decode(errors="replace").removeprefix(prefix) for key in keys}
            if cursor == b"0":
                return found


class _Nobody:
    """Keeps no mirror current: see Keeper."""

    def follow(self, topic: RedisTopic) -> None:
        """Nothing listens here."""

    def leave(self, topic: RedisTopic) -> None:
        """Nothing listens here."""
