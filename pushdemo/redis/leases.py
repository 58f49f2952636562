"""Leases at Redis: one producer in the cluster for each topic, and the thread that renews what this process holds.

A lease expires, so that another node takes over when its holder dies; its fence tells the holder's messages from those
of whoever had it before, so that a node which slept through its loss publishes nothing any more.

`Renewals` is one thread for the whole application; a producer's `beat` runs in it, all else in the threads that
topics/producer.py names.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from pushdemo.forking import call_in_child
from pushdemo.redis.connection import Link, RedisUnavailableError
from pushdemo.redis.scripts import LEASE, RELEASE
from pushdemo.redis.topic import Lease, LeaseLostError, RedisTopic
from pushdemo.topics import content
from pushdemo.topics.message import EntryKind
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.producer import LINGER, Producer

log = logging.getLogger("pushdemo")

LEASE_TIME = 2.0  # seconds until a lease that is not renewed is another's
BEAT = 0.5  # seconds between two renewals, or two tries for what another has
_AGAIN = 0.25  # seconds before a message that Redis has not taken is tried again


class Renewals:
    """Calls the beats that it has been given, every BEAT seconds and whenever it is rung."""

    def __init__(self) -> None:
        self._closed = False
        self._after_fork()
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # Guards all here. An interrupt in a condition's own `with` would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._beats: dict[Callable[[], None], None] = {}
        self._thread: threading.Thread | None = None
        self._rung = False

    def add(self, beat: Callable[[], None], *, at_once: bool = True) -> None:
        """Call `beat` from now on. It may block; what it raises does not end it."""
        with self._lock:
            self._rung = self._rung or at_once or not self._beats
            self._beats[beat] = None
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="pushdemo-redis-leases", daemon=True)
                thread.start()  # raises RuntimeError where the system has none left: `add` is called again then
                self._thread = thread
            self._changed.notify_all()

    def discard(self, beat: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._beats.pop(beat, None)

    def close(self) -> None:
        """The application stops."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._rung or self._closed, BEAT if self._beats else None)
                if self._closed:
                    return
                self._rung = False
                beats = list(self._beats)
            for beat in beats:
                try:
                    beat()
                except RedisUnavailableError:
                    break  # none of the others would fare better
                except Exception:
                    log.exception("the renewal of a lease met an error and goes on")


class RedisProducer(Producer):
    """A producer that runs its source while this node has clients and the topic's lease; see Producer.

    `lease` is what it holds, or None; `keys` are the lease's key and that of the wish to have it.
    """

    topic: RedisTopic

    def __init__(
        self,
        link: Link,
        renewals: Renewals,
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
        self._renewals = renewals
        self._take = link.script(LEASE)
        self._give_back = link.script(RELEASE)
        self.keys = [link.key("lease", topic.name), link.key("wanted", topic.name)]
        self.lease: Lease | None = None  # under the topic's lock, as is the next
        self._elsewhere = False  # another node has the lease, as far as this one has asked

    # -- called by the topic, under its lock

    @property
    def fresh(self) -> bool:
        """See MessageProducer."""
        if self.lease:
            return super().fresh
        return self._elsewhere or self.topic.clock() < self._due_after_newest()

    def start(self) -> None:
        """The first client here has come: compete for the lease."""
        if self.lease:
            super().start()
        self._renewals.add(self.beat)

    # -- the thread of the renewals

    def beat(self) -> None:
        """Renew the lease, or try to get it; let it go when nobody here listens. Raises RedisUnavailableError."""
        topic = self.topic
        with topic.changed:
            wanted = topic.clients > 0 and not (topic.ended or topic.closed or self.closed)
            lease, running = self.lease, self.running
            if not wanted and lease is None:
                self._renewals.discard(self.beat)
                self._elsewhere = False
                return
        if not wanted and not running:
            self.release()
            return
        held, others = self._ask(lease)
        with topic.changed:
            self._elsewhere = held is None
        if lease and not held:
            self._lose(lease)
        elif lease and others and not wanted:
            self.release()  # nobody here listens, and somebody there does: they need not wait until the linger is over
        elif held and not lease:
            topic.catch_up()  # with whoever had it before: the news of the last message may be on their way
            topic.tell()
            self._win(held)

    def _ask(self, lease: Lease | None) -> tuple[Lease | None, bool]:
        """The lease of this node, renewed or new, if it has it; and whether others want it."""
        topic = self.topic
        while True:
            known = topic.known()
            if lease and lease.epoch != known[0]:
                return None, False  # fences begin anew with each life: in this one it may be another node's
            epoch, fence, others = self._take(
                [topic.key, topic.stream(known[0]), *self.keys],
                [*known, lease.fence if lease else "", round(LEASE_TIME * 1000), round(BEAT * 3000)],
            )
            if epoch.decode() == known[0]:
                return Lease(known[0], fence) if fence else None, bool(others)
            # A new life: whatever lease was held was of the one before.
            topic.catch_up()
            topic.tell()
            if fence:
                self._give_back(self.keys[:1], [fence])

    def release(self) -> None:
        """Let the lease go, so that another node need not wait until it expires. Raises RedisUnavailableError."""
        lease = self.lease
        if lease:
            self._lose(lease)
            self._give_back(self.keys[:1], [lease.fence])

    def _win(self, lease: Lease) -> None:
        with self.topic.changed:
            self.lease = lease
            self.due = self._due_after_newest()  # on the beat of whoever had it before
            super().start()
        log.info("this node makes the messages of topic %s", self.topic.name)

    def _lose(self, lease: Lease) -> None:
        """The source's thread is to end, at its next look."""
        with self.topic.changed:
            if self.lease != lease:
                return
            self.lease = None
            self.halt()
        log.info("another node may make the messages of topic %s now", self.topic.name)

    def _due_after_newest(self) -> float:
        newest = self.topic.newest_message()
        return newest.time + self.interval if newest else 0.0

    # -- the source's own thread

    def _publish(self, value: Any) -> None:
        self._say(content.body(self.topic.content_type, value), "message")

    def _finish(self) -> None:
        self._say(b"", "end")

    def _tell_failing(self) -> None:
        self._say(b"", "failing")

    def _say(self, body: bytes, kind: EntryKind | Literal["end"]) -> None:
        """Publish under the lease, as soon as Redis takes it; without the lease it is another node's to say."""
        nonce = os.urandom(8).hex()
        while (lease := self.lease) and not self.closed:
            try:
                self.topic.append(body, kind, lease, nonce)
                return
            except LeaseLostError:
                self._lose(lease)
            except RuntimeError:
                if not (self.topic.ended or self.topic.closed):  # by somebody else, a moment ago
                    raise
                return
            except RedisUnavailableError:
                with self.topic.changed:
                    self.topic.changed.wait(_AGAIN)
