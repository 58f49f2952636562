"""Memorized values at Redis, shared by all nodes, with a copy of what this process uses in front of them.

A function has three keys: a hash of its values, a sorted set that says until when each is of use, and a hash of the
claims on those that are being computed. Each value there is under a digest of its call's key. While Redis cannot be
reached, the process is on its own, as it is without one. Run by: any thread; the claims that this process has are
renewed in the thread of redis/renewals.py.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from pushdemo.cache.canonical import NotCanonicalError
from pushdemo.cache.keys import Key, is_dead
from pushdemo.cache.store import CachetoolsStore, Entry, Timer
from pushdemo.forking import call_in_child
from pushdemo.redis.connection import Call, Fields, Link
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.renewals import LEASE_TIME, Renewals
from pushdemo.redis.scripts import CLAIM, COUNT, DELETE, DELETIONS, GET, SETTLE
from pushdemo.redis.values import decoded, digest, encoded

log = logging.getLogger("pushdemo.cache")

SHORTEST, LONGEST = 0.005, 0.1  # seconds between two looks whether someone else's claim has ended
_NEWEST = re.compile(rb"(\d{1,18}) (\w+)")
_told: set[object] = set()  # by function and type of argument, what the log knows; any thread adds to it
_EVER = 10 * 365 * 24 * 3600.0  # seconds: for values that are used for ever


class Claim:
    """The right to compute one value, which is renewed until it settles, or until the computation that has it is gone.

    `name` is the digest of the call, `turn` the claim within this process, `life` the store's when the claim was made.
    """

    def __init__(self, name: str, turn: object, life: object) -> None:
        self.name = name
        self.turn = turn
        self.life = life
        self.token = secrets.token_hex(16)
        self.beat: _Beat | None = None  # once Redis has given the claim


class _Beat:
    """What the renewals call for a claim. It does not keep the claim, as an interrupted computation drops that."""

    def __init__(self, claim: weakref.ref[Claim], renew: Callable[[_Beat], None]) -> None:
        self.claim = claim
        self._renew = renew

    def __call__(self) -> None:
        """Renew it. Raises RedisUnavailableError."""
        self._renew(self)


class RedisStore:
    """See Store. `may_pickle`: values that JSON cannot carry are pickled, and pickles are loaded.

    `listens` makes sure that this process hears of deletions; a forked child does not, until it needs to.
    """

    def __init__(
        self,
        link: Link,
        renewals: Renewals,
        name: str,
        maxsize: int,
        timer: Timer,
        *,
        may_pickle: bool = False,
        listens: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._timer = timer
        self._maxsize = maxsize
        self._may_pickle = may_pickle
        self._renewals = renewals
        self._listens = listens
        self._keys = [link.key("cache", name, part) for part in ("values", "times", "claims")]
        self._deletions_key = link.key("deletions")
        self._channel = link.channel
        self._get = link.script(GET, writes=False)
        self._claim = link.script(CLAIM)
        self._settle = link.script(SETTLE)
        self._delete = link.script(DELETE)
        self._count = link.script(COUNT, writes=False)
        self._copies = CachetoolsStore(name, maxsize, timer)
        self._turns = CachetoolsStore(name, maxsize, timer)  # for claims alone: whose turn it is in this process
        self._named: dict[str, Key] = {}  # by digest, the keys that may be among the copies; under _lock
        self._deletions = 0  # under _lock
        self._told: set[object] = set()  # what the log knows; any thread adds to it
        self._after_fork()
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # Re-entrant, as what a value's destructor does may come back here.
        self._lock = threading.RLock()
        self._life = object()  # the claims of the process before the fork are not this one's
        self._copies.near.clear()  # of deletions since the fork it has not heard

    @property
    def near(self) -> Mapping[Key, Entry]:
        """See Store."""
        return self._copies.near

    def get(self, key: Key) -> Entry | None:
        """See Store. While Redis cannot be reached, the copy."""
        name, deletions = self._digest(key), self._deletions
        if name is None:
            return self._copies.get(key)
        try:
            now, found = self._get(self._keys, [self._ahead(), name])
        except RedisUnavailableError:
            return self._copies.get(key)
        entry = self._entry(int(now), found) if found is not None else None
        with self._lock:
            if entry is None:
                self._copies.delete(key)
            elif deletions == self._deletions:
                self._copy(key, name, entry)
        return entry

    def claim(self, key: Key, timeout: float) -> object | None:
        """See Store. While Redis cannot be reached, a claim is this process's own."""
        self._listens()
        until = time.monotonic() + timeout
        turn = self._turns.claim(key, timeout)
        name = self._digest(key)
        if turn is None or name is None:
            return turn
        claim = Claim(name, turn, self._life)
        pause = SHORTEST
        try:
            while not self._held(claim, "claim"):
                left = until - time.monotonic()
                if left <= 0:
                    self._turns.settle(key, turn, None)
                    return None
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST)
        except RedisUnavailableError:
            return turn
        claim.beat = _Beat(weakref.ref(claim), self._renew)
        self._renewals.add(claim.beat, at_once=False)
        return claim

    def settle(self, key: Key, claim: object, entry: Entry | None) -> bool:
        """See Store."""
        if not isinstance(claim, Claim):
            return self._end_turn(key, claim, entry, self._digest(key))
        if claim.life is not self._life:
            return False
        if claim.beat:
            self._renewals.discard(claim.beat)
        deletions = self._deletions
        try:
            value = encoded(self.name, entry.value, may_pickle=self._may_pickle) if entry else b""
        except BaseException:
            self._settled(claim, None, b"")
            self._end_turn(key, claim.turn, None)
            raise
        if not self._settled(claim, entry, value):
            self._end_turn(key, claim.turn, None)
            return False
        with self._lock:
            # Another node may have deleted it again before it is here: then no copy, and the next call asks Redis.
            return self._end_turn(key, claim.turn, entry if deletions == self._deletions else None, claim.name)

    def delete(self, key: Key) -> None:
        """See Store. Raises RedisUnavailableError where others cannot be told; the copy is gone all the same."""
        name = self._digest(key)
        try:
            if name is not None:
                self._delete_for_all(name)
        finally:
            with self._lock:
                self._deletions += 1
                self._turns.delete(key)
                self._copies.delete(key)

    def clear(self) -> None:
        """See Store. Raises as `delete` does."""
        try:
            self._delete_for_all("")
        finally:
            with self._lock:
                self._turns.clear()
                self.forget("")

    def forget(self, name: str) -> None:
        """Another node has deleted the value with this digest, or with '' all: the copy goes too."""
        with self._lock:
            self._deletions += 1
            if not name:
                self._copies.clear()
                self._named.clear()
            elif (key := self._named.pop(name, None)) is not None:
                self._copies.delete(key)

    def __len__(self) -> int:
        """The number of values at Redis that are of use; of the copies while it cannot be reached."""
        copies = len(self._copies)  # which drops those that are of no more use
        try:
            return int(self._count(self._keys, [self._ahead()]))
        except RedisUnavailableError:
            return copies

    # -- the copies

    def _copy(self, key: Key, name: str | None, entry: Entry) -> None:
        """Put a copy; under the lock."""
        turn = self._copies.claim(key, 0)
        self._copies.settle(key, turn, entry)
        if name is not None:
            self._named[name] = key
            if len(self._named) > 2 * self._maxsize:
                near = self._copies.near
                self._named = {each: key for each, key in self._named.items() if key in near}

    def _end_turn(self, key: Key, turn: object, entry: Entry | None, name: str | None = None) -> bool:
        with self._lock:
            if not self._turns.settle(key, turn, None):
                return False
            if entry is not None:
                self._copy(key, name, entry)
            return True

    # -- Redis

    def _digest(self, key: Key) -> str | None:
        """The name of the call in all processes; None for one that only this process can know, or could."""
        if is_dead(key):
            return None
        try:
            return digest(key)
        except NotCanonicalError as error:
            _tell_once(
                _told,
                (self.name, error.kind),
                "%s: calls with arguments of type %s are not shared with other nodes, since no two processes can know "
                "that theirs are equal. Pass what identifies them, or leave them out of the key: memorize(ignore=...)",
                self.name,
                error,
            )
            return None

    def _ahead(self) -> int:
        """Milliseconds that the application's clock is ahead of the machine's."""
        return round((self._timer() - time.monotonic()) * 1000)

    def _held(self, claim: Claim, how: str) -> bool:
        lease = round(LEASE_TIME * 1000)
        return bool(self._claim(self._keys, [self._ahead(), claim.name, claim.token, lease, how]))

    def _renew(self, beat: _Beat) -> None:
        claim = beat.claim()
        if claim is None or claim.life is not self._life or not self._held(claim, "renew"):
            self._renewals.discard(beat)

    def _settled(self, claim: Claim, entry: Entry | None, value: bytes) -> bool:
        """Whether the claim was still this process's; True where Redis cannot be reached, and knows of nothing else."""
        kept, ago, times = 0, 0, ""
        if entry:
            made = entry.made
            spans = [entry.fresh_until - made, entry.stale_until - made, entry.error_until - made]
            fresh, stale, error = (round(min(span, _EVER) * 1000) for span in spans)
            kept, ago, times = max(stale, error), round((self._timer() - made) * 1000), f"{fresh} {stale} {error}"
        args: list[str | bytes | int] = [self._ahead(), claim.name, claim.token, kept, ago, times, self._maxsize, value]
        try:
            return bool(self._settle(self._keys, args))
        except RedisUnavailableError:
            return True

    def _delete_for_all(self, name: str) -> None:
        self._delete([*self._keys, self._deletions_key], [name, self.name, self._channel, secrets.token_hex(8)])

    def _entry(self, now: int, found: bytes) -> Entry | None:
        """The entry that is kept as `found`; None for one that this function does not read."""
        try:
            made, times, value = found.split(b"\n", 2)
            fresh, stale, error = (int(span) / 1000 for span in times.split())
            kept = decoded(value, may_pickle=self._may_pickle)
            return Entry(kept, self._timer() - (now - int(made)) / 1000, fresh, stale - fresh, error - fresh)
        except Exception as error:  # whatever loading a pickle raises; a class may have gone since, too
            _tell_once(
                self._told,
                "malformed",
                "%s: a value at Redis cannot be read, and is computed anew: %r",
                self.name,
                error,
            )
            return None


def _tell_once(told: set[object], what: object, message: str, *args: object) -> None:
    if what not in told:
        told.add(what)
        log.warning(message, *args)


class Deletions:
    """The news of what other nodes have deleted, for all stores of this process. A Follower, see redis/reader.py."""

    wanted = True

    def __init__(self, link: Link) -> None:
        self.channel = link.channel
        self.current = False
        self._key = link.key("deletions")
        self._newest = link.script(DELETIONS, writes=False)
        # Number and token of the newest deletion known here. The reader's thread alone uses it.
        self._known: tuple[int, bytes] | None = None
        self._lock = threading.Lock()  # guards the next line
        self._stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()

    def add(self, store: RedisStore) -> None:
        """Tell `store` of deletions from now on. Any thread may call this."""
        with self._lock:
            self._stores.add(store)

    def absorb(self, news: Fields) -> bool:
        """See Follower."""
        number = int(news[b"c"])
        if self._known is None or (number >= self._known[0] and self._known[1] not in (news[b"p"], news[b"n"])):
            return False
        if number > self._known[0]:
            self._known = number, news[b"n"]
            self._forget(news[b"b"].decode(), news[b"d"].decode())
        return True

    def look(self) -> Call:
        """See Follower."""
        return self._newest.with_([self._key], [])

    def take_over(self, call: Call, answer: Any) -> None:
        """See Follower. Drops all copies if any deletion was missed, as nobody knows which ones."""
        found = _NEWEST.fullmatch(answer)
        known = (int(found[1]), found[2]) if found else (0, b"")
        if self._known != known:
            self._known = known
            self._forget("", "")

    def tell(self) -> None:
        """See Follower. Nobody waits for deletions."""

    def cut_off(self, cut: bool) -> None:
        """See Follower. Nobody waits for deletions."""

    def _forget(self, function: str, name: str) -> None:
        with self._lock:
            stores = list(self._stores)
        for store in stores:
            if function in ("", store.name):
                store.forget(name)
