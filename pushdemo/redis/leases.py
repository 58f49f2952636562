"""Leases at Redis: one producer in the cluster for each topic, and the threads that renew what this process holds.

Theory of operation. A topic's lease is in its state: the node that holds it, and a fence, which grows with each lease.
It lasts as long as the node's own key, which expires: one renewal for all leases of a node, however many. A node that
dies is followed by another when its key is gone; one that slept through that publishes nothing any more, since an entry
is only taken under the newest fence.

A producer is

- idle, where nobody here listens and it has no lease: nothing is spent;
- waiting, where somebody listens and another node has the lease: it tries to get it when that node is gone, when the
  lease is offered, and now and then in case neither was heard;
- leading, where somebody listens and it has the lease: its source runs;
- lingering, when the last client has gone and the source still runs: the lease is offered, and good until another node
  takes it.

A new life of the topic ends all leases: fences begin anew. A lease is only lost to another node or to a new life; while
Redis cannot be reached, the source waits with the message at hand.

`Leases` is one thread for all producers of a node, `Renewals` one for the claims of its memorized values. A producer's
`lease` and `holder` are under its topic's lock; the thread of the leases alone takes and offers.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pushdemo.forking import call_in_child
from pushdemo.redis import renewals
from pushdemo.redis.connection import Call, Fields, Link, Script
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.renewals import Renewals
from pushdemo.redis.scripts import FORMAT, LEAVE, OFFER, RENEW, TAKE
from pushdemo.redis.topic import Lease

CHUNK = 200  # leases that are asked for in one round trip
_ANYWAY = 20  # of those that wait, how many try at each beat without a reason


class Contender(Protocol):
    """What competes for the lease of a topic: a producer (redis/producer.py)."""

    lease: Lease | None  # what it has; under the topic's lock, as is the next
    holder: str  # the node that has the lease instead, as far as this one has asked

    @property
    def wants_lease(self) -> bool:
        """Whether the source should run here."""

    @property
    def has_lease(self) -> bool:
        """Whether the source may run here, and no other node has been offered that."""

    @property
    def running(self) -> bool:
        """Whether the source runs."""

    def reviewed(self) -> Lease | None:
        """Give up what is of no use any more; the lease, where it is to be offered to others."""

    def retired(self) -> bool:
        """Whether it needs no lease any more, nor has one."""

    def offering(self, script: Script, lease: Lease, node: str) -> Call:
        """What tells Redis and other nodes that the lease is to be had."""

    def taking(self, script: Script, node: str, prefix: str) -> Call:
        """What asks Redis for the lease."""

    def answered(self, call: Call, answer: Sequence[Any], node: str) -> None:
        """Redis has said who holds the lease."""


class Leases:
    """The leases of one node, for those of its producers that have one or want one. A follower: see redis/reader.py."""

    current = True
    wanted = True

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self.channel = link.news(FORMAT, "nodes")
        self.lost = 0  # leases that another node has taken from a source that ran here; under the lock
        self._link = link
        self._clock = clock
        self._prefix = link.key(FORMAT, "node", "")
        self._renew = link.script(RENEW)
        self._take = link.script(TAKE)
        self._offer = link.script(OFFER, writes=False)  # a full Redis takes it
        self._leave = link.script(LEAVE, writes=False)
        self._renewals = Renewals("pushdemo-redis-leases")
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin as a node of its own, without leases."""
        self.node = secrets.token_hex(8)
        self._lock = threading.Lock()  # guards the next two
        self._members: dict[Contender, None] = {}
        self._to_try: dict[Contender, None] = {}
        self._anyway: deque[Contender] = deque()  # whose turn it is to try without a reason; the thread's own
        self._offers: list[Call] = []  # that Redis has yet to take; the thread's own
        self._renewed = float("-inf")  # when the node's key was last renewed; the thread's own

    # -- any thread

    def contest(self, producer: Contender) -> None:
        """Get it the lease, as soon as that is to be had; may be called under the topic's lock."""
        with self._lock:
            self._members[producer] = None
            self._to_try[producer] = None
        self._renewals.add(self._beat)

    def review(self) -> None:
        """Something has changed that a beat looks at."""
        self._renewals.ring()

    @property
    def held(self) -> int:
        """How many leases this node has."""
        return sum(producer.lease is not None for producer in self._all())

    def close(self) -> None:
        """The application stops: other nodes may take over at once. Raises RedisUnavailableError."""
        self._renewals.close()
        if self._renewed > float("-inf"):
            self._leave([self._prefix + self.node], [self.channel, self.node])

    # -- the reader's thread

    def absorb(self, news: Fields) -> bool:
        """A node has stopped: what it had is to be had."""
        gone = news[b"b"].decode()
        self._retry(producer for producer in self._all() if producer.holder == gone)
        return True

    def look(self) -> Call:
        """Nothing that was missed matters: a beat finds out which nodes are gone."""
        return self._renew.with_([self._prefix + self.node], [_milliseconds(renewals.LEASE_TIME)])

    def take_over(self, call: Call, answer: Sequence[object]) -> None:
        """Nothing to do."""

    def tell(self) -> None:
        """Nobody wants to know."""

    def cut_off(self, cut: bool) -> None:
        """Nobody wants to know."""

    # -- the thread of the leases

    def _beat(self) -> None:
        """Renew what this node has, and get what it wants. Raises RedisUnavailableError."""
        members = self._all()
        for producer in members:
            if (lease := producer.reviewed()) is not None:
                self._offers.append(producer.offering(self._offer, lease, self.node))
            self._forget(producer)
        if not members and not self._offers:
            self._renewals.discard(self._beat)
            with self._lock:
                if self._members:  # a moment ago
                    self._renewals.add(self._beat)
            return
        self._renew_all(members)
        self._make_offers()
        while chunk := self._chunk():
            self._try(chunk)
            self._renew_all(members)

    def _make_offers(self) -> None:
        """Let other nodes have what this one needs no more: as often as it takes, since nobody offers it again."""
        while offers := self._offers[:CHUNK]:
            answers = self._link.ask(offers)
            refused = [each for each in zip(offers, answers, strict=True) if isinstance(each[1], RedisUnavailableError)]
            self._offers[: len(offers)] = [call for call, _ in refused]
            if refused:
                raise refused[0][1]

    def _renew_all(self, members: Sequence[Contender]) -> None:
        if self._clock() < self._renewed + renewals.BEAT / 2:
            return
        holders = list({producer.holder for producer in members if producer.holder and producer.lease is None})
        keys = [self._prefix + self.node, *(self._prefix + holder for holder in holders)]
        there = self._renew(keys, [_milliseconds(renewals.LEASE_TIME)])
        self._renewed = self._clock()
        gone = {holder for holder, is_there in zip(holders, there, strict=True) if not is_there}
        self._retry(producer for producer in members if producer.holder in gone)
        if not self._anyway:
            self._anyway.extend(producer for producer in members if producer.wants_lease and producer.lease is None)
        self._retry([self._anyway.popleft() for _ in range(min(_ANYWAY, len(self._anyway)))], ring=False)

    def _chunk(self) -> list[Contender]:
        with self._lock:
            chunk = list(self._to_try)[:CHUNK]
            for producer in chunk:
                del self._to_try[producer]
        return [producer for producer in chunk if producer.wants_lease and not producer.has_lease]

    def _try(self, chunk: Sequence[Contender]) -> None:
        calls = [producer.taking(self._take, self.node, self._prefix) for producer in chunk]
        for producer, call, answer in zip(chunk, calls, self._link.ask(calls), strict=True):
            if not isinstance(answer, RedisUnavailableError):
                producer.answered(call, answer, self.node)

    def _retry(self, producers: Iterable[Contender], *, ring: bool = True) -> None:
        with self._lock:
            before = len(self._to_try)
            self._to_try.update(dict.fromkeys(producers))
            more = len(self._to_try) > before
        if more and ring:
            self._renewals.ring()

    def _forget(self, producer: Contender) -> None:
        if not producer.retired():
            return
        with self._lock:
            self._members.pop(producer, None)
        if producer.wants_lease:  # a moment ago
            self.contest(producer)

    def _all(self) -> list[Contender]:
        with self._lock:
            return list(self._members)

    def count_loss(self) -> None:
        """Another node has taken over from a source that ran here."""
        with self._lock:
            self.lost += 1


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
