"""The key of a call: one for all ways of writing the same call, another for each different call.

A key has the values of all parameters in the signature's order, defaults filled in, and then the type of each: the
types keep 1, 1.0 and True apart. Run by: any thread; nothing here is shared.
"""

from __future__ import annotations

import copyreg
import inspect
import pickle
import sys
from collections import deque
from collections.abc import Callable, Collection, Hashable
from inspect import Parameter
from typing import Any

from pushdemo.cache.canonical import FROZEN, Instance, NotCanonicalError, compared_fields, digest

Key = tuple[Hashable, ...]
Values = tuple[Any, ...]
OnDeath = Callable[[Any], None]

# Elements and characters of an argument. Of a larger one the key has a digest: a list of a million numbers would be
# 64 MB in each key, and take 0.3 s to be looked up.
LARGE = 1000

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NUMBERS = frozenset({int, float, complex, bool, type(None)})
_TEXTS = frozenset({str, bytes})
# By the way in which they compare, and not by their class: so subclasses count that compare as the built-in type does.
_COLLECTIONS: dict[Any, type[Any]] = {
    tuple.__eq__: tuple,
    list.__eq__: tuple,
    deque.__eq__: tuple,
    set.__eq__: frozenset,
    frozenset.__eq__: frozenset,
    dict.__eq__: dict,
}


class Signature:
    """A function's parameters, as far as keys need them.

    `method`: the first parameter is the object that the method is of. `ignore`: parameters that are no part of the key.
    Raises ValueError for a name in `ignore` that the function has no parameter for.
    """

    def __init__(
        self, function: Callable[..., Any], *, method: bool = False, ignore: Collection[str] = frozenset()
    ) -> None:
        self._name: str = getattr(function, "__qualname__", type(function).__qualname__)
        # A wrapper's own signature: what it wraps may take other arguments than those that it is called with.
        self._signature = inspect.signature(function, follow_wrapped=False)
        parameters = self._signature.parameters.values()
        self._named = [(each.name, each.default) for each in parameters if each.kind in _POSITIONAL]
        self._ordinary = len(self._named) == len(parameters)
        self._ignore = _known(ignore, self._name, list(parameters))
        first = self._named[0][0] if method and self._named else None
        self._method = first is not None and first not in self._ignore
        self._kept = [number for number, (name, _) in enumerate(self._named) if name not in self._ignore]
        # How many arguments make a call that, without keywords, is its own `values`; -1: none do.
        self.arity = len(parameters) if self._ordinary and not self._method and not self._ignore else -1
        # For each way of writing a call (the number of positional arguments, the keywords if any) the parameters that
        # are not positional in it. Any thread adds to it; that two add the same does no harm.
        self._rest: dict[Hashable, list[tuple[str, Any]]] = {}

    def values(self, args: Values, kwargs: dict[str, Any]) -> Values:
        """The values that make the key, in the parameters' order. Raises TypeError for a call that does not fit."""
        way = (len(args), *kwargs) if kwargs else len(args)
        rest = self._rest.get(way)
        if rest is None:
            # In the way of the `inspect` module, which knows what fits and takes ten times as long.
            values = self._of_bound(self._bound(args, kwargs))
            if self._ordinary:
                self._rest[way] = self._named[len(args) :]
            return self._with_instance(values)
        values = (*args, *[kwargs.get(name, default) for name, default in rest]) if rest else args
        if self._ignore:
            values = tuple([values[number] for number in self._kept])
        return self._with_instance(values)

    def values_to_forget(self, args: Values, kwargs: dict[str, Any]) -> Values:
        """`values` of a call in which arguments that are no part of the key may be missing."""
        if not self._ignore:
            return self.values(args, kwargs)
        try:
            bound = self._signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        for name in self._ignore:
            bound.arguments.setdefault(name, None)
        bound.apply_defaults()
        for name in self._signature.parameters:
            if name not in bound.arguments:
                raise TypeError(f"{self._name}(): missing a required argument: {name!r}")
        return self._with_instance(self._of_bound(bound))

    def _bound(self, args: Values, kwargs: dict[str, Any]) -> inspect.BoundArguments:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        bound.apply_defaults()
        return bound

    def _of_bound(self, bound: inspect.BoundArguments) -> Values:
        values: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            if name in self._ignore:
                continue
            value = bound.arguments[name]
            if parameter.kind is Parameter.VAR_POSITIONAL:
                values.extend(value)
            elif parameter.kind is Parameter.VAR_KEYWORD:
                values.append({each: value[each] for each in value if each not in self._ignore})
            else:
                values.append(value)
        return tuple(values)

    def _with_instance(self, values: Values) -> Values:
        return (_part(values[0]), *values[1:]) if self._method and values else values


def _known(ignore: Collection[str], function: str, parameters: list[Parameter]) -> frozenset[str]:
    """The names as a set, if the function has parameters for them."""
    names = frozenset({ignore} if isinstance(ignore, str) else ignore)
    unknown = names - {each.name for each in parameters}
    if unknown and not any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
        has = ", ".join(each.name for each in parameters) or "none"
        raise ValueError(f"ignore={sorted(unknown)}: {function}() has no such parameters; it has {has}")
    return names


def quick_key(values: Values) -> Key:
    """The key of `values` if each of them can stand in a key as it is; otherwise what is no call's key.

    Raises TypeError where it is then hashed and one of them cannot be.
    """
    return (*values, *map(type, values))


def key_of(values: Values, on_death: OnDeath | None = None) -> Key:
    """The key of any `values`; `on_death` is called when an object that the key refers to ceases to be.

    Lists, tuples, sets, dicts and dataclasses count by what is in them; other objects by their own equality, or where
    they cannot be hashed by what pickle would take of them. Raises TypeError for an object that has nothing of this.
    """
    if len(values) > LARGE:
        try:
            return FROZEN, FROZEN, digest(values)
        except NotCanonicalError:
            pass
    return quick_key(tuple([_part(value, on_death) for value in values]))


def is_dead(key: Key) -> bool:
    """Whether an object that `key` refers to is gone, so that no call can have this key again."""
    return any(type(part) is Instance and part() is None for part in key)


def _part(value: Any, on_death: OnDeath | None = None) -> Hashable:
    """What stands in a key for an argument."""
    if type(value) is Instance:
        value = value()
    kind: Any = type(value)
    if kind in _NUMBERS:
        return value  # type: ignore[no-any-return]
    if kind not in _TEXTS and kind.__eq__ is object.__eq__:
        try:
            return Instance(value, on_death)
        except TypeError:  # its class leaves no room for weak references
            pass
    try:
        return _contents(value, [LARGE])
    except _TooLargeError:
        return _digest_or_contents(value)
    except RecursionError:  # it contains itself
        return FROZEN, kind, _pickled(value)


class _TooLargeError(Exception):
    pass


def _digest_or_contents(value: Any) -> Hashable:
    try:
        return FROZEN, type(value), digest(value)
    except NotCanonicalError:
        pass
    try:
        return _contents(value, [sys.maxsize])
    except RecursionError:
        return FROZEN, type(value), _pickled(value)


def _take(room: list[int], count: int) -> None:
    """Note so many elements or characters of an argument; `room` is how many more it may have before it is large."""
    room[0] -= count
    if room[0] < 0:
        raise _TooLargeError


def _contents(value: Any, room: list[int]) -> Hashable:
    """`value`, or what stands for it; together with its type it equals only that of an equal value, however nested."""
    kind: Any = type(value)
    if kind in _NUMBERS:
        return value  # type: ignore[no-any-return]
    if kind in _TEXTS:
        if len(value) > LARGE:
            return FROZEN, kind, digest(value)
        _take(room, len(value))
        return value  # type: ignore[no-any-return]
    gather = _COLLECTIONS.get(kind.__eq__)
    if gather is not None:
        _take(room, len(value))
        parts = [(type(each), each if type(each) in _NUMBERS else _contents(each, room)) for each in value]
        if gather is dict:
            pairs = zip(parts, value.values(), strict=True)
            return FROZEN, kind, frozenset([(part, type(each), _contents(each, room)) for part, each in pairs])
        return FROZEN, kind, gather(parts)
    names = compared_fields(kind)
    fields = None if names is None else _contents([getattr(value, name) for name in names], room)
    try:
        hash(value)
    except TypeError:
        return FROZEN, kind, _reduced(value, room) if fields is None else fields
    return value  # type: ignore[no-any-return]


def _reduced(value: Any, room: list[int]) -> Hashable:
    """What pickle would take of `value`, by its contents: the pickle itself tells equal texts from identical ones."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception as error:
        raise _cannot_stand_in_a_key(value, error) from error
    if isinstance(reduced, str):
        return reduced
    # A function and its arguments, a state, and iterators over items of a list and a dict.
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    return _contents((make, args, state, list(items or ()), list(pairs or ())), room)


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise _cannot_stand_in_a_key(value, error) from error


def _cannot_stand_in_a_key(value: Any, error: Exception) -> TypeError:
    return TypeError(
        f"an argument of type {type(value).__qualname__} can be neither hashed nor pickled ({error}): pass what "
        "identifies it instead, such as its id"
    )
