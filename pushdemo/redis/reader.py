"""The reader: one thread and one connection that keep what this process follows as Redis has it.

Theory of operation. A follower is something that this process keeps a copy of: a topic that somebody here listens to,
the memorized values, the leases. Each has a channel of its own, and the connection hears the channels of those that
are followed at this moment, no others. What is said there is only news: it may be lost with the connection, and what
it tells of is at Redis all the same. So a follower *looks* there

- when its channel has begun to be heard, which is after the connection or the following has begun,
- when news do not follow those before,
- when a survey, every LOOK seconds, says that it has changed and its news have not arrived.

Looks are asked for many followers at once, at most CHUNK in one round trip, and news are heard in between, so that none
waits for all. A follower is current from its first look until its channel is not heard any more; one that is not
current looks by itself before a client begins with it.

Any thread may call `follow` and `leave`. The followers are under the lock; all else is the thread's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from pushdemo.forking import call_in_child
from pushdemo.redis.connection import Call, Fields, Link
from pushdemo.redis.listener import Listener, ListenerLostError
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.scripts import FORMAT

log = logging.getLogger("pushdemo")

LOOK = 5.0  # seconds between two surveys while all is well, in case news went where this connection does not reach
LINGER = 10.0  # seconds that a follower is kept which nobody needs: who reloads a page comes back at once
CHUNK = 200  # followers that look in one round trip
_TURN = 1.0  # seconds between two looks at what is due, at most
_AGAIN = 0.5  # seconds before the next try of a Redis that is gone
_NEWS = 500  # that are taken in before anything else is done


class Follower(Protocol):
    """What is kept as Redis has it."""

    current: bool  # whether news arrive, and nothing from before them is missing; the reader's thread sets it

    @property
    def channel(self) -> str:
        """The channel of its news."""

    @property
    def wanted(self) -> bool:
        """Whether anybody here needs it at this moment."""

    def absorb(self, news: Fields) -> bool:
        """Take news over; False where a look must find out what they follow. Raises KeyError or ValueError."""

    def look(self) -> Call:
        """What to ask Redis for what is missing."""

    def take_over(self, call: Call, answer: Sequence[object]) -> None:
        """Take over what Redis has answered to the look."""

    def tell(self) -> None:
        """Tell whoever wants to know what has been taken over, in this or another thread."""

    def cut_off(self, cut: bool) -> None:
        """Tell clients that nothing has come from Redis for long, or that it does again."""


class Chores(Protocol):
    """What is to be done at Redis every few seconds, for all followers at once; see redis/upkeep.py."""

    def survey(self) -> Sequence[str] | None:
        """The channels of what has changed; None where all must look. Raises RedisUnavailableError."""

    def turn(self, followers: Sequence[Follower]) -> None:
        """What else is due. Raises RedisUnavailableError."""


class Reader:
    """Keeps followers as Redis has them."""

    def __init__(
        self, link: Link, chores: Chores, *, stale: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lag = 0.0  # seconds from when the newest news were published to when they were taken over
        self._link = link
        self._chores = chores
        self._stale = stale
        self._clock = clock
        self._started = False
        self._followers: dict[bytes, Follower] = {}  # by channel; under the lock
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin without a connection and a thread: in a forked process they are the parent's."""
        self._listener = Listener(self._link, self._clock)
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards the followers, and the next three
        self._thread: threading.Thread | None = None
        self._changes: dict[bytes, bool] = {}  # channels to be heard, or heard no more
        self._unused: dict[bytes, float] = {}  # since when; the oldest first
        self._heard: set[bytes] = set()
        self._to_look: dict[bytes, Follower] = {}
        self._surveyed = self._turned = float("-inf")
        self._generation = 0  # of the pool's connections, when this one was opened
        self._cut_since: float | None = None
        self._cut_told = False

    # -- any thread

    def follow(self, follower: Follower) -> None:
        """Keep it as Redis has it from now on."""
        channel = follower.channel.encode()
        with self._lock:
            self._unused.pop(channel, None)
            if self._followers.get(channel) is follower:
                return
            self._followers[channel] = follower
            self._changes[channel] = True
            self._run_thread()
        self._listener.wake()

    def leave(self, follower: Follower) -> None:
        """Nobody here needs it at this moment."""
        channel = follower.channel.encode()
        with self._lock:
            if self._followers.get(channel) is follower:
                self._unused.pop(channel, None)
                self._unused[channel] = self._clock()

    def forget(self, follower: Follower) -> None:
        """It will not be needed again."""
        channel = follower.channel.encode()
        with self._lock:
            if self._followers.get(channel) is follower and not follower.wanted:
                self._drop(channel)
        self._listener.wake()

    def start(self) -> None:
        """Begin to listen."""
        with self._lock:
            self._started = True
            self._run_thread()

    def resume(self) -> None:
        """Listen in a forked process too, if the parent did; at once where there is nothing to do."""
        if self._thread is None and self._started:
            with self._lock:
                self._run_thread()

    def _run_thread(self) -> None:
        """Have a thread, once started; under the lock. In a forked process, `follow` and `resume` have one."""
        if self._started and self._thread is None and not self._closed.is_set():
            thread = threading.Thread(target=self._run, name="pushdemo-redis-reader", daemon=True)
            thread.start()  # raises RuntimeError where the system has none left: the next follower tries again
            self._thread = thread

    def close(self) -> None:
        """The application stops: the thread ends its connection and itself."""
        self._closed.set()
        self._listener.wake()

    @property
    def following(self) -> int:
        """How many are followed."""
        return len(self._followers)

    # -- the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            began = self._clock()
            try:
                self._listen()
            except ListenerLostError:
                # At once, unless that is what happens each time.
                self._closed.wait(max(0.0, began + _AGAIN - self._clock()))
            except RedisUnavailableError:
                self._cut_off()
                self._closed.wait(_AGAIN)
            except Exception:
                log.exception("the reader met an error and goes on")
                self._closed.wait(_AGAIN)
            finally:
                self._lose()

    def _listen(self) -> None:
        self._generation = self._link.pool.generation
        with self._lock:
            channels = [channel.decode() for channel in self._followers]
            self._changes.clear()
        try:
            self._listener.open(channels)
        except RedisUnavailableError:
            if not self._link.unreachable:  # refused, to a user who may use no channels: then by looking alone
                self._look_at_all()
            raise
        self._surveyed = float("-inf")
        while not self._closed.is_set():
            self._hear()
            self._look()
            self._do_chores()
            self._back()
            if self._link.pool.generation != self._generation:
                raise ListenerLostError("the connections lead to a Redis that is no master now")
            self._take_in()

    def _take_in(self) -> None:
        """Take in what is said, waiting for it where there is nothing else to do."""
        answer = self._listener.next(0.0 if self._to_look else _TURN)
        for _ in range(_NEWS):
            if answer is None:
                return
            self._take(answer)
            answer = self._listener.next(0.0)
        if answer is not None:
            self._take(answer)

    def _take(self, answer: Sequence[bytes]) -> None:
        kind, channel = answer[0], answer[1]
        with self._lock:
            follower = self._followers.get(channel)
        if kind == b"subscribe":
            self._heard.add(channel)
            if follower:
                self._to_look[channel] = follower
        elif kind == b"message" and follower:
            try:
                complete = follower.absorb(self._news(answer[2]))
            except (KeyError, ValueError, IndexError):
                complete = False  # what is not ours, or of a later version
            if not complete:
                self._to_look[channel] = follower
            follower.tell()

    def _news(self, text: bytes) -> Fields:
        """The fields of a piece of news: see redis/scripts.py."""
        head, _, body = text.partition(b"\n")
        form, *words = head.split(b" ")
        if form != FORMAT.encode():
            raise ValueError("news of another format")
        fields = {**dict(zip(words[::2], words[1::2], strict=True)), b"b": body}
        if b"t" in fields:
            self.lag = max(0.0, time.time() - int(fields[b"t"]) / 1000)
        return fields

    def _hear(self) -> None:
        """Tell Redis which channels are to be heard, and which not any more."""
        with self._lock:
            until = self._clock() - LINGER
            for channel in [*_while(self._unused, lambda since: since <= until)]:
                if self._followers[channel].wanted:
                    del self._unused[channel]
                else:
                    self._drop(channel)
            changes, self._changes = self._changes, {}
        for channel, heard in changes.items():
            if not heard:
                self._heard.discard(channel)
                self._to_look.pop(channel, None)
        # One that is heard already but has another follower now is asked for again: the answer has it look.
        self._listener.hear([channel.decode() for channel, heard in changes.items() if heard])
        self._listener.unhear([channel.decode() for channel, heard in changes.items() if not heard])

    def _drop(self, channel: bytes) -> None:
        """Follow it no more; under the lock."""
        self._unused.pop(channel, None)
        self._followers.pop(channel).current = False
        self._changes[channel] = False

    def _look(self) -> None:
        """Have some of those look that must. Raises RedisUnavailableError."""
        chunk = dict(islice(self._to_look.items(), CHUNK))
        if not chunk:
            return
        for channel in chunk:
            del self._to_look[channel]
        calls = [follower.look() for follower in chunk.values()]
        answers = self._link.ask(calls)
        for (channel, follower), call, answer in zip(chunk.items(), calls, answers, strict=True):
            if isinstance(answer, Exception):  # refused: a full Redis has no room for a topic that is new to it
                continue
            try:
                follower.take_over(call, answer)
            except Exception:
                log.exception("the reader met an error in what %s has at Redis, and goes on", channel.decode())
            with self._lock:
                if self._followers.get(channel) is follower:
                    follower.current = channel in self._heard
            follower.tell()

    def _look_at_all(self) -> None:
        with self._lock:
            self._to_look = dict(self._followers)
        while self._to_look:
            self._look()

    def _do_chores(self) -> None:
        # Where others have met trouble, a survey ends it, or else meets it too.
        ailing = self._link.trouble or self._link.warning
        if self._clock() >= self._surveyed + (_TURN if ailing else LOOK) or self._link.unreachable:
            self._surveyed = self._clock()
            changed = self._chores.survey()
            with self._lock:
                news = self._followers if changed is None else {channel.encode(): None for channel in changed}
                self._to_look |= {
                    channel: self._followers[channel]
                    for channel in news
                    if channel in self._followers and channel in self._heard
                }
                self._to_look |= {c: f for c, f in self._followers.items() if not f.current and c in self._heard}
        if self._clock() >= self._turned + _TURN:
            self._turned = self._clock()
            self._chores.turn(self._all())

    def _lose(self) -> None:
        """The connection has ended: nobody is current."""
        self._listener.close()
        self._heard.clear()
        self._to_look.clear()
        with self._lock:
            for follower in self._followers.values():
                follower.current = False

    def _cut_off(self) -> None:
        """Redis is out of reach: after a while, clients are told so."""
        now = self._clock()
        if self._cut_since is None:
            self._cut_since = now
        if not self._cut_told and now - self._cut_since >= self._stale:
            self._cut_told = True
            for follower in self._all():
                follower.cut_off(True)

    def _back(self) -> None:
        """All is well, once those that must have looked."""
        if self._cut_since is None or self._to_look or self._link.unreachable:
            return
        self._cut_since = None
        if self._cut_told:
            self._cut_told = False
            for follower in self._all():
                follower.cut_off(False)

    def _all(self) -> list[Follower]:
        with self._lock:
            return list(self._followers.values())


def _while(dated: dict[bytes, float], old: Callable[[float], bool]) -> Iterator[bytes]:
    """The first keys of a dict, as long as what they stand for is old."""
    for key, since in dated.items():
        if not old(since):
            return
        yield key
