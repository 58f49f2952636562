"""What the tests of memorize share: a clock that passes when told, threads that call within the test's application."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from tests.support import PATIENCE


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Source:
    """A function's inside: counts its calls, returns the count, and raises when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def __call__(self, *args: Any) -> int:
        self.calls += 1
        if self.fails:
            raise ConnectionError(f"call {self.calls} failed")
        return self.calls


class Asked:
    """A call in a thread of its own, with the caches that are active where it is made."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def answer(self) -> Any:
        """What the call returned; raises what it raised."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the call does not come to an end"
        if self._error is not None:
            raise self._error
        return self._value

    def error(self) -> BaseException | None:
        """What the call raised, or None."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the call does not come to an end"
        return self._error


def together(number: int, call: Callable[[], Any]) -> list[Asked]:
    """The call from so many threads at one moment."""
    gate = threading.Barrier(number)

    def at_once() -> Any:
        gate.wait(PATIENCE)
        return call()

    return [Asked(at_once) for _ in range(number)]


class Gate:
    """Where a function under test stops: `reached` when a thread is there, `open` to let all go on."""

    def __init__(self) -> None:
        self._reached = threading.Semaphore(0)
        self._open = threading.Event()

    def stop(self) -> None:
        """Called by the function: note that it is here and wait."""
        self._reached.release()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def reached(self) -> None:
        """Wait until one more thread is here."""
        assert self._reached.acquire(timeout=PATIENCE), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()
