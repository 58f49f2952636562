"""The key of a call: one for all ways of writing the same call, another for each different call.

A key is the values of all parameters in the signature's order, defaults filled in, and then the type of each: the types
keep 1, 1.0 and True apart. Run by: any thread; nothing here is shared.
"""

from __future__ import annotations

import inspect
import pickle
import weakref
from collections.abc import Callable, Hashable
from inspect import Parameter
from typing import Any

Key = tuple[Hashable, ...]
Values = tuple[Any, ...]
OnDeath = Callable[[Any], None]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_SEQUENCES = (tuple.__eq__, list.__eq__)
_SETS = (set.__eq__, frozenset.__eq__)
# What stands in a key for a value that cannot stand there itself is (FROZEN, its type, what is in it); no argument
# equals it.
FROZEN = object()


class Instance(weakref.ref[Any]):
    """Stands in a key for an object that equals nothing but itself, and does not keep it alive."""

    __slots__ = ()


class Signature:
    """A function's parameters, as far as keys need them. `method`: the first is the object that the method is of."""

    def __init__(self, function: Callable[..., Any], *, method: bool = False) -> None:
        self._name: str = getattr(function, "__qualname__", type(function).__qualname__)
        # A wrapper's own signature: what it wraps may take other arguments than those that it is called with.
        self._signature = inspect.signature(function, follow_wrapped=False)
        parameters = self._signature.parameters.values()
        self._named = [(each.name, each.default) for each in parameters if each.kind in _POSITIONAL]
        self._ordinary = len(self._named) == len(parameters)
        self._method = method and bool(self._named)
        # How many arguments make a call that, without keywords, is its own `values`; -1: none do.
        self.arity = len(parameters) if self._ordinary and not self._method else -1
        # For each way of writing a call (the number of positional arguments, the keywords if any) the parameters that
        # are not positional in it. Any thread adds to it; that two add the same does no harm.
        self._rest: dict[Hashable, list[tuple[str, Any]]] = {}

    def values(self, args: Values, kwargs: dict[str, Any]) -> Values:
        """The values of all parameters in their order. Raises TypeError for a call that does not fit the signature."""
        way = (len(args), *kwargs) if kwargs else len(args)
        rest = self._rest.get(way)
        if rest is None:
            # In the way of the `inspect` module, which knows what fits and takes ten times as long.
            values = self._bound(args, kwargs)
            if self._ordinary:
                self._rest[way] = self._named[len(args) :]
        elif rest:
            values = (*args, *[kwargs.get(name, default) for name, default in rest])
        else:
            values = args
        return (_part(values[0]), *values[1:]) if self._method else values

    def _bound(self, args: Values, kwargs: dict[str, Any]) -> Values:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        bound.apply_defaults()
        values: list[Any] = []
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is Parameter.VAR_POSITIONAL:
                values.extend(value)
            else:
                values.append(value)
        return tuple(values)


def quick_key(values: Values) -> Key:
    """The key of `values` if each of them can stand in a key as it is; otherwise what is no call's key.

    Raises TypeError where it is then hashed and one of them cannot be.
    """
    return (*values, *map(type, values))


def key_of(values: Values, on_death: OnDeath | None = None) -> Key:
    """The key of any `values`; `on_death` is called when an object that the key refers to ceases to be.

    Lists, tuples, sets and dicts count by what is in them; other objects by their own equality, or where they cannot be
    hashed by their pickle. Raises TypeError for an object that cannot be pickled either.
    """
    return quick_key(tuple([_part(value, on_death) for value in values]))


def is_dead(key: Key) -> bool:
    """Whether an object that `key` refers to is gone, so that no call can have this key again."""
    return any(type(part) is Instance and part() is None for part in key)


def _part(value: Any, on_death: OnDeath | None = None) -> Hashable:
    """What stands in a key for an argument."""
    if type(value) is Instance:
        value = value()
    kind: Any = type(value)
    if kind in _ATOMS or kind.__eq__ is not object.__eq__:
        return _contents(value)
    try:
        return Instance(value, on_death)
    except TypeError:  # its class leaves no room for weak references
        return _contents(value)


def _contents(value: Any) -> Hashable:
    """`value`, or what stands for it; together with its type it equals only that of an equal value, however nested."""
    kind: Any = type(value)
    if kind in _ATOMS:
        return value  # type: ignore[no-any-return]
    # By the way it compares, and not by its class: so subclasses count that compare as the built-in type does.
    if kind.__eq__ in _SEQUENCES:
        return FROZEN, kind, tuple([(type(each), _contents(each)) for each in value])
    if kind.__eq__ in _SETS:
        return FROZEN, kind, frozenset([(type(each), _contents(each)) for each in value])
    if kind.__eq__ is dict.__eq__:
        items = [(type(key), _contents(key), type(each), _contents(each)) for key, each in value.items()]
        return FROZEN, kind, frozenset(items)
    try:
        hash(value)
    except TypeError:
        return FROZEN, kind, _pickled(value)
    return value  # type: ignore[no-any-return]


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"an argument of type {type(value).__qualname__} can be neither hashed nor pickled ({error}): pass what "
            "identifies it instead, such as its id"
        ) from error
