"""What a node does at Redis every few seconds, for all of its topics at once. The reader's thread runs it.

A survey asks which topics have changed, a probe whether messages can be published; topics in use are touched, so that
they do not expire; what is declared is left where publishers outside of the application find it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pushdemo.redis.connection import Link
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.presence import Presence
from pushdemo.redis.scripts import DECLARE, FORMAT, KEPT, PUBLISH, SURVEY, TOUCH
from pushdemo.redis.topic import RedisTopic

_MOST = 2000  # topics that a survey tells of; where more have changed, all look
_STALE = 30.0  # seconds after which a survey cannot tell any more what has changed since the one before
_TOGETHER = 500  # topics that are touched by one call
_HOUR = 3600.0
_AGAIN = 5.0  # seconds until declarations that Redis has refused are left there again
_PROBE = "%probe"  # no name of a topic: see topics/pattern.py


class Declaration(NamedTuple):
    """What the application has said of a topic, or of the topics of a pattern."""

    pattern: str
    content_type: str
    history: int
    lifetime: float | None

    def text(self) -> str:
        """As it is kept at Redis."""
        return json.dumps({"content_type": self.content_type, "history": self.history, "lifetime": self.lifetime})


class Upkeep:
    """See Chores."""

    def __init__(self, link: Link, presence: Presence, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._presence = presence
        self._clock = clock
        self._survey = link.script(SURVEY, writes=False)
        self._touch = link.script(TOUCH, writes=False)
        self._declare = link.script(DECLARE)
        self._probe = link.script(PUBLISH, publishes=True)
        self._probing = RedisTopic(link, _PROBE, history=1, lifetime=60.0, pattern="probe")
        self._life, self._number = "", 0
        self._surveyed = float("-inf")
        self._lock = threading.Lock()  # guards the next two
        self._declared: dict[str, Declaration] = {}
        self._declare_due = float("-inf")
        self._topics: list[RedisTopic] = []  # that last while nobody listens: those without a lifetime

    def declare(self, declaration: Declaration) -> None:
        """Leave this at Redis, and see that it stays there. Any thread."""
        with self._lock:
            self._declared[declaration.pattern] = declaration
            self._declare_due = float("-inf")

    def survey(self) -> Sequence[str] | None:
        """See Chores. Also finds out whether messages can be published."""
        began = self._clock()
        self._probe_writes()
        answer = self._survey(
            [self._link.key(FORMAT, "clock"), self._link.key(FORMAT, "changes")],
            [self._life, self._number, self._link.key(FORMAT, "topic", ""), _MOST],
        )
        life, number, *changed = answer
        again = life.decode() == self._life and began - self._surveyed < _STALE
        if life.decode() != self._life:
            with self._lock:
                self._declare_due = float("-inf")  # flushed, it may be
        self._life, self._number, self._surveyed = life.decode(), int(number), began
        if not again or changed == [b"all"]:
            return None
        return [self._link.news(FORMAT, "topic", name.decode(errors="replace")) for name in changed[::4]]

    def turn(self, followers: Sequence[object]) -> None:
        """See Chores."""
        self._link.pool.trim()
        self._presence.turn(followers)
        now = self._clock()
        self._leave_declarations(now)
        topics = [each for each in followers if isinstance(each, RedisTopic) and each.touch_due <= now and each.wanted]
        for number in range(0, len(topics), _TOGETHER):
            self._touched(topics[number : number + _TOGETHER], now)

    def _touched(self, topics: Sequence[RedisTopic], now: float) -> None:
        self._touch(
            [key for topic in topics for key in (topic.key, topic.stream)],
            ["" if topic.lifetime is None else round(topic.lifetime * 1000) for topic in topics],
        )
        for topic in topics:
            topic.touch_due = now + min(_HOUR, (topic.lifetime or _HOUR) / 2)

    def _leave_declarations(self, now: float) -> None:
        with self._lock:
            if now < self._declare_due:
                return
            declared = list(self._declared.values())
            self._declare_due = now + _HOUR
        if declared:
            keys = [self._link.key(FORMAT, "declared", each.pattern) for each in declared]
            texts = [each.text() for each in declared]
            try:
                self._declare(
                    [*keys, self._link.key(FORMAT, "channels")], [KEPT, *texts, self._link.news(FORMAT, "topic", "")]
                )
            except RedisUnavailableError:
                with self._lock:
                    self._declare_due = min(self._declare_due, now + _AGAIN)
                if self._link.unreachable:
                    raise

    def _probe_writes(self) -> None:
        topic = self._probing
        keys, args = topic.publishing(topic.known(), os.urandom(8).hex(), "failing", b"")
        self._link.probe(self._probe.with_(keys[:2], args))
