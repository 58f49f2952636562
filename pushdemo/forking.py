"""What happens at a fork, for the whole package.

A forked child has a copy of all memory but only the thread that forked: the other threads are gone, and the locks that
they held stay locked for ever. An object with threads, locks or sockets of its own gives a method to `call_in_child`.
The child calls these methods before `os.fork` returns there, in the order in which they were given. Such a method makes
new locks rather than take old ones, and trusts only what one bytecode changes: a dict or a list as a whole, say.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

log = logging.getLogger("pushdemo")

# By number: a reference to the object whose method it is, and the method's function; or to a function, and None. Any
# thread adds and removes, each in one step of the interpreter: a lock here might be held at the fork.
_calls: dict[int, tuple[weakref.ref[Any], Callable[[Any], None] | None]] = {}
_numbers = itertools.count()


def call_in_child(function: Callable[[], None]) -> None:
    """Call `function` in each forked child, as long as the function, or the object whose method it is, exists."""
    number = next(_numbers)
    pop = _calls.pop  # at the interpreter's end this outlives the module's names

    def forget(_reference: object) -> None:
        pop(number, None)

    if isinstance(function, MethodType):
        _calls[number] = weakref.ref(function.__self__, forget), function.__func__
    else:
        _calls[number] = weakref.ref(function, forget), None


def _call_all() -> None:
    for number in list(_calls):  # not items(): making pairs may run the collector, and that `forget`
        reference, method = _calls.get(number, (None, None))
        target = reference and reference()
        if target is not None:
            try:
                method(target) if method else target()
            except Exception:
                log.exception("in a forked process %r failed", method or target)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_call_all)
