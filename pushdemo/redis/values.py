"""What a memorized call and its value are outside of this process: a digest, and JSON.

Pure functions; any thread may call them. Nothing here needs the `redis` package.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from typing import Any

from pushdemo.cache.keys import Instance, Key

_JSON, _PICKLE = b"j", b"p"
_PLAIN = frozenset({str, int, bool, type(None)})


def digest(key: Key) -> str | None:
    """A name for the call that is the same in every process; None for one that only this process can know.

    That is a call with an object that equals nothing but itself, or that cannot be pickled. Pickles are only compared
    here, never loaded.
    """
    try:
        return hashlib.sha256(_canonical(key)).hexdigest()
    except _OnlyHereError:
        return None


class _OnlyHereError(Exception):
    pass


def _canonical(part: Any) -> bytes:
    """The same bytes for equal parts; sets in an order of their own, since a pickle has that of this process."""
    kind = type(part)
    if kind is tuple:
        return b"(%s)" % b"".join(map(_framed, part))
    if kind is frozenset:
        return b"{%s}" % b"".join(sorted(map(_framed, part)))
    if kind is Instance:
        raise _OnlyHereError
    if isinstance(part, type):
        return f"class {part.__module__}.{part.__qualname__}".encode()
    if kind is object:
        return b"object"  # the mark that cache/keys.py puts before what stands for a list or the like
    try:
        return b"%s %s" % (kind.__qualname__.encode(), repr(part).encode() if kind in _PLAIN else pickle.dumps(part, 4))
    except Exception as error:
        raise _OnlyHereError from error


def _framed(part: Any) -> bytes:
    data = _canonical(part)
    return b"%d:%s" % (len(data), data)


def encoded(name: str, value: Any, *, may_pickle: bool) -> bytes:
    """The value that function `name` returned, as it travels.

    Raises TypeError for one that would come back as something else, naming the function and the place in the value.
    """
    try:
        _check(value, "")
        return _JSON + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:  # text may hold what UTF-8 cannot, a number be too long
        if may_pickle:
            return _PICKLE + _pickled(name, value)
        raise TypeError(
            f"{name} returned what JSON cannot carry to other nodes: {error}. Return lists, dicts with text as keys, "
            "text, numbers, booleans and None, or decorate with memorize(pickle=True)"
        ) from None


def _pickled(name: str, value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise TypeError(f"{name} returned what cannot be pickled for other nodes: {error}") from error


def decoded(data: bytes, *, may_pickle: bool) -> Any:
    """The value. Raises ValueError for a pickle where the function has not opted in: loading one runs what is in it."""
    if data[:1] == _JSON:
        return json.loads(data[1:])
    if data[:1] == _PICKLE and may_pickle:
        return pickle.loads(data[1:])
    raise ValueError("not a value that this function keeps")


def _check(value: Any, place: str) -> None:
    kind = type(value)
    if kind in _PLAIN or (kind is float and math.isfinite(value)):
        return
    if kind is list:
        for number, each in enumerate(value):
            _check(each, f"{place}[{number}]")
    elif kind is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise TypeError(f"the key {key!r}{place and f' in value{place}'} is not text")
            _check(each, f"{place}[{key!r}]")
    else:
        what = repr(value) if kind is float else f"a {kind.__qualname__}"
        raise TypeError(f"value{place} is {what}")
