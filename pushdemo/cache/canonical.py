"""Bytes for a value: the same in every process, for equal values of one type the same, for others not.

They name a call at Redis, and stand in a key for a large argument. A type is judged by how it compares: by the `__eq__`
that it has, its own or inherited. Types that compare in a way of their own have no such bytes, since equal values may
look different; nor have objects that equal nothing but themselves, unless every process finds them at one address, as
classes, functions and members of enumerations. Pure functions; any thread may call them.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import hashlib
import ipaddress
import marshal
import pathlib
import sys
import types
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

# What keys.py puts for a value that cannot stand in a key itself is (FROZEN, its type, what is in it). No argument
# equals it.
FROZEN = object()


class Instance(weakref.ref[Any]):
    """Stands in a key for an object that equals nothing but itself, and does not keep it alive."""

    __slots__ = ()


class NotCanonicalError(Exception):
    """A value of type `kind` has no bytes that are the same in every process."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        super().__init__(f"{kind.__module__}.{kind.__qualname__}")


def digest(value: Any) -> bytes:
    """32 bytes that stand for `value`. Raises NotCanonicalError."""
    try:
        return hashlib.sha256(canonical(value)).digest()
    except RecursionError:  # it contains itself
        raise NotCanonicalError(type(value)) from None


def canonical(value: Any) -> bytes:
    """The bytes of `value`. Raises NotCanonicalError."""
    if value is FROZEN or value is None:
        return b"frozen" if value is FROZEN else b"none"
    kind: Any = type(value)
    if kind is Instance:
        value = value()
        kind = type(value)
        if value is None:  # it is gone
            raise NotCanonicalError(Instance)
    encode = _BY_EQUALITY.get(kind.__eq__)
    try:
        if encode is not None and isinstance(value, enum.Enum):
            return _tagged(kind, value._name_.encode() if value._name_ else canonical(value._value_))
        if encode is not None:
            return _tagged(kind, encode(value))
        names = compared_fields(kind)
        if names is not None:
            return _tagged(kind, _framed(canonical(getattr(value, name)) for name in names))
    except (OverflowError, ValueError):  # a moment outside of the calendar in UTC
        pass
    raise NotCanonicalError(kind)


@lru_cache
def compared_fields(kind: type) -> list[str] | None:
    """The names of the fields by which objects of `kind` compare, if `dataclass` has made its `__eq__`; else None."""
    code = getattr(kind.__eq__, "__code__", None)
    if code is None or code.co_filename != "<string>" or not is_dataclass(kind):
        return None
    owner: Any = next(each for each in kind.__mro__ if "__eq__" in vars(each))
    return [field.name for field in fields(owner) if field.compare]


def found_at(module: str | None, qualname: str) -> Any:
    """What the loaded module `module` has under `qualname`, or None."""
    found: Any = sys.modules.get(module or "builtins")
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _tagged(kind: type, data: bytes) -> bytes:
    return b"%s %s" % (_address(kind), data)


def _framed(parts: Iterable[bytes]) -> bytes:
    return b"".join([b"%d:%s" % (len(part), part) for part in parts])


def _address(value: Any) -> bytes:
    """Where every process finds this very object. Raises NotCanonicalError where none is sure to."""
    if isinstance(value, type) and value in _BUILTIN:
        return _BUILTIN[value]
    if isinstance(value, types.ModuleType):
        module: str | None = ""
        name, found = value.__name__, sys.modules.get(value.__name__)
    else:
        name = getattr(value, "__qualname__", None) or value.__reduce_ex__(4)
        module = getattr(value, "__module__", None) or getattr(getattr(value, "__self__", None), "__module__", None)
        found = found_at(module, name) if isinstance(name, str) else None
    if found is not value and not (isinstance(value, _METHODS) and found == value):
        raise NotCanonicalError(type(value))
    return f"{module}:{name}".encode(errors="surrogatepass")


def _identity(value: Any) -> bytes:
    """Of an object that equals nothing but itself."""
    try:
        if isinstance(value, datetime.tzinfo):
            reduced: Any = value.__reduce_ex__(4)
            make, args = reduced[:2]
            if make(*args) is value:  # a zone of zoneinfo is one object in each process
                return canonical(args)
        return _address(value)
    except NotCanonicalError:
        raise
    except Exception:  # what its __reduce_ex__ raises
        raise NotCanonicalError(type(value)) from None


_METHODS = (types.MethodType, types.BuiltinMethodType)  # made anew each time that they are looked up
# Types that have no address in `builtins`, or are looked up all the time.
_BUILTIN: dict[type, bytes] = {each: name.encode() for name, each in vars(types).items() if isinstance(each, type)}
_BUILTIN |= {each: each.__name__.encode() for each in (bool, int, float, str, bytes, type, list, tuple, dict, Instance)}
_FLAT = frozenset({bool, int, float, str, bytes, type(None)})
_SORTABLE = ({int}, {str}, {bytes}, set[Any]())


def _sequence(value: Iterable[Any]) -> bytes:
    items = tuple(value)
    kinds = set(map(type, items))
    if not kinds <= _FLAT:
        return _framed(map(canonical, items))
    # A hundred times as fast. Version 2 of the format writes equal values alike, but for 0.0 and -0.0.
    if float in kinds and 0.0 in items:
        items = tuple([each + 0.0 if type(each) is float else each for each in items])
    return marshal.dumps(items, 2)


def _set(value: Iterable[Any]) -> bytes:
    items = list(value)
    if set(map(type, items)) in _SORTABLE:
        return _sequence(sorted(items))
    return _framed(sorted(map(canonical, items)))


def _dict(value: dict[Any, Any]) -> bytes:
    if set(map(type, value)) in _SORTABLE:
        keys = sorted(value)
        return _framed((_sequence(keys), _sequence([value[key] for key in keys])))
    return _framed(sorted(_framed((canonical(key), canonical(each))) for key, each in value.items()))


def _decimal(value: decimal.Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not isinstance(exponent, int):  # an infinity, or not a number
        return str(value).encode()
    short = text.rstrip("0")
    return b"%d %s %d" % (sign, short.encode(), exponent + len(text) - len(short)) if short else b"0"


def _datetime(value: datetime.datetime) -> bytes:
    value = value.replace(fold=0)
    if value.utcoffset() is None:
        return value.replace(tzinfo=None).isoformat().encode()
    return value.astimezone(datetime.UTC).isoformat().encode()


def _time(value: datetime.time) -> bytes:
    value = value.replace(fold=0)
    offset = value.utcoffset()
    if offset is None:
        return value.replace(tzinfo=None).isoformat().encode()
    since = datetime.timedelta(
        hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
    )
    return b"UTC %s" % str(since - offset).encode()


def _text(value: object) -> bytes:
    return str(value).encode(errors="surrogatepass")


_BY_EQUALITY: dict[Any, Callable[[Any], bytes]] = {
    object.__eq__: _identity,
    types.MethodType.__eq__: _identity,
    types.BuiltinMethodType.__eq__: _identity,
    str.__eq__: lambda value: str.encode(value, errors="surrogatepass"),
    bytes.__eq__: bytes,
    bytearray.__eq__: bytes,
    int.__eq__: lambda value: b"%x" % int(value),
    float.__eq__: lambda value: repr(float(value) + 0.0).encode(),
    complex.__eq__: lambda value: repr((value.real + 0.0, value.imag + 0.0)).encode(),
    list.__eq__: _sequence,
    tuple.__eq__: _sequence,
    deque.__eq__: _sequence,
    set.__eq__: _set,
    frozenset.__eq__: _set,
    dict.__eq__: _dict,
    OrderedDict.__eq__: lambda value: _sequence([(key, each) for key, each in value.items()]),
    range.__eq__: lambda value: _sequence((len(value), *value[:1], *([value.step] if len(value) > 1 else []))),
    datetime.date.__eq__: lambda value: datetime.date.isoformat(value).encode(),
    datetime.datetime.__eq__: _datetime,
    datetime.time.__eq__: _time,
    datetime.timedelta.__eq__: lambda value: repr((value.days, value.seconds, value.microseconds)).encode(),
    datetime.timezone.__eq__: lambda value: _text(value.utcoffset(None)),
    decimal.Decimal.__eq__: _decimal,
    Fraction.__eq__: lambda value: b"%x/%x" % (value.numerator, value.denominator),
    uuid.UUID.__eq__: lambda value: value.bytes,
    ipaddress.IPv4Address.__eq__: _text,
    ipaddress.IPv6Address.__eq__: _text,
    ipaddress.IPv4Network.__eq__: _text,
    ipaddress.IPv4Interface.__eq__: _text,
    ipaddress.IPv6Interface.__eq__: _text,
}
if pathlib.Path is not pathlib.WindowsPath and issubclass(type(pathlib.Path()), pathlib.PosixPath):
    _BY_EQUALITY[pathlib.PurePath.__eq__] = _text  # on Windows paths compare without regard to case
