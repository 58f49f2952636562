"""`Caches`: one application's values of all memorized functions, and the names that these go by.

The decorator is cache/memorize.py's; what one function does in one application, cache/single_flight.py's. Run by: any
thread.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from pushdemo.cache.single_flight import FunctionCache, Info, Times
from pushdemo.cache.store import CachetoolsStore, Store, Timer

Seconds = float | timedelta

# The last memorized function of each name in the process; owned by _names_lock.
_names: weakref.WeakValueDictionary[str, Function] = weakref.WeakValueDictionary()
_names_lock = threading.RLock()


class Function(Protocol):
    """What is known here of a memorized function. `serial` is a number that no other one has, `place` where it is."""

    name: str
    place: str
    serial: int
    options: dict[str, Any]


class UnknownFunctionError(LookupError):
    """No memorized function has the name; the message says which names there are."""

    def __init__(self, name: str) -> None:
        with _names_lock:
            known = ", ".join(sorted(_names)) or "none"
        self.name = name
        super().__init__(f"no memorized function is called {name}; there are: {known}")


class Caches:
    """The values of all memorized functions in one application. Two of them share nothing.

    `duration`, `stale`, `stale_if_error` (seconds) and `maxsize` (values of a function) hold where a decorator does not
    say; `functions` says otherwise for single ones, whatever their decorator says: `{"prices": {"duration": 60}}`.
    `timer` is a monotonic clock in seconds. `store` makes a function's store from its name, its maxsize and the timer.
    `wait`: for how many seconds at most a caller waits for another one's computation.

    Raises TypeError or ValueError for an option that will not do.
    """

    def __init__(
        self,
        duration: Seconds = 15.0,
        stale: Seconds = 0.0,
        stale_if_error: Seconds = 0.0,
        maxsize: int = 1024,
        functions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        timer: Timer = time.monotonic,
        store: Callable[[str, int, Timer], Store] = CachetoolsStore,
        wait: float = 60.0,
    ) -> None:
        self._defaults = checked(duration=duration, stale=stale, stale_if_error=stale_if_error, maxsize=maxsize)
        self._functions = {name: checked(**options) for name, options in functions.items()}
        self._timer = timer
        self._store = store
        self._wait = wait
        # Re-entrant, as what a destructor does in the middle of it may come back here.
        self._lock = threading.RLock()
        # The functions' state here, by their serial number. Added to under _lock; a hit reads it without.
        self.opened: dict[int, FunctionCache] = {}
        self._alive: dict[int, weakref.ref[Function]] = {}

    @contextmanager
    def active(self) -> Iterator[Caches]:
        """In the `with` block, memorized functions called in this context (PEP 567) use these caches.

        A thread that is started in the block has a context of its own, and needs an `active()` of its own.
        """
        token = current.set(self)
        try:
            yield self
        finally:
            current.reset(token)

    def info(self) -> dict[str, Info]:
        """What the calls of each function that this application has called came to, by the function's name.

        Functions of one name, such as closures that one function makes, are counted together.
        """
        found: dict[str, Info] = {}
        for cache in self._by_name():
            info = cache.info()
            found[cache.name] = info.plus(found[cache.name]) if cache.name in found else info
        return found

    def clear(self, name: str) -> None:
        """Forget all values of the function called `name`. Raises UnknownFunctionError where there is none."""
        named = [cache for cache in self._by_name() if cache.name == name]
        if not named:  # not called here; where processes share their values, another may have
            with _names_lock:
                function = _names.get(name)
            if function is None:
                raise UnknownFunctionError(name)
            named = [self.open(function)]
        for cache in named:
            cache.clear()

    def check(self) -> None:
        """Raise UnknownFunctionError if `functions` names one that does not exist; for when all is imported."""
        for name in self._functions:
            if not _exists(name):
                raise UnknownFunctionError(name)

    def open(self, function: Function) -> FunctionCache:
        """The state of `function` here, made at its first call."""
        if (cache := self.opened.get(function.serial)) is not None:
            return cache
        with self._lock:
            cache = self.opened.get(function.serial)
            if cache is None:
                options = {**self._defaults, **function.options, **self._functions.get(function.name, {})}
                options.pop("pickle", None)  # the store's to ask for, see may_pickle
                store = self._store(function.name, options.pop("maxsize"), self._timer)
                cache = FunctionCache(function.name, store, Times(**options), self._timer, self._wait)
                self._alive[function.serial] = weakref.ref(function, partial(self._forget, function.serial))
                self.opened[function.serial] = cache
            return cache

    def _forget(self, serial: int, _reference: object) -> None:
        # A memorized closure, made for a request perhaps, leaves nothing behind. Without the lock: it runs anywhere.
        self.opened.pop(serial, None)
        self._alive.pop(serial, None)

    def _by_name(self) -> list[FunctionCache]:
        with self._lock:
            return sorted(self.opened.values(), key=lambda cache: cache.name)


def register(function: Function) -> None:
    """Make the name known. Raises ValueError if a function at another place has it."""
    with _names_lock:
        other = _names.get(function.name)
        if other is not None and other.place != function.place:
            raise ValueError(f"name={function.name!r} for {function.place}: {other.place} has this name already")
        _names[function.name] = function


def may_pickle(name: str) -> bool:
    """Whether the function called `name` lets a store that processes share pickle its values."""
    with _names_lock:
        function = _names.get(name)
        return function is not None and bool(function.options.get("pickle"))


def _exists(name: str) -> bool:
    with _names_lock:
        return name in _names


def checked(**options: Any) -> dict[str, Any]:
    """The options as they are used: seconds as numbers. Raises TypeError or ValueError, naming the option."""
    return {
        option: _maxsize(value) if option == "maxsize" else _seconds(option, value) for option, value in options.items()
    }


def _seconds(option: str, value: Any) -> float:
    if option not in Times._fields:
        raise TypeError(f"{option}={value!r}: memorized functions have {', '.join(Times._fields)} and maxsize")
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{option}={value!r}: must be a number of seconds or a timedelta, such as {option}=15")
    if math.isnan(number) or number < 0:
        raise ValueError(f"{option}={value!r}: must be 0 seconds or more, such as {option}=15")
    return float(number)


def _maxsize(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"maxsize={value!r}: must be a whole number, such as maxsize=1024")
    if value < 1:
        raise ValueError(f"maxsize={value!r}: must be 1 or more, such as maxsize=1024")
    return value


# Whose values the code in this context uses; outside of any application all code shares one.
current: ContextVar[Caches] = ContextVar("pushdemo.caches", default=Caches())  # noqa: B039
