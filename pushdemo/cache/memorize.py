"""memorize(duration): a value is computed once for everyone, and used for a while.

Here are the decorator and what it makes of a function. How a call becomes a key is in cache/keys.py, where values are
kept in cache/store.py, who computes and who waits in cache/single_flight.py, what each application has of its own in
cache/functions.py. Run by: any thread.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from pushdemo.cache.functions import Caches, Function, Seconds, UnknownFunctionError, checked, current, register
from pushdemo.cache.keys import Signature, Values, key_of
from pushdemo.cache.single_flight import FunctionCache, Info, RecursiveCallError

__all__ = ["Bound", "Caches", "Info", "Memorized", "RecursiveCallError", "UnknownFunctionError", "memorize"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

_serials = itertools.count()
_caches = current.get  # a name of its own, as looking the method up would take a quarter of a hit's time


class Memorized(Function, Generic[P, R]):
    """A function whose values are kept; `memorize` makes it. Binds to objects as a function does."""

    # What each hit reads: a slot is read faster than the dictionary that update_wrapper fills.
    __slots__ = ("__dict__", "__weakref__", "_arity", "serial")

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, R]

    def __init__(
        self, function: Callable[P, R], name: str | None, ignore: Collection[str], options: dict[str, Any]
    ) -> None:
        update_wrapper(self, function)
        self.module = getattr(function, "__module__", None) or "builtins"
        self.qualname = getattr(function, "__qualname__", type(function).__qualname__)
        self.name = name or self.address
        self.named = name is not None
        self.options = options
        self.serial = next(_serials)
        parent = self.qualname.rpartition(".")[0]
        in_class = parent != "" and not parent.endswith("<locals>")
        self._signature = Signature(function, method=in_class, ignore=ignore)
        self._arity = self._signature.arity
        self._function = function
        register(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        values = args if len(args) == self._arity and not kwargs else self._signature.values(args, kwargs)
        try:
            cache = _caches().opened[self.serial]
            # quick_key() written out: calling it would take as long as what it does.
            entry = cache.near[(*values, *map(type, values)) if values else values]
            if cache.timer() < entry.fresh_until:
                entry.used = True
                cache.hits += 1
                return entry.value  # type: ignore[no-any-return]
        except (KeyError, TypeError):  # not called here so far, or a value that cannot be hashed
            pass
        return self._missed(values, partial(self._function, *args, **kwargs))

    def _missed(self, values: Values, compute: Callable[[], R]) -> R:
        cache = _caches().of_call(computes=True).open(self)
        return cache.get(key_of(values, cache.died), compute)  # type: ignore[no-any-return]

    @overload
    def __get__(self: Memorized[Concatenate[Any, Q], R], instance: None, owner: type) -> Bound[Q, P, R]: ...

    # The first parameter's type is left open here: a subclass may override a method, and its self is another.
    @overload
    def __get__(
        self: Memorized[Concatenate[Any, Q], R], instance: object, owner: type | None = ...
    ) -> Bound[Q, Concatenate[Any, Q], R]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = ...) -> Memorized[P, R]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else Bound(self, instance)

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the value of the call with these arguments, and the one that is being computed for it.

        Arguments that `ignore` names may be left out. Raises RuntimeError outside of every application if the process
        has several; so do `clear` and `info`.
        """
        self._cache().invalidate(key_of(self._signature.values_to_forget(args, kwargs)))

    def clear(self) -> None:
        """Forget all values in the current application, and those that are being computed."""
        self._cache().clear()

    def info(self) -> Info:
        """What this function's calls in the current application came to."""
        return self._cache().info()

    def _cache(self) -> FunctionCache:
        return _caches().of_call(computes=False).open(self)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<memorized {self._function!r}>"


class _ClassMethod(Memorized[P, R]):
    """What `@memorize` makes of a class method; of a static method it makes a static method."""

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return Bound(self, type(instance) if owner is None else owner)


class Bound(partial[R], Generic[Q, P, R]):
    # A memorized method, and the object or the class that it was taken from. Q are its parameters without the first,
    # P all of them: a type checker cannot tell what is taken from a class, or is a static method, and allows both.
    # help() shows the method: it is a routine, as what has a __get__ is, with the method's own name and words.

    func: Any

    @property
    def __name__(self) -> str:
        name: str = self.func.__name__
        return name

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        doc: str | None = self.func.__doc__
        return doc

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(partial(self.func, *self.args))

    def __get__(self, instance: object, owner: type | None = None) -> Bound[Q, P, R]:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((self.func, id(self.args[0])))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.args[0], self.__name__)

    if TYPE_CHECKING:

        @overload
        def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R: ...

        @overload
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R: ...

        def __call__(self, /, *args: Any, **kwargs: Any) -> R: ...

    @overload
    def invalidate(self, /, *args: Q.args, **kwargs: Q.kwargs) -> None: ...

    @overload
    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None: ...

    def invalidate(self, /, *args: Any, **kwargs: Any) -> None:
        """`Memorized.invalidate` for this object."""
        self.func.invalidate(*self.args, *args, **kwargs)

    def clear(self) -> None:
        """`Memorized.clear`: the method's values of all objects."""
        self.func.clear()

    def info(self) -> Info:
        """`Memorized.info`: the method's calls on all objects."""
        return self.func.info()  # type: ignore[no-any-return]


@overload
def memorize(function: Callable[P, R], /) -> Memorized[P, R]: ...


@overload
def memorize(
    duration: Seconds | None = None,
    *,
    name: str | None = None,
    maxsize: int | None = None,
    ignore: Collection[str] = (),
    stale: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    pickle: bool = False,
) -> Callable[[Callable[P, R]], Memorized[P, R]]: ...


def memorize(
    duration: Any = None,
    *,
    name: str | None = None,
    maxsize: int | None = None,
    ignore: Collection[str] = (),
    stale: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    pickle: bool = False,
) -> Any:
    """Decorate a function so that its value is computed once for everyone, and used for `duration` seconds.

    Durations are numbers of seconds or timedeltas. What is left out is as the application has it, in its ini under
    `pushdemo.memorize.duration` and so on. With a duration of 0 each call computes. `name` is what the ini and
    `Caches.info` call the function, instead of `module.qualified_name`; `maxsize` is how many values are kept.

    Calls with the same arguments share a value, however they are written; the same are equal ones of one type, lists,
    dicts and dataclasses too. `ignore` names parameters that are no part of this, such as `("request", "dbsession")`.
    All callers are given the same object, so it must not be changed. While one caller computes, the others wait and get
    its value, or an exception that is a copy of its own; an exception is not kept, and one that is a response is not
    shared at all. With `stale`, for so many seconds after the duration the old value is given out at once while one
    caller computes the new one. With `stale_if_error`, for so many seconds the old value takes the place of an
    exception, which is logged.

    Where nodes share their values at a Redis, these travel as JSON, and a call that returns what JSON cannot carry
    raises TypeError. With `pickle=True` such values are pickled: then whoever can write there can run code here. What
    is not the one function at its module and qualified name, such as a closure or a partial, shares with other nodes
    only if it has a `name`.

    The result is called as the function is, and has `invalidate(*args, **kwargs)`, `clear()` and `info()`. On methods,
    values do not keep the object alive; on class and static methods it stands above `@classmethod`, `@staticmethod`.

    Raises TypeError or ValueError where it decorates, for an option or a function that will not do. A call can raise
    RecursiveCallError (it asks for what it is computing), TimeoutError (another has been computing for too long), and
    TypeError for a value that serves one caller only: a response, or what is read once, such as an iterator.
    """
    given = {"maxsize": maxsize, "stale": stale, "stale_if_error": stale_if_error}
    bare = callable(duration) or isinstance(duration, staticmethod | classmethod)
    if not bare:
        given["duration"] = duration
    options = checked(**{option: value for option, value in given.items() if value is not None})
    if pickle:
        options["pickle"] = True

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod):
            return staticmethod(decorate(function.__func__))
        if isinstance(function, classmethod):
            return _ClassMethod(_suitable(function.__func__), name, ignore, options)
        return Memorized(_suitable(function), name, ignore, options)

    return decorate(duration) if bare else decorate


def _suitable(function: Any) -> Any:
    if not callable(function):
        raise TypeError(f"memorize decorates functions, not {function!r}")
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called):
            raise TypeError(
                f"memorize cannot keep what the coroutine function {function!r} returns: it is awaited once"
            )
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                f"memorize cannot keep what the generator function {function!r} returns: it is read once. Memorize a "
                "function that returns a list, or push the generator with json_yield or as the source of a topic"
            )
    return function
