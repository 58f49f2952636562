"""Who is told of a fork, where, and in which order."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

import pytest

from pushdemo import forking
from pushdemo.forking import call_in_child
from tests.support import in_child


class Told:
    """Notes in `calls` that it was told."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name
        call_in_child(self.after_fork)

    def after_fork(self) -> None:
        self.calls.append(self.name)


def test_the_child_alone_is_told_in_the_order_of_registration() -> None:
    calls: list[str] = []
    kept = [Told(calls, name) for name in "abc"]
    assert in_child(lambda: calls) == list("abc")
    assert calls == []
    assert len(kept) == 3


def test_a_child_of_a_child_is_told_again() -> None:
    calls: list[str] = []
    kept = Told(calls, "a")
    assert in_child(lambda: in_child(lambda: calls)) == ["a", "a"]
    assert kept.calls is calls


def test_who_is_gone_is_not_told_and_leaves_nothing() -> None:
    calls: list[str] = []
    before = len(forking._calls)
    gone = Told(calls, "gone")
    reference = weakref.ref(gone)
    del gone
    assert reference() is None
    assert len(forking._calls) == before
    assert in_child(lambda: calls) == []


def test_a_function_is_told_too() -> None:
    calls: list[int] = []

    def note() -> None:
        calls.append(os.getpid())

    call_in_child(note)
    child, told = in_child(lambda: (os.getpid(), calls))
    assert told == [child]


def test_one_that_fails_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Failing(Told):
        def after_fork(self) -> None:
            raise RuntimeError("failed on purpose")

    kept = [Failing(calls, "a"), Told(calls, "b")]
    asked: Callable[[], object] = lambda: (calls, [record.getMessage() for record in caplog.records])  # noqa: E731
    told, messages = in_child(asked)
    assert told == ["b"]
    assert len(messages) == 1
    assert "Failing" in messages[0]
    assert kept
