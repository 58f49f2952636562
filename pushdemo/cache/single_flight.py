"""One memorized function in one application: who computes a value, who waits for it, and the counting.

In a process one thread at a time computes a key: its flight. Of processes that share a store, the one with the store's
claim does. The function itself runs with no lock held, so that other keys never wait. Run by: any thread.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from pushdemo.cache.keys import Key, is_dead
from pushdemo.cache.store import Entry, Store, Timer

log = logging.getLogger("pushdemo.cache")


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
    """A computation under way, and its outcome for those who wait. Written by its owner only, before it lands."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self._landed = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def land(self, value: Any) -> None:
        """End with a value."""
        self._value = value
        self._landed.set()

    def crash(self, error: BaseException) -> None:
        """End with an exception."""
        self._error, self._traceback = error, error.__traceback__
        self._landed.set()

    def landed(self, timeout: float) -> bool:
        """Wait for the end; False if that takes more than `timeout` seconds."""
        return self._landed.wait(timeout)

    @property
    def abandoned(self) -> bool:
        """Whether it ended with what concerns its owner alone, as KeyboardInterrupt and SystemExit do."""
        return self._error is not None and not isinstance(self._error, Exception)

    def outcome(self) -> Any:
        """The value; or raises the exception, the same object for everyone, with its owner's traceback."""
        try:
            if self._error is not None:
                raise self._error.with_traceback(self._traceback)
            return self._value
        finally:
            del self  # see FunctionCache.get


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
        # Owns all that follows. Re-entrant, as what a destructor does in the middle of it may come back here.
        self._lock = threading.RLock()
        self._flights: dict[Key, Flight] = {}
        self._misses = self._waits = self._stale = self._errors = 0
        self._failing = False

    def get(self, key: Key, compute: Callable[[], Any]) -> Any:
        """The value of `key`: a kept one, another caller's, or computed now.

        Raises what `compute` raised, here or for the other caller; RecursiveCallError if this thread is computing the
        key; TimeoutError if another has not come to an end within the wait.
        """
        entry = self.near.get(key)
        if entry is not None and (now := self.timer()) < entry.fresh_until:
            return self._taken(entry, now).value
        self._bury()
        if not self._times.duration:
            return self._counted(compute)
        try:
            while True:
                found = self._entry_or_flight(key)
                if isinstance(found, Entry):
                    return found.value
                if found.owner == threading.get_ident():
                    return self._fly(found, key, compute)
                if not found.landed(self._wait):
                    raise self._timeout()
                if not found.abandoned:
                    return found.outcome()
        finally:
            # The traceback of an exception holds this frame; the flight in it would hold the exception.
            found = None  # type: ignore[assignment]

    def _entry_or_flight(self, key: Key) -> Entry | Flight:
        """The entry to use now, or else the flight to wait for, or to fly if it is this thread's."""
        with self._lock:
            now = self.timer()
            flight = self._flights.get(key)
            if flight is not None and flight.owner == threading.get_ident():
                raise RecursiveCallError(
                    f"{self.name}, while it computes a value, asks for it: with the same arguments"
                )
            entry = self.near.get(key)
            if entry is not None and now < (entry.fresh_until if flight is None else entry.stale_until):
                return self._taken(entry, now)
            if flight is None:
                flight = self._flights[key] = Flight()
            else:
                self._waits += 1
            return flight

    def _fly(self, flight: Flight, key: Key, compute: Callable[[], Any]) -> Any:
        try:
            value = self._claimed(key, compute)
        except BaseException as error:
            self._remove(flight, key)
            flight.crash(error)
            raise
        else:
            self._remove(flight, key)
            flight.land(value)
            return value
        finally:
            del flight  # see `get`

    def _remove(self, flight: Flight, key: Key) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

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
            if inspect.isgenerator(value) or inspect.isawaitable(value) or inspect.isasyncgen(value):
                raise TypeError(f"{self.name} returned a {type(value).__name__}, which serves one caller: use a list")
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
                self._store.delete(key)

    def info(self) -> Info:
        """The counts so far, and what is kept now."""
        self._bury()
        size = len(self._store)
        newest = max((entry.made for entry in list(self.near.values())), default=None)
        with self._lock:
            age = None if newest is None else self.timer() - newest
            return Info(self.hits, self._misses, self._waits, self._stale, self._errors, size, age)
