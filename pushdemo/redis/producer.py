"""A producer of a topic that nodes share: it runs its source while this node has clients and the topic's lease.

See redis/leases.py for the theory of operation. What a node makes while Redis does not take it waits with the source.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from pushdemo.redis.connection import Call, Fields, Script
from pushdemo.redis.leases import Leases
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.topic import Lease, LeaseLostError, RedisTopic
from pushdemo.topics.message import EntryKind
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.producer import LINGER, Producer

log = logging.getLogger("pushdemo")

_AGAIN = 0.25  # seconds before a message that Redis has not taken is tried again


class RedisProducer(Producer):
    """A producer that runs its source while this node has clients and the topic's lease; see Producer.

    `lease` is what it has, or None; `holder` is the node that has it instead, as far as this one has asked.
    """

    topic: RedisTopic

    def __init__(
        self,
        leases: Leases,
        topic: RedisTopic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        pool: SourcePool,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        linger: float = LINGER,
        spread: bool = False,
    ) -> None:
        super().__init__(topic, source, interval, pool=pool, around=around, linger=linger, spread=spread)
        self._leases = leases
        self.lease: Lease | None = None  # under the topic's lock, as are the next two
        self.holder = ""
        self._offered = False  # another node may take the lease
        # Of the thread that is at work: what Redis has not taken yet, its kind and its nonce, and when to go on then.
        self._unsaid: tuple[bytes, EntryKind | Literal["end"], str] | None = None
        self._go_on = 0.0
        topic.lease_news = self._lease_news

    def begin_in_child(self) -> None:
        """See MessageProducer."""
        super().begin_in_child()
        self.lease = self._unsaid = None
        self.holder, self._offered = "", False

    # -- called by the topic, under its lock

    @property
    def fresh(self) -> bool:
        """See MessageProducer."""
        if self.lease:
            return super().fresh
        return bool(self.holder) or self.topic.clock() < self._due_after_newest()

    def start(self) -> None:
        """The first client here has come: compete for the lease."""
        if self.lease:
            super().start()
        self._leases.contest(self)

    def stop(self) -> None:
        """The last client here has gone."""
        super().stop()
        self._leases.review()

    # -- the reader's thread

    def _lease_news(self, news: Fields) -> None:
        """The lease is to be had, or somebody has taken it."""
        if news[b"k"] == b"free":
            if self.wants_lease and not self.lease:
                self._leases.contest(self)
            return
        if news[b"h"].decode() == self._leases.node:
            return
        with self.topic.lock:
            lease = self.lease
            if lease and lease.epoch == news[b"l"].decode() and lease.fence < int(news[b"f"]):
                self._lose(lease)

    # -- the thread of the leases

    @property
    def wants_lease(self) -> bool:
        """See Contender."""
        topic = self.topic
        return topic.clients > 0 and not (topic.ended or topic.closed or self.closed)

    @property
    def has_lease(self) -> bool:
        """See Contender."""
        return self.lease is not None and not self._offered

    def reviewed(self) -> Lease | None:
        """See Contender."""
        lease, topic = self.lease, self.topic
        if lease is None:
            return None
        if self.wants_lease and lease.epoch == topic.epoch and not self._offered:
            return None
        with topic.lock:
            if lease.epoch != topic.epoch:  # fences begin anew with each life: in this one it may be another node's
                self._lose(lease)
                if self.wants_lease:
                    self._leases.contest(self)
                return None
            if self.wants_lease:  # a client has come back
                self._leases.contest(self)
                return None
            if topic.ended:  # by another node: nobody has told the source
                self.halt()
            if not self.running:
                self.lease = None
            if self._offered:
                return None
            self._offered = True
            return lease

    def retired(self) -> bool:
        """See Contender."""
        if self.wants_lease or self.running or self.lease is not None:
            return False
        with self.topic.lock:
            if not self.wants_lease:
                self.holder = ""
            return not self.wants_lease

    def offering(self, script: Script, lease: Lease, node: str) -> Call:
        """See Contender."""
        return script.with_([self.topic.key], [lease.fence, node, self.topic.channel])

    def taking(self, script: Script, node: str, prefix: str) -> Call:
        """See Contender."""
        topic, lease = self.topic, self.lease
        known = topic.known()
        fence = lease.fence if lease and lease.epoch == known[0] else ""
        return script.with_([topic.key, topic.stream], [*known, node, prefix, topic.channel, fence])

    def answered(self, call: Call, answer: Sequence[Any], node: str) -> None:
        """See Contender."""
        epoch, fence, holder = answer[0].decode(), answer[4], answer[5].decode()
        topic, before = self.topic, self.lease
        topic.take_over(call, answer)  # what whoever had it before has said: the news of it may be on their way
        topic.tell()
        with topic.lock:
            self.holder = holder if holder != node else ""
            if holder == node and epoch == topic.epoch:
                self._win(Lease(epoch, fence))
            elif before is not None and holder != node:
                self._lose(before)

    def _win(self, lease: Lease) -> None:
        """Run the source; under the topic's lock."""
        held, self.lease, self._offered = self.lease, lease, False
        if not self.wants_lease:  # any more
            return
        if not (held and self.running):
            self.due = self._due_after_newest()  # on the beat of whoever had it before
            log.info("this node makes the messages of topic %s", self.topic.name)
        super().start()

    def _lose(self, lease: Lease) -> None:
        """The source's thread is to end, at its next look; under the topic's lock."""
        if self.lease != lease:
            return
        self.lease, offered, self._offered = None, self._offered, False
        self.halt()
        if self.running and not offered:
            self._leases.count_loss()
        log.info("another node may make the messages of topic %s now", self.topic.name)

    def _due_after_newest(self) -> float:
        newest = self.topic.newest_message()
        return newest.time + self.interval if newest else 0.0

    # -- the thread that runs the source

    def _step(self) -> None:
        """Have the source make one value, once Redis has taken the one before."""
        if self._unsaid:
            self._say(*self._unsaid)
        else:
            super()._step()

    def _end_run(self) -> None:
        super()._end_run()
        if self._unsaid and self._unsaid[1] != "end":  # the next run says what is so by then
            self._unsaid = None

    def _publish(self, value: Any) -> None:
        self._say(self.topic.encode(self.topic.content_type, value), "message")

    def _finish(self) -> None:
        self._say(b"", "end")

    def _tell_failing(self) -> None:
        self._say(b"", "failing")

    def _say(self, body: bytes, kind: EntryKind | Literal["end"], nonce: str = "") -> None:
        """Publish under the lease, and soon again where Redis does not take it; without it, another node does."""
        lease, again = self.lease, self._unsaid
        nonce = nonce or os.urandom(8).hex()
        self._unsaid = None
        if lease is None or self.closed:
            return
        try:
            self.topic.append(body, kind, lease, nonce)
        except LeaseLostError:
            with self.topic.lock:
                self._lose(lease)
                if self.wants_lease:
                    self._leases.contest(self)
        except RedisUnavailableError:
            with self.topic.lock:
                self._unsaid = body, kind, nonce
                if not again:
                    self._go_on = self.due
                self.due = self.topic.clock() + _AGAIN
            return
        except RuntimeError:
            if not (self.topic.ended or self.topic.closed):  # by somebody else, a moment ago
                raise
        if again:
            with self.topic.lock:
                self.due = max(self._go_on, self.topic.clock())
