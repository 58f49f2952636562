"""Ends what nobody has ended: bodies that a server or a middleware has dropped unclosed, applications that are gone.

Python's garbage collector finds them. It may run in any thread at any moment, also while that thread holds a lock; to
wait for a lock there may be to wait for ever. So what the collector finds is ended in a thread of its own.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

# Generators that have not ended. The collector would close them itself, were they not held here. Any thread adds and
# discards, each in one step of the interpreter.
_running: set[Generator[bytes, None, None]] = set()


def end_in_thread(function: Callable[[], None]) -> None:
    """Call `function` in a thread of its own; at the interpreter's end, when there is no other thread, in this one.

    Takes no lock: a Thread object would.
    """
    if threading.main_thread().is_alive():
        with suppress(RuntimeError):  # the system has no thread for it
            _thread.start_new_thread(function, ())
            return
    function()


class Body(Iterator[bytes]):
    """The bytes of a generator. Dropped in its midst, the generator is closed in a thread of its own.

    One thread at a time calls it.
    """

    def __init__(self, generator: Generator[bytes, None, None]) -> None:
        self._generator = generator
        _running.add(generator)

    def __next__(self) -> bytes:
        try:
            return next(self._generator)
        except BaseException:
            _running.discard(self._generator)
            raise

    def close(self) -> None:
        """Close the generator. PEP 3333 has servers call this."""
        self._generator.close()
        _running.discard(self._generator)

    def __del__(self) -> None:
        if self._generator in _running:
            end_in_thread(self.close)
