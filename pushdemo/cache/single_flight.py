"""One memorized function in one application: who computes a value, who waits for it, and the counting.

How a call that finds no fresh value goes:

    no flight of its key --> flies: claims the key at the store, computes, puts the value ------> has the value
    another's flight -------> waits until it has ended: with a value ---------------------------> has the value
                                                        with an exception ----------------------> has a copy of it
                                                        with one that cannot be shared ---------> computes for itself
                                                        with an interrupt ----------------------> begins again
    its own thread's flight -> RecursiveCallError

In a process one thread at a time flies for a key: the one whose flight is in `_flights`. Of processes that share a
store, the one that has the store's claim computes. `invalidate` takes the flight out and ends the claim: who asks later
begins a new flight beside the old one, whose value goes to those who waited and is not kept. The function itself runs
with no lock held, so that other keys never wait.

What may never happen: a key that stays locked. An interrupt (an exception that a signal raises in the main thread) can
come between any two steps, twice in a row too, so that no `finally` is sure to clean up. So a flight lasts as long as
its owner is in the `with` block of a lock that is the flight's own, which the interpreter leaves in any case; one in
`_flights` whose lock is free is as none. A forked child begins without flights. Run by: any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pushdemo.cache import sharing
from pushdemo.cache.keys import Key, is_dead
from pushdemo.cache.store import Entry, Store, Timer
from pushdemo.forking import call_in_child

log = logging.getLogger("pushdemo.cache")


_WASTED = 20  # values before a word in the log


class RecursiveCallError(RuntimeError):
    """While it was computing a value, a memorized function asked for that value."""


class Info(NamedTuple):
    """What the calls of a function in one application came to, counted since the first.

    `hits` found a fresh value, `misses` computed one, `waits` waited for another caller's, `stale` got one past its
    duration; `errors` of the misses raised. `size` values are kept, the newest for `age` seconds (None: there is none).
    """

    hits: int
    misses: int
    waits: int
    stale: int
    errors: int
    size: int
    age: float | None

    def plus(self, other: Info) -> Info:
        """Both counted together."""
        ages = [age for age in (self.age, other.age) if age is not None]
        return Info(
            self.hits + other.hits,
            self.misses + other.misses,
            self.waits + other.waits,
            self.stale + other.stale,
            self.errors + other.errors,
            self.size + other.size,
            min(ages, default=None),
        )


class Times(NamedTuple):
    """For how many seconds a value is used: fresh, then old while a new one is computed, or where that raises."""

    duration: float
    stale: float
    stale_if_error: float


class Flight:
    """A computation under way, and its end, which the owner writes before it lets go of `flying`."""

    __slots__ = ("end", "error", "flying", "over", "owner", "value", "waiters")

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.flying = threading.Lock()  # held by the owner until the end, and for a moment by each who has waited
        self.over = False  # set by whoever has waited, so that nobody takes that moment for a flight
        self.waiters = 0  # under the lock of the cache
        self.end: Literal["interrupt", "value", "error"] = "interrupt"
        self.value: Any = None
        self.error: Exception | None = None  # what to copy for those who wait; None where they cannot have it

    @property
    def alive(self) -> bool:
        """Whether its owner is in it still."""
        return self.flying.locked() and not self.over

    def wait(self, timeout: float) -> bool:
        """Wait for the end; False if that takes more than `timeout` seconds."""
        if not self.flying.acquire(timeout=timeout):
            return False
        self.over = True
        self.flying.release()
        return True


class FunctionCache:
    """The state of one memorized function in one application.

    `wait`: for how many seconds at most a caller waits for another one's computation.
    """

    def __init__(self, name: str, store: Store, times: Times, timer: Timer, wait: float) -> None:
        self.name = name
        self.near = store.near
        self.timer = timer
        # Added to without a lock, as a hit takes none; so it may miss some in an interpreter without a GIL.
        self.hits = 0
        self._store = store
        self._times = times
        self._wait = wait
        # Set without a lock, see `died`.
        self._deaths = False
        self._misses = self._waits = self._stale = self._errors = 0  # under the lock
        self._wasted = 0  # values whose object was gone before any hit; added to by any thread
        self._failing = self._told = False
        self._after_fork()
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # Owns the flights and the counters. Re-entrant, as a destructor in the middle of it may come back here.
        self._lock = threading.RLock()
        self._flights: dict[Key, Flight] = {}

    def get(self, key: Key, compute: Callable[[], Any]) -> Any:
        """The value of `key`: a kept one, another caller's, or computed now.

        Raises what `compute` raised, or a copy of what it raised for the other caller; RecursiveCallError if this
        thread is computing the key; TimeoutError if another has not come to an end within the wait.
        """
        entry = self.near.get(key)
        if entry is not None and (now := self.timer()) < entry.fresh_until:
            return self._taken(entry, now).value
        self._bury()
        if not self._times.duration:
            return self._counted(compute)
        while True:
            flight = Flight()
            with flight.flying:
                found = self._entry_or_flight(key, flight)
                if isinstance(found, Entry):
                    return found.value
                if found is flight:
                    return self._fly(flight, key, compute)
            if not found.wait(self._wait):
                raise self._timeout()
            if found.end == "value":
                return found.value
            if found.error is not None:
                _raise_copy_of(found.error)
            if found.end == "error":
                return self._counted(compute)

    def _entry_or_flight(self, key: Key, mine: Flight) -> Entry | Flight:
        """The entry to use now, or else the flight to wait for; `mine` if there was none and this one flies now."""
        with self._lock:
            now = self.timer()
            flight = self._flights.get(key)
            if flight is not None and not flight.alive:
                flight = None
            if flight is not None and flight.owner == mine.owner:
                raise RecursiveCallError(
                    f"{self.name}, while it computes a value, asks for it: with the same arguments"
                )
            entry = self.near.get(key)
            if entry is not None and now < (entry.fresh_until if flight is None else entry.stale_until):
                return self._taken(entry, now)
            if flight is None:
                self._flights[key] = mine
                return mine
            flight.waiters += 1
            self._waits += 1
            return flight

    def _fly(self, flight: Flight, key: Key, compute: Callable[[], Any]) -> Any:
        try:
            value = self._claimed(key, compute)
        except BaseException as error:
            if self._remove(flight, key) and isinstance(error, Exception):
                flight.end, flight.error = "error", sharing.template(error)
            raise
        self._remove(flight, key)
        flight.value, flight.end = value, "value"
        return value

    def _remove(self, flight: Flight, key: Key) -> int:
        """Let nobody join the flight any more; return how many have."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
            return flight.waiters

    def _claimed(self, key: Key, compute: Callable[[], Any]) -> Any:
        """The value of `key`, computed unless another process is computing it or has just done so."""
        claim = self._store.claim(key, 0.0)
        entry = self._store.get(key)
        if claim is None and (entry is None or self.timer() >= entry.stale_until):
            claim = self._store.claim(key, self._wait)
            entry = self._store.get(key)
        now = self.timer()
        if claim is None:
            if entry is None or now >= entry.stale_until:
                raise self._timeout()
            return self._taken(entry, now).value
        if entry is not None and now < entry.fresh_until:
            self._store.settle(key, claim, None)
            return self._taken(entry, now).value
        return self._computed(key, claim, entry, compute)

    def _computed(self, key: Key, claim: object, old: Entry | None, compute: Callable[[], Any]) -> Any:
        try:
            value = self._counted(compute)
        except BaseException as error:
            kept = self._store.settle(key, claim, None)
            now = self.timer()
            if not kept or old is None or now >= old.error_until or not isinstance(error, Exception):
                raise
            self._log_once()
            return self._taken(old, now).value
        self._failing = False
        self._store.settle(key, claim, Entry(value, self.timer(), *self._times))
        return value

    def _counted(self, compute: Callable[[], Any]) -> Any:
        with self._lock:
            self._misses += 1
        try:
            value = compute()
            sharing.check(self.name, value)
        except BaseException:
            with self._lock:
                self._errors += 1
            raise
        return value

    def _taken(self, entry: Entry, now: float) -> Entry:
        entry.used = True
        with self._lock:
            if now < entry.fresh_until:
                self.hits += 1
            else:
                self._stale += 1
        return entry

    def _log_once(self) -> None:
        """Log the exception at hand, which no caller sees; the next only after the function has succeeded again."""
        if not self._failing:
            self._failing = True
            log.warning("%s raised; its old value stays in use", self.name, exc_info=True)

    def _timeout(self) -> TimeoutError:
        return TimeoutError(f"{self.name}: another caller has been computing the value for over {self._wait:g} seconds")

    def invalidate(self, key: Key) -> None:
        """Forget `key`. A value that is being computed goes to those who have asked for it, and is not kept."""
        self._store.delete(key)
        with self._lock:
            self._flights.pop(key, None)

    def clear(self) -> None:
        """Forget every key, as `invalidate` does."""
        self._store.clear()
        with self._lock:
            self._flights.clear()

    def died(self, _reference: object) -> None:
        """Note that an object which a key refers to is gone. Runs in the middle of anything, so it takes no lock."""
        self._deaths = True

    def _bury(self) -> None:
        """Delete the entries of objects that are gone."""
        if self._deaths:
            self._deaths = False
            for key in filter(is_dead, list(self.near)):
                entry = self.near.get(key)
                self._wasted += entry is not None and not entry.used
                self._store.delete(key)
            if self._wasted > _WASTED and not self.hits and not self._told:
                self._told = True
                log.warning(
                    "%s keeps values that nobody asks for again, since they are of objects that equal nothing but "
                    "themselves and are gone, such as a request: leave these out of the key, memorize(ignore=...)",
                    self.name,
                )

    def info(self) -> Info:
        """The counts so far, and what is kept now."""
        self._bury()
        size = len(self._store)
        newest = max((entry.made for entry in list(self.near.values())), default=None)
        with self._lock:
            age = None if newest is None else self.timer() - newest
            return Info(self.hits, self._misses, self._waits, self._stale, self._errors, size, age)


def _raise_copy_of(template: Exception) -> None:
    """Raise a copy of what has been made to be copied, if that is possible."""
    error = sharing.copy_of(template)
    try:
        if error is not None:
            raise error
    finally:
        del error  # its traceback holds this frame
