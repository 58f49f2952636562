"""The reader: one thread and one connection that bring all that an application follows what the cluster publishes.

It knows names and fields; what they mean, those that it brings them to know (redis/topic.py, redis/store.py). What
is said on the channel is only news: it may be lost with the connection, and what it tells of is at Redis all the same.
So whoever follows looks there when a connection begins and whenever news do not follow those before. The thread alone
listens; `follow` is called before it starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pushdemo.forking import call_in_child
from pushdemo.redis.connection import Fields, Link, ListenerLostError, RedisUnavailableError

log = logging.getLogger("pushdemo")

LOOK = 5.0  # seconds between two looks while all is well, in case news went where this connection does not reach
_AGAIN = 0.5  # seconds before the next try of a Redis that is gone


class Follower(Protocol):
    """What is kept as Redis has it."""

    @property
    def key(self) -> str:
        """By which news are known as its own."""

    def absorb(self, news: Fields) -> bool:
        """Take over news; False where `catch_up` must find out what they follow."""

    def catch_up(self) -> None:
        """Take over what Redis has. Raises RedisUnavailableError."""

    def tell(self) -> None:
        """Tell whoever wants to know what has been taken over, in this or another thread."""


class Reader:
    """Brings news to those that it is told of."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        self._listener = link.listener()
        self._followers: dict[bytes, Follower] = {}
        self._closed = threading.Event()
        self._started = self._lost = False
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # The thread and its connection are the parent's. A child that needs news says so, see `resume`; most need none.
        self._listener = self._link.listener()
        self._closed = threading.Event()
        self._lost, self._started = self._started, False
        self._resuming = threading.Lock()

    def follow(self, follower: Follower) -> None:
        """Bring it news too, once started."""
        self._followers[follower.key.encode()] = follower

    def unfollow(self, follower: Follower) -> None:
        """Undo `follow`."""
        self._followers.pop(follower.key.encode(), None)

    def start(self) -> None:
        """Have all catch up now, before the first client comes, if Redis can be reached; then listen."""
        self._started = True
        with suppress(RedisUnavailableError):  # the log knows, and the thread goes on trying
            self._look()
        threading.Thread(target=self._run, name="pushdemo-redis-reader", daemon=True).start()

    def resume(self) -> None:
        """Start in a forked child, if the parent had started; at once where there is nothing to do."""
        if self._lost:
            with self._resuming:
                lost, self._lost = self._lost, False
            if lost:
                self.start()

    def close(self) -> None:
        """The application stops: the thread ends its connection and itself, within a second or so."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            began = self._clock()
            try:
                self._listen()
            except ListenerLostError:
                # At once, unless that is what happens each time.
                self._closed.wait(max(0.0, began + _AGAIN - self._clock()))
            except RedisUnavailableError:
                self._closed.wait(_AGAIN)
            except Exception:
                log.exception("the reader met an error and goes on")
                self._closed.wait(_AGAIN)
            finally:
                self._listener.close()

    def _listen(self) -> None:
        try:
            self._listener.open()
        except RedisUnavailableError:
            if not self._link.trouble:  # refused, to a user who may use no channels: then by looking alone
                self._look()
            raise
        due = self._clock()  # behind the opening: what comes from here on is heard
        while not self._closed.is_set():
            # Where others have met trouble, a look ends it, or else meets it too.
            if self._clock() >= due or self._link.trouble:
                self._look()
                due = self._clock() + LOOK
            news = self._listener.next()
            if news is not None:
                self._take_over(news)

    def _look(self) -> None:
        for follower in list(self._followers.values()):
            try:
                follower.catch_up()
            except RedisUnavailableError:
                if self._link.trouble:
                    raise
                # Refused: a full Redis has no room for a topic that is new to it. The others catch up all the same.
            follower.tell()

    def _take_over(self, news: bytes) -> None:
        """See redis/scripts.py for what they look like."""
        head, _, body = news.partition(b"\n")
        key, *words = head.split(b" ")
        follower = self._followers.get(key)
        if follower is None:  # another application's
            return
        if not follower.absorb({**dict(zip(words[::2], words[1::2], strict=True)), b"b": body}):
            follower.catch_up()
        follower.tell()
