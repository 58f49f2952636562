"""What a memorized call and its value are outside of this process: a digest, and JSON.

Pure functions; any thread may call them. Nothing here needs the `redis` package.
"""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

from pushdemo.cache import canonical
from pushdemo.cache.keys import Key

_JSON, _PICKLE = b"j", b"p"
_PLAIN = frozenset({str, int, bool, type(None)})


def digest(key: Key) -> str:
    """A name for the call that is the same in every process. Raises NotCanonicalError for one that has none."""
    return canonical.digest(key).hex()


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
