"""The pool of the sources: when a call is made, by how many threads, and what a slow one does to the others."""

from __future__ import annotations

import logging
import threading
import time as clocks
from collections.abc import Iterator
from itertools import count

import pytest

from pushdemo.topics.pool import LATE, SourcePool
from tests.support import PATIENCE, threads, wait_until


def running() -> list[threading.Thread]:
    """The threads of the pools of this test."""
    names = {"pushdemo-sources", *(f"pushdemo-source-{number}" for number in range(1, 50))}
    return [thread for name in names for thread in threads(name)]


class Hold:
    """A call that takes until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self._go_on.wait(PATIENCE)
        self.ended.set()

    def let_go(self) -> None:
        self._go_on.set()


@pytest.fixture
def holds() -> Iterator[list[Hold]]:
    """Ten of them, which the test's end lets go."""
    made = [Hold() for _ in range(10)]
    yield made
    for hold in made:
        hold.let_go()
    wait_until(lambda: not running(), what="the end of the pool's threads")


def begun(holds: list[Hold]) -> int:
    return sum(hold.begun.is_set() for hold in holds)


def test_calls_are_made_when_they_are_due_in_that_order() -> None:
    pool, made, done = SourcePool(threads=1), [], threading.Event()
    now = pool.clock()
    for after in (0.03, 0.01, 0.05, 0.02):
        pool.call_at(now + after, lambda after=after: made.append((after, pool.clock() >= now + after)))
    pool.call_at(now + 0.06, done.set)
    assert done.wait(PATIENCE)
    assert made == [(0.01, True), (0.02, True), (0.03, True), (0.05, True)]


def test_an_earlier_call_goes_before_one_that_is_due_in_an_hour() -> None:
    pool, done = SourcePool(), threading.Event()
    later = pool.call_at(pool.clock() + 3600, lambda: None)
    pool.call_at(pool.clock(), done.set)
    assert done.wait(PATIENCE)
    pool.cancel(later)


def test_a_cancelled_call_is_not_made_and_is_not_kept() -> None:
    pool, made = SourcePool(), []
    done = threading.Event()
    for number in range(1000):
        pool.cancel(pool.call_at(pool.clock() + 3600 - number, lambda: made.append(1)))
    pool.call_at(pool.clock() + 0.01, done.set)
    assert done.wait(PATIENCE)
    assert made == []
    wait_until(lambda: not running(), what="the end of the pool's threads")


def test_no_thread_is_left_when_nothing_is_to_be_done() -> None:
    pool, done = SourcePool(), threading.Event()
    assert running() == []
    pool.call_at(pool.clock(), done.set)
    assert done.wait(PATIENCE)
    wait_until(lambda: not running(), what="the end of the pool's threads")


def test_a_worker_that_comes_back_when_the_scheduler_has_ended_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, over = SourcePool(), SourcePool._done

    def late(pool: SourcePool) -> bool:
        counts = over(pool)
        wait_until(lambda: pool._scheduler is None, what="the end of the scheduler")
        return counts

    monkeypatch.setattr(SourcePool, "_done", late)
    monkeypatch.setattr("pushdemo.topics.pool._IDLE", 3600.0)
    done = threading.Event()
    pool.call_at(pool.clock(), done.set)
    assert done.wait(PATIENCE)
    wait_until(lambda: not running(), what="the end of the worker")
    assert (pool._workers, pool._idle) == (0, 0)


def test_no_more_calls_at_a_time_than_it_has_threads(holds: list[Hold]) -> None:
    pool = SourcePool(threads=4)
    for hold in holds:
        pool.call_at(pool.clock(), hold)
    wait_until(lambda: begun(holds) == 3)
    assert len(running()) == 4, "three workers and the scheduler"
    assert pool.busy == 10
    holds[0].let_go()
    wait_until(lambda: begun(holds) == 4)
    assert len(running()) == 4


@pytest.mark.heavy
def test_calls_that_return_at_once_need_few_threads() -> None:
    pool, done, seen = SourcePool(threads=8), threading.Event(), set()
    now = pool.clock()
    for number in range(500):
        pool.call_at(now + number / 2000, lambda: seen.add(threading.get_ident()))
    pool.call_at(now + 0.3, done.set)
    assert done.wait(PATIENCE)
    assert len(seen) <= 3


def test_a_slow_call_leaves_the_count_so_that_others_go_on(holds: list[Hold]) -> None:
    pool = SourcePool(threads=2, slow=0.02)
    for hold in holds:
        pool.call_at(pool.clock(), hold)
    wait_until(lambda: begun(holds) == 10, what="a thread for each")
    assert not pool.full


def test_no_more_slow_calls_than_the_limit_and_the_log_says_so(
    holds: list[Hold], caplog: pytest.LogCaptureFixture
) -> None:
    pool = SourcePool(threads=3, limit=3, slow=0.02)
    with caplog.at_level(logging.WARNING, "pushdemo"):
        for hold in holds:
            pool.call_at(pool.clock(), hold)
        wait_until(lambda: begun(holds) == 5, what="two that count, and three that do not")
        wait_until(lambda: pool.full)
    (said,) = caplog.messages
    assert "3 threads are kept" in said
    assert "pushdemo.sources.limit" in said
    for hold in holds[:3]:
        hold.let_go()
    wait_until(lambda: begun(holds) == 8, what="room for three more")


def test_threads_of_their_own_count_among_the_slow(holds: list[Hold]) -> None:
    pool = SourcePool(limit=2)
    assert [pool.begin_apart(hold, "mine") for hold in holds[:3]] == [True, True, False]
    wait_until(lambda: begun(holds) == 2)
    holds[0].let_go()
    wait_until(lambda: not pool.full)
    assert pool.begin_apart(holds[3], "mine")
    assert pool.full


def test_the_log_says_once_that_sources_are_late(caplog: pytest.LogCaptureFixture) -> None:
    pool, done, now = SourcePool(threads=2), threading.Event(), clocks.monotonic()
    for late in (0.0, LATE + 1, LATE + 3, LATE + 2):
        pool.call_at(now - late, lambda: None)
    pool.call_at(now + 0.05, done.set)
    assert done.wait(PATIENCE)
    lines = [record.getMessage() for record in caplog.records if "sources are late" in record.getMessage()]
    assert len(lines) == 1
    assert "pushdemo.sources.threads" in lines[0]


def test_an_error_ends_neither_thread_nor_pool(caplog: pytest.LogCaptureFixture) -> None:
    pool, done = SourcePool(threads=1), threading.Event()

    def fail() -> None:
        raise OSError("broken")

    pool.call_at(pool.clock(), fail)
    pool.call_at(pool.clock() + 0.01, done.set)
    assert done.wait(PATIENCE)
    assert caplog.messages == ["the pool of the sources met an error and goes on"]


def test_a_call_that_has_begun_is_not_cancelled(holds: list[Hold]) -> None:
    pool = SourcePool()
    waiting, begun = pool.call_at(pool.clock() + 3600, holds[0]), pool.call_at(pool.clock(), holds[1])
    assert holds[1].begun.wait(PATIENCE)
    assert [pool.cancel(call) for call in (waiting, begun)] == [True, False]


def test_a_call_may_be_due_in_a_thousand_years() -> None:
    pool, done = SourcePool(), threading.Event()
    far = pool.call_at(pool.clock() + 4e10, lambda: None)
    with pool.changed:
        assert 0 < (pool._pause(pool.clock()) or 0) < threading.TIMEOUT_MAX
    pool.call_at(pool.clock() + 0.01, done.set)
    assert done.wait(PATIENCE)
    pool.cancel(far)
    wait_until(lambda: not running(), what="the end of the pool's threads")


def test_after_an_error_of_its_own_the_scheduler_begins_again_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, done, errors, good = SourcePool(), threading.Event(), [], SourcePool._take_due
    monkeypatch.setattr(threading, "excepthook", errors.append)
    monkeypatch.setattr(SourcePool, "_take_due", lambda *_: [][0])
    pool.call_at(pool.clock(), done.set)
    wait_until(lambda: errors and not running(), what="the scheduler's end")
    monkeypatch.setattr(SourcePool, "_take_due", good)
    pool.start_again()
    assert done.wait(PATIENCE)
    wait_until(lambda: not running(), what="the end of the pool's threads")


def test_it_turns_no_more_often_than_something_is_due() -> None:
    pool, done = SourcePool(), threading.Event()
    waits: list[float | None] = []
    wait = pool.changed.wait

    def counted(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return wait(timeout)

    pool.changed.wait = counted  # type: ignore[method-assign]
    pool.call_at(pool.clock() + 0.2, done.set)
    assert done.wait(PATIENCE)
    assert len(waits) <= 4


@pytest.mark.heavy
def test_five_thousand_calls_a_second_are_each_made_once_and_in_few_turns() -> None:
    pool = SourcePool(threads=8)
    made: list[int] = []
    early: list[int] = []
    turns = count()
    wait = pool.changed.wait

    def counted(timeout: float | None = None) -> bool:
        next(turns)
        return wait(timeout)

    pool.changed.wait = counted  # type: ignore[method-assign]
    start = pool.clock() + 0.5
    for number in range(10_000):
        due = start + number / 5000

        def call(number: int = number, due: float = due) -> None:
            made.append(number)
            if pool.clock() < due:
                early.append(number)

        pool.call_at(due, call)
    wait_until(lambda: len(made) == 10_000)
    assert sorted(made) == list(range(10_000))
    assert not early
    assert next(turns) < 5_000
