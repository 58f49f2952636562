"""`Caches`: one application's values of all memorized functions; the names of these; which application a call is of.

The decorator is in memorize.py; what one function does in one application, in single_flight.py. Run by: any thread.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from pushdemo.cache.canonical import found_at
from pushdemo.cache.single_flight import FunctionCache, Info, Times
from pushdemo.cache.store import CachetoolsStore, Store, Timer
from pushdemo.forking import call_in_child

log = logging.getLogger("pushdemo.cache")

Seconds = float | timedelta

OWN = "<own>"  # ends the name under which a store keeps what is only this process's, see Function.store_name
_INSIDE = ("__func__", "__wrapped__", "fget", "func", "wrapped")  # where decorators and descriptors have a function
_DEEPEST = 20  # decorators on one function


class Function:
    """What is known here of a memorized function. `serial` is a number that no other one has."""

    __slots__ = ()

    name: str
    serial: int
    options: dict[str, Any]
    module: str
    qualname: str
    named: bool  # by `name=`

    @property
    def address(self) -> str:
        """The module and the name within it, where the function has been made."""
        return f"{self.module}.{self.qualname}"

    def store_name(self) -> str:
        """The name by which a store knows the function.

        Where other functions may have this name too, it has a `<`: such as `<lambda>`, or OWN. Then the values must not
        be shared with other processes.
        """
        return self.name if self.named or "<" in self.name or self._is_the_only_one() else self.name + OWN

    def _is_the_only_one(self) -> bool:
        if self.name in _doubled:  # the values of an older one may be at the store
            return False
        found = found_at(self.module, self.qualname)
        for _ in range(_DEEPEST):
            if isinstance(found, Function):
                return found is self
            found = next((getattr(found, each) for each in _INSIDE if hasattr(found, each)), None)
        return False


# The last memorized function of each name in the process; all names so far that are addresses, and which of these were
# of several functions. Under _names_lock.
_names: weakref.WeakValueDictionary[str, Function] = weakref.WeakValueDictionary()
_seen: set[str] = set()
_doubled: set[str] = set()
_told: set[str] = set()  # what the log knows of these


_names_lock = threading.RLock()


def _after_fork() -> None:
    global _names_lock
    _names_lock = threading.RLock()


call_in_child(_after_fork)


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
        wait: Seconds = 60.0,
    ) -> None:
        self._defaults = checked(duration=duration, stale=stale, stale_if_error=stale_if_error, maxsize=maxsize)
        self._functions = {name: checked(**options) for name, options in functions.items()}
        self._timer = timer
        self._store = store
        self._wait = min(_number("wait", wait), threading.TIMEOUT_MAX)
        # The functions' state here, by their serial number. Added to under _lock; a hit reads it without.
        self.opened: dict[int, FunctionCache] = {}
        self._alive: dict[int, weakref.ref[Function]] = {}
        self._after_fork()
        call_in_child(self._after_fork)

    def _after_fork(self) -> None:
        # Re-entrant, as what a destructor does in the middle of it may come back here.
        self._lock = threading.RLock()

    def serve(self) -> None:
        """An application with these caches exists: while it is the only one, calls outside of any use them too."""
        outside.add(self)

    def close(self) -> None:
        """The application has ended."""
        outside.discard(self)

    def of_call(self, *, computes: bool) -> Caches:
        """These: a call in their context is theirs. See Outside."""
        return self

    def active(self) -> AbstractContextManager[Caches]:
        """In the `with` block, memorized functions called in this context (PEP 567) use these caches.

        A thread that is started in the block has a context of its own, and needs an `active()` of its own.
        """
        return _Active(self)

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

    def knows(self, name: str) -> bool:
        """Whether there is a function called `name`, whose values `clear` can forget."""
        return _exists(name) or any(cache.name == name for cache in self._by_name())

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
                store = self._store(function.store_name(), options.pop("maxsize"), self._timer)
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


class Outside:
    """What a call uses that is made outside of every application, such as in a script, or in a thread of one's own.

    The caches of the only application in the process; where there is none, `own`. Where there are several, those of the
    one whose request the thread is in, as the web framework says. Where that says nothing either, a call that changes
    something is refused, and one that computes is told in the log, once.
    """

    def __init__(self, own: Caches) -> None:
        self._own = own
        self.in_request: Callable[[], Caches | None] = lambda: None  # the web framework's word
        # By their ids. Any thread changes it, in single steps, and so does the end of an application.
        self._applications: dict[int, weakref.ref[Caches]] = {}
        self._told = False
        self._known: set[int] = set()  # the applications that were there after the last collection
        self.opened = own.opened  # where a hit looks; empty where there are several applications

    def add(self, caches: Caches) -> None:
        """There is an application with these caches, until `discard`, or until they are gone."""
        number = id(caches)
        self._applications[number] = weakref.ref(caches, lambda _reference: self._discard(number))
        self._look()

    def discard(self, caches: Caches) -> None:
        """The application with these caches has ended."""
        self._discard(id(caches))

    def of_call(self, *, computes: bool) -> Caches:
        """The caches of a call. Raises RuntimeError if that is unknown, unless the call `computes`."""
        applications = self._alive()
        if len(applications) > 1 and (found := self.in_request()) is not None:
            return found
        if len(applications) > 1 and (not computes or self._applications.keys() != self._known):
            del applications
            gc.collect()  # those of a test suite's earlier tests may be gone but for this
            applications = self._alive()
            self._known = set(self._applications)
        if len(applications) < 2:
            return applications[0] if applications else self._own
        message = (
            f"a memorized function is called outside of every application, and this process has {len(applications)} "
            "of them: call it `with caches.active():`, where the caches of an application are request.memorized, or "
            'registry["pushdemo.caches"]'
        )
        if not computes:
            raise RuntimeError(message)
        if not self._told:
            self._told = True
            log.warning("%s. Until then it has values of its own", message)
        return self._own

    def _discard(self, number: int) -> None:
        self._applications.pop(number, None)
        self._look()

    def _alive(self) -> list[Caches]:
        return [caches for reference in list(self._applications.values()) if (caches := reference()) is not None]

    def _look(self) -> None:
        number = -1
        while number != len(self._applications):  # another thread may add one meanwhile
            number = len(self._applications)
            applications = self._alive()
            self.opened = {} if len(applications) > 1 else [*applications, self._own][0].opened


def register(function: Function) -> None:
    """Make the name known; warn of a second function of it. Raises ValueError if that is of another address."""
    with _names_lock:
        other = _names.get(function.name)
        if other is not None and other.address != function.address:
            raise ValueError(f"name={function.name!r} for {function.address}: {other.address} has this name already")
        _names[function.name] = function
        if "<" in function.name:  # each has values of its own
            return
        if not function.named:
            (_doubled if function.name in _seen else _seen).add(function.name)
        if other is None or function.name in _told:
            return
        _told.add(function.name)
    log.warning(
        "two memorized functions are called %s, by the ini and by nodes that share values: give each a name of its "
        "own, memorize(name=...)",
        function.name,
    )


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
    return _number(option, value)


def _number(option: str, value: Any) -> float:
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{option}={value!r}: must be a number of seconds or a timedelta, such as {option}=15")
    if not number >= 0:
        raise ValueError(f"{option}={value!r}: must be 0 seconds or more, such as {option}=15")
    try:
        return float(number)
    except OverflowError:  # for ever
        return math.inf


def _maxsize(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"maxsize={value!r}: must be a whole number, such as maxsize=1024")
    if value < 1:
        raise ValueError(f"maxsize={value!r}: must be 1 or more, such as maxsize=1024")
    return value


class _Active:
    """See Caches.active. A generator with `contextmanager` takes twice as long, in each request."""

    __slots__ = ("_caches", "_token")

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    def __enter__(self) -> Caches:
        self._token = current.set(self._caches)
        return self._caches

    def __exit__(self, *_: object) -> None:
        current.reset(self._token)


outside = Outside(Caches())

# Whose values the code in this context uses.
current: ContextVar[Caches | Outside] = ContextVar("pushdemo.caches", default=outside)
