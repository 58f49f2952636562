"""What may be given to more than one caller: which values a memorized function may return, and copies of exceptions.

A value that serves one caller is refused: a response, into which the request writes cookies; a request, a visitor's
session; what is read once. An exception is not shared at all, since whoever catches it writes into it (`__context__`,
notes, its traceback): each caller who has waited gets a copy. Pure functions; any thread may call them.
"""

from __future__ import annotations

import copy
import copyreg
import io
import os
import traceback
from collections.abc import Iterable
from contextlib import suppress
from types import GeneratorType
from typing import Any

_FOLDER = os.path.dirname(__file__)
_PLAIN = frozenset({str, int, float, bool, type(None), bytes, list, tuple, set, frozenset, dict})
_READ_ONCE = ("__next__", "__anext__", "__await__", "fetchone", "fetchall", "fetchmany")
_LONGEST = 200  # lines of a note
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement has made


def check(name: str, value: Any) -> None:
    """Raise TypeError if `value` serves one caller only, or what is in it if it is a list, a tuple, a set or a dict."""
    if type(value) not in _PLAIN:
        _check_one(f"{name} returned", value)
    if isinstance(value, list | tuple | set | frozenset | dict):
        parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for part in {type(each): each for each in parts}.values():  # one of each type tells of all
            if type(part) not in _PLAIN:
                _check_one(f"{name} returned a {type(value).__name__} with", part)


def _check_one(returned: str, value: Any) -> None:
    if _is_mock(value):
        return
    if is_response(value):
        raise TypeError(
            f"{returned} a {type(value).__name__}, which is a response: it belongs to one request, whose cookies are "
            "written into it. Memorize a function that returns what the response is made of, and make it in the view"
        )
    if _is_of_one_request(value):
        raise TypeError(
            f"{returned} a {type(value).__name__}, which belongs to one request: return what is the same for all "
            "visitors"
        )
    if _is_read_once(value):
        raise TypeError(
            f"{returned} a {type(value).__name__}, which serves one caller: use a list, such as list(...) of it, or "
            "what a file contains"
        )


def is_response(value: Any) -> bool:
    """Whether `value` is what Pyramid and WebOb send to a client; many exceptions are."""
    with suppress(Exception):  # of its properties
        return all(hasattr(value, name) for name in ("headerlist", "app_iter", "status"))
    return False


def _is_mock(value: Any) -> bool:
    """Whether `value` has whatever it is asked for, so that nothing can be told of it."""
    with suppress(Exception):
        return hasattr(value, "a name that nothing else has")
    return False


def _has(value: Any, *names: str) -> bool:
    """Whether `value` has all of these attributes, as far as can be told without a property's being run."""
    kind = value.__class__  # of a transparent proxy this is the class of what is behind it
    own = getattr(value, "__dict__", {})
    return all(hasattr(kind, name) or name in own for name in names)


def _is_read_once(value: Any) -> bool:
    """Whether `value` is an iterator, an awaitable, an open file or the result of a database query."""
    own = getattr(value, "__dict__", {})
    return (
        any(_has(value, name) for name in _READ_ONCE)
        or isinstance(value, io.IOBase)
        or isinstance(own.get("file"), io.IOBase)  # as the files of `tempfile` have it
        or isinstance(own.get("gen"), GeneratorType)  # as what a @contextmanager returns has it
        or (_has(value, "read", "close") and (_has(value, "seek") or _has(value, "readline")))
    )


def copy_of(error: Exception) -> Exception | None:
    """An exception of the same type that shares nothing with `error`; None where none can be made, or none is safe.

    Its cause, its context and its traceback are not copied.
    """
    memo: dict[int, Any] = {}
    try:
        made = _rebuilt(error, memo) if _is_plain(type(error)) else copy.deepcopy(error, memo)
        same = type(made) is type(error) and str(made) == str(error) and vars(made).keys() == vars(error).keys()
    except Exception:
        return None
    if not same or is_response(made) or any(map(_is_of_one_request, memo.values())):
        return None
    return made


def template(error: Exception) -> Exception | None:
    """A copy of `error` whose notes tell where it was raised, to make more copies of; None as for `copy_of`."""
    made = None if is_response(error) else copy_of(error)
    if made is None or not isinstance(getattr(made, "__notes__", []), list):
        return None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_FOLDER)]
    lines = ["Raised for another caller, who computed the value:\n", *traceback.format_list(frames)]
    cause = error.__cause__
    while cause is not None and len(lines) < _LONGEST:  # without their contexts, of which that caller's may be one
        lines += ["The cause:\n", *traceback.format_exception(cause, chain=False)]
        cause = cause.__cause__
    made.add_note("".join(lines))
    return made


def _is_plain(kind: type[Exception]) -> bool:
    """Whether exceptions of this type consist of their `args` and attributes, so that they need no `__init__`."""
    return (
        _builtin(kind).__basicsize__ == BaseException.__basicsize__
        and kind.__reduce_ex__ is BaseException.__reduce_ex__
        and kind.__reduce__ is BaseException.__reduce__
        and not hasattr(kind, "__deepcopy__")
    )


def _rebuilt(error: Exception, memo: dict[int, Any]) -> Exception:
    kind: Any = type(error)
    made: Exception = _builtin(kind).__new__(kind, *copy.deepcopy(error.args, memo))
    vars(made).update(copy.deepcopy(vars(error), memo))
    for name in copyreg._slotnames(kind):  # type: ignore[attr-defined]
        if hasattr(error, name):
            setattr(made, name, copy.deepcopy(getattr(error, name), memo))
    return made


def _builtin(kind: type[BaseException]) -> Any:
    return next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE)


def _is_of_one_request(value: Any) -> bool:
    """Whether `value` is a response, a request or a visitor's session: not even a copy may reach another visitor."""
    return is_response(value) or _has(value, "environ", "cookies") or _has(value, "new_csrf_token")
