"""Where memorized values are kept: the `Store` protocol, and the store in the process, which cachetools bounds.

A store has the values of one memorized function in one application. It knows keys, entries and who may compute; what
counts as fresh, and who waits, is for cache/single_flight.py. Another backend is another class with the same methods.
Run by: any thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from cachetools import TLRUCache

from pushdemo.cache.keys import Key
from pushdemo.forking import call_in_child

Timer = Callable[[], float]
R = TypeVar("R")


class Entry:
    """A value, and until when it may be used: in seconds of the application's clock, and before that moment.

    Complete before other threads see it. Only `used` changes later: whoever uses the entry sets it, without a lock.
    """

    __slots__ = ("error_until", "fresh_until", "made", "stale_until", "used", "value")

    def __init__(
        self, value: Any, made: float, duration: float, stale: float = 0.0, stale_if_error: float = 0.0
    ) -> None:
        self.value = value
        self.made = made
        self.fresh_until = made + duration
        self.stale_until = self.fresh_until + stale
        self.error_until = self.fresh_until + stale_if_error
        self.used = False

    @property
    def kept_until(self) -> float:
        """When the value is of no more use."""
        return max(self.stale_until, self.error_until)


class Store(Protocol):
    """What a backend offers. Each method is atomic and may be called by any thread.

    A claim is the right to compute one key's value and to put it; what it is, the store decides. It ends with `settle`,
    `delete` and `clear`, when its holder drops the object, and with the process that has it.
    """

    @property
    def near(self) -> Mapping[Key, Entry]:
        """The entries that can be read without a lock or a round trip; always the same mapping. A hit looks here."""

    def get(self, key: Key) -> Entry | None:
        """The entry of `key`, fresh or not; None where there is none."""

    def claim(self, key: Key, timeout: float) -> object | None:
        """The claim on `key`; None if it is someone else's and does not end within `timeout` seconds."""

    def settle(self, key: Key, claim: object, entry: Entry | None) -> bool:
        """End the claim, and put `entry` unless it is None.

        False, with nothing put, if the claim had ended before: so a value whose key was deleted meanwhile is not kept.
        Raises TypeError for a value that the store cannot carry; that ends the claim too.
        """

    def delete(self, key: Key) -> None:
        """Forget the entry of `key`, and end the claim on it."""

    def clear(self) -> None:
        """Forget all entries, and end all claims."""

    def __len__(self) -> int:
        """The number of entries that are still of use."""


class _Claim:
    """A claim, which ends with `settle`, or else when the computation that has it is gone."""

    __slots__ = ("__weakref__",)


class CachetoolsStore:
    """The store in the process: at most `maxsize` entries in a cachetools cache, each for as long as it is of use.

    An interrupt (a signal's exception in the main thread) may end any method anywhere. So claims are held weakly, and a
    change that has not come to its end has the cache made anew from `near`, whose own changes are single steps.
    """

    def __init__(self, name: str, maxsize: int, timer: Timer) -> None:
        # Read by any thread without a lock; changed by _bounded alone.
        self.near: dict[Key, Entry] = {}
        self._maxsize = maxsize
        self._timer = timer
        self._after_fork()
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # Owns all that follows. Re-entrant, as what a destructor does in the middle of it may come back here.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._claims: dict[Key, weakref.ref[_Claim]] = {}
        self._changing = threading.Lock()  # held during a change of _bounded; an interrupt lets go of it
        self._bounded = _Bounded(self._maxsize, self._timer, self.near)
        self._whole = not self.near  # whether the last change of _bounded has come to its end

    def get(self, key: Key) -> Entry | None:
        return self.near.get(key)

    def claim(self, key: Key, timeout: float) -> object | None:
        with self._lock:
            if self._claimed(key) and not (
                timeout > 0
                and self._changed.wait_for(lambda: not self._claimed(key), min(timeout, threading.TIMEOUT_MAX))
            ):
                return None
            claim = _Claim()
            self._claims[key] = weakref.ref(claim)
            return claim

    def settle(self, key: Key, claim: object, entry: Entry | None) -> bool:
        with self._lock:
            if (held := self._claims.get(key)) is None or held() is not claim:
                return False
            self._end_claims(key)
            if entry is not None:
                self._change(lambda bounded: bounded.__setitem__(key, entry))
            return True

    def delete(self, key: Key) -> None:
        with self._lock:
            self._change(lambda bounded: bounded.pop(key, None))
            self._end_claims(key)

    def clear(self) -> None:
        with self._lock:
            self._change(lambda bounded: bounded.clear())
            self._end_claims(*self._claims)

    def __len__(self) -> int:
        with self._lock:
            return self._change(len)

    def _claimed(self, key: Key) -> bool:
        return (held := self._claims.get(key)) is not None and held() is not None

    def _end_claims(self, *keys: Key) -> None:
        for key in keys:
            self._claims.pop(key, None)
        self._changed.notify_all()

    def _change(self, change: Callable[[_Bounded], R]) -> R:
        """What `change` returns of the bounded cache; under the lock."""
        if self._changing.locked():  # by a value's destructor, in the middle of a change
            return change(self._bounded)
        with self._changing:
            if not self._whole:
                self._bounded = _Bounded(self._maxsize, self._timer, self.near)
                for key in list(self.near):
                    if (entry := self.near.get(key)) is not None:
                        self._bounded[key] = entry
            self._whole = False
            found = change(self._bounded)
            self._whole = True
            return found


class _Bounded(TLRUCache[Key, Entry]):
    """The cache that bounds and evicts; it keeps `near` equal to what it holds.

    A hit takes no lock, and so cannot move its entry to the back of the queue for eviction. It marks it, and a marked
    entry whose turn has come goes to the back once instead (the 'second chance' algorithm).
    """

    def __init__(self, maxsize: int, timer: Timer, near: dict[Key, Entry]) -> None:
        super().__init__(maxsize, lambda _key, entry, _now: entry.kept_until, timer)
        self._near = near

    def __setitem__(self, key: Key, entry: Entry) -> None:
        if self.timer() < entry.kept_until:
            super().__setitem__(key, entry)
        else:  # what cachetools does with the one before it depends on the version
            self.pop(key, None)
        if key in self:
            self._near[key] = entry
        else:
            self._near.pop(key, None)

    def __delitem__(self, key: Key) -> None:
        self._near.pop(key, None)
        super().__delitem__(key)

    def expire(self, time: float | None = None) -> list[tuple[Key, Entry]]:
        expired = list(super().expire(time))
        for key, _ in expired:
            self._near.pop(key, None)
        return expired

    def popitem(self) -> tuple[Key, Entry]:
        key, entry = super().popitem()
        # Once round at most: other threads go on marking.
        for _ in range(int(self.maxsize)):
            if not entry.used:
                break
            entry.used = False
            self[key] = entry
            key, entry = super().popitem()
        return key, entry

    def clear(self) -> None:
        super().clear()
        self._near.clear()
