"""The sessions of `json_yield` without HTTP: order, turns, life and death of generators."""

from __future__ import annotations

import gc
import json
import logging
import random
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushdemo.web.admission import network_of
from pushdemo.web.session import Owner, Refused
from pushdemo.web.sessions import Sessions
from tests.support import threads, wait_until

BOUND = 30  # seconds that a test waits for what must happen at once

Items = Generator[Any, None, None]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A generator function that counts up, and what became of its generators."""

    def __init__(self, last: int = 10**9) -> None:
        self.last = last
        self.begun = 0
        self.given = 0
        self.closed = threading.Semaphore(0)
        self.closed_in: list[str] = []

    def __call__(self) -> Items:
        self.begun += 1
        try:
            for number in range(1, self.last + 1):
                self.given += 1
                yield number
        finally:
            self.closed_in.append(threading.current_thread().name)
            self.closed.release()


class Gate:
    """A generator function whose every step waits until the test opens the gate."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Semaphore(0)
        self.closed = threading.Event()

    def __call__(self) -> Items:
        try:
            for number in range(1, 100):
                self.entered.release()
                assert self.opened.acquire(timeout=BOUND)
                yield number
        finally:
            self.closed.set()


number = ContextVar("number", default=0)

SELF: list[Any] = []
SELF.append(SELF)


def owner(key: str = "key", view: str = "view", user: str | None = None) -> Owner:
    return Owner(view, key, user)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Callable[..., Sessions]]:
    """Makes Sessions that run by the test's clock, and ends them after the test."""
    made: list[Sessions] = []

    def make(**options: Any) -> Sessions:
        made.append(Sessions(**{"timeout": 60, "clock": clock, **options}))
        return made[-1]

    yield make
    for sessions in made:
        assert sessions.close(BOUND) == 0


@pytest.fixture
def sessions(make: Callable[..., Sessions]) -> Sessions:
    return make()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(100) as pool:
        yield pool


def take(
    sessions: Sessions, start: Callable[[], Items], key: str = "key", **options: Any
) -> tuple[str, list[Any], int]:
    """What a call gets, its items as values."""
    answer = sessions.take(owner(key), start, **options)
    return answer.state, [json.loads(item) for item in answer.items], answer.given


def refused(sessions: Sessions, start: Callable[[], Items], key: str = "key", **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        sessions.take(owner(key), start, **options)
    return caught.value


# Asking, and asking again


def test_gives_one_item_after_the_other_and_then_the_end(sessions: Sessions) -> None:
    source = Source(last=2)
    answers = [take(sessions, source) for _ in range(3)]
    assert answers == [("ready", [1], 1), ("ready", [2], 2), ("done", [], 2)]


def test_two_keys_two_views_and_two_users_have_a_generator_each(sessions: Sessions) -> None:
    source = Source()
    owners = [owner("a"), owner("b"), owner("a", view="other"), owner("a", user="ann"), owner("a", user="ben")]
    for each in owners:
        assert sessions.take(each, source).items == ("1",)
    assert source.begun == len(owners)


def test_after_gives_an_item_again_without_running_the_generator(sessions: Sessions) -> None:
    source = Source()
    take(sessions, source)
    take(sessions, source)
    assert [take(sessions, source, after=1) for _ in range(3)] == [("ready", [2], 2)] * 3
    assert source.given == 2
    assert take(sessions, source, after=2) == ("ready", [3], 3)


def test_an_item_given_again_is_what_it_was_when_it_was_yielded(sessions: Sessions) -> None:
    def growing() -> Items:
        row: list[int] = []
        while True:
            row.append(len(row))
            yield row

    take(sessions, growing)
    take(sessions, growing)
    assert take(sessions, growing, after=1) == ("ready", [[0, 1]], 2)


def test_after_beyond_the_count_names_after_and_the_count(sessions: Sessions) -> None:
    source = Source()
    take(sessions, source)
    error = refused(sessions, source, after=2)
    assert (error.status, error.parameter, error.count) == (400, "after", 1)
    assert take(sessions, source, after=1) == ("ready", [2], 2)


def test_after_for_a_session_that_is_not_there_begins_nothing(sessions: Sessions) -> None:
    source = Source()
    error = refused(sessions, source, after=3)
    assert (error.status, error.parameter, error.count) == (410, "after", 0)
    assert source.begun == 0
    assert take(sessions, source, after=0) == ("ready", [1], 1)


def test_after_before_what_is_kept_is_gone_and_says_how_far_the_session_is(sessions: Sessions) -> None:
    source = Source()
    for _ in range(3):
        take(sessions, source)
    error = refused(sessions, source, after=1)
    assert (error.status, error.parameter, error.count) == (410, "after", 3)


def test_the_end_and_the_last_item_can_be_had_again_while_the_session_is_remembered(sessions: Sessions) -> None:
    source = Source(last=1)
    take(sessions, source)
    assert [take(sessions, source, after=1) for _ in range(3)] == [("done", [], 1)] * 3
    assert take(sessions, source, after=0) == ("ready", [1], 1)
    assert source.begun == 1


def test_without_after_an_ended_session_begins_anew(sessions: Sessions) -> None:
    source = Source(last=1)
    states = [take(sessions, source)[0] for _ in range(4)]
    assert states == ["ready", "done", "ready", "done"]
    assert source.begun == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=40), st.integers(0, 30))
def test_a_client_that_says_after_gets_every_item_once_whatever_answers_are_lost(
    polls: list[tuple[int, bool]], last: int
) -> None:
    sessions, source = Sessions(), Source(last)
    got: list[int] = []
    for most, lost in polls:
        _, items, given_by_then = take(sessions, source, after=len(got), most=most)
        if not lost:
            got += items
            assert given_by_then == len(got)
    assert got == list(range(1, len(got) + 1))
    assert source.begun <= 1
    assert sessions.close(BOUND) == 0


def test_taking_nothing_says_how_far_the_session_is(sessions: Sessions) -> None:
    source = Source(last=1)
    assert take(sessions, source, most=0) == ("ready", [], 0)
    assert source.given == 0
    take(sessions, source)
    assert take(sessions, source, most=0) == ("ready", [], 1)
    take(sessions, source)
    assert take(sessions, source, most=0, after=1) == ("done", [], 1)
    assert source.begun == 1


# Accumulate and batch


def test_accumulate_answers_with_all_items_so_far(sessions: Sessions) -> None:
    source = Source(last=3)
    answers = [take(sessions, source, accumulate=True) for _ in range(4)]
    assert answers == [("ready", [1], 1), ("ready", [1, 2], 2), ("ready", [1, 2, 3], 3), ("done", [], 3)]


def test_accumulate_n_answers_with_the_last_n(sessions: Sessions) -> None:
    source = Source()
    for _ in range(4):
        take(sessions, source, accumulate=2)
    assert take(sessions, source, accumulate=2) == ("ready", [4, 5], 5)
    assert take(sessions, source, accumulate=2, after=1) == ("ready", [4, 5], 5)
    assert source.given == 5


def test_a_batch_takes_up_to_so_many_items(sessions: Sessions) -> None:
    source = Source(last=5)
    assert take(sessions, source, most=3) == ("ready", [1, 2, 3], 3)
    assert take(sessions, source, most=3) == ("ready", [4, 5], 5)
    assert take(sessions, source, most=3, after=5) == ("done", [], 5)


@pytest.mark.parametrize(("steps", "in_time"), [([10] * 9, 2), ([0, 0, 20, 0, 0], 3), ([60, 0], 1), ([0] * 5, 5)])
def test_a_batch_takes_those_items_that_come_in_time(
    make: Callable[..., Sessions], clock: Clock, steps: list[int], in_time: int
) -> None:
    def slow() -> Items:
        for number, seconds in enumerate(steps, 1):
            clock.now += seconds
            yield number

    sessions, expected = make(batch_timeout=25), list(range(1, len(steps) + 1))
    assert take(sessions, slow, most=9) == ("ready", expected[:in_time], in_time)
    if in_time < len(steps):
        assert take(sessions, slow, after=in_time)[1] == expected[in_time : in_time + 1]


def test_a_batch_can_be_had_again_in_smaller_ones(sessions: Sessions) -> None:
    source = Source()
    take(sessions, source, most=5)
    assert take(sessions, source, after=0, most=2) == ("ready", [1, 2], 2)
    assert take(sessions, source, after=2, most=9) == ("ready", [3, 4, 5], 5)
    assert take(sessions, source, after=4) == ("ready", [5], 5)
    assert source.given == 5


def test_the_last_items_are_kept_where_that_is_asked_for(sessions: Sessions) -> None:
    source = Source()
    for _ in range(5):
        take(sessions, source, keep=3)
    assert take(sessions, source, after=2, most=9) == ("ready", [3, 4, 5], 5)
    assert refused(sessions, source, after=1, keep=3).status == 410
    assert take(sessions, source, after=5, most=2, keep=3) == ("ready", [6, 7], 7)
    assert take(sessions, source, after=4, most=9) == ("ready", [5, 6, 7], 7)
    assert take(sessions, source, after=7, most=4, keep=3) == ("ready", [8, 9, 10, 11], 11)
    assert take(sessions, source, after=7, most=9) == ("ready", [8, 9, 10, 11], 11)
    take(sessions, source, after=11)
    assert refused(sessions, source, after=10).status == 410


def test_a_batch_that_fails_gives_what_it_has_and_then_the_error(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> Items:
        yield 1
        raise ValueError("secret")

    assert take(sessions, failing, most=5) == ("ready", [1], 1)
    with pytest.raises(ValueError, match="secret"):
        take(sessions, failing, most=5, after=1)
    (record,) = caplog.records
    assert record.getMessage() == "json_yield: view failed; its session has ended"
    assert record.exc_info


# Failure


class OfTwoPartsError(Exception):
    """An exception that cannot be made from its `args` alone."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


@pytest.mark.parametrize(
    "error", [ValueError("secret"), KeyError("name"), OSError(2, "none", "file"), OfTwoPartsError(7, "parts")]
)
def test_who_asks_a_generator_that_has_failed_gets_an_error_of_his_own(sessions: Sessions, error: Exception) -> None:
    def failing() -> Items:
        yield 1
        raise error

    take(sessions, failing)
    caught = []
    for _ in range(3):
        with pytest.raises(type(error)) as found:
            take(sessions, failing, after=1)
        caught.append(found.value)
    assert caught[0] is error
    assert len({id(each) for each in caught}) == 3
    assert {str(each) for each in caught} == {str(error)}
    assert {getattr(each, "code", None) for each in caught} == {getattr(error, "code", None)}
    assert not hasattr(error, "__notes__"), "the first is raised as it was"
    assert "an earlier call has raised this error" in caught[1].__notes__[0]
    assert len(caught[2].__notes__) == 1
    assert take(sessions, failing, after=0) == ("ready", [1], 1)


def test_without_after_a_failure_is_told_to_who_has_had_an_item_before_it(sessions: Sessions) -> None:
    begun = []

    def failing() -> Items:
        begun.append(1)
        if len(begun) > 1:
            yield 1
        raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        take(sessions, failing)
    assert take(sessions, failing) == ("ready", [1], 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="again"):
            take(sessions, failing)
    assert len(begun) == 2


def test_an_error_that_is_kept_keeps_nothing_of_the_call_that_met_it(sessions: Sessions) -> None:
    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    def failing() -> Items:
        local = Big()
        held.append(weakref.ref(local))
        yield from ()
        raise ValueError(str(local))

    with pytest.raises(ValueError, match="Big"):
        take(sessions, failing, after=0)
    gc.collect()
    assert held[0]() is None


def test_a_failure_after_the_yield_closes_the_generator(sessions: Sessions) -> None:
    closed = threading.Event()

    def yields_it() -> Items:
        try:
            yield {1, 2}
        finally:
            closed.set()

    for _ in range(2):
        with pytest.raises(TypeError, match="JSON"):
            take(sessions, yields_it, after=0)
        assert closed.is_set()
    assert sessions.info() == {"open": 0, "ended": 1, "waiting": 0}


def test_a_generator_that_says_it_was_closed_has_failed(sessions: Sessions) -> None:
    def closing() -> Items:
        yield 1
        raise GeneratorExit

    take(sessions, closing)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ended with GeneratorExit"):
            take(sessions, closing, after=1)


def test_what_a_generator_returns_comes_with_its_end(sessions: Sessions) -> None:
    def summing() -> Items:
        yield 1
        return {"sum": 1}

    take(sessions, summing)
    answers = [sessions.take(owner(), None, after=1) for _ in range(2)]
    assert [(answer.state, answer.result) for answer in answers] == [("done", '{"sum": 1}')] * 2


def test_a_generator_that_ends_the_process_leaves_no_turn_taken(sessions: Sessions) -> None:
    def leaving() -> Items:
        yield 1
        raise SystemExit

    take(sessions, leaving)
    with pytest.raises(SystemExit):
        take(sessions, leaving)
    with pytest.raises(RuntimeError, match="ended with SystemExit"):
        take(sessions, leaving, after=1)
    assert sessions.info()["open"] == 0


def test_a_generator_has_the_context_of_the_call_that_began_it_in_every_thread(
    sessions: Sessions, pool: ThreadPoolExecutor
) -> None:
    closed_with: list[int] = []

    def reading() -> Items:
        try:
            while True:
                yield number.get()
                number.set(number.get() + 1)
        finally:
            closed_with.append(number.get())

    number.set(5)
    assert take(sessions, reading) == ("ready", [5], 1)
    assert pool.submit(take, sessions, reading).result(BOUND) == ("ready", [6], 2)
    assert number.get() == 5
    sessions.forget(owner())
    wait_until(lambda: closed_with == [6])


# Overlap


def test_a_second_call_waits_for_its_turn(sessions: Sessions, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    first = pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    second = pool.submit(take, sessions, gate)
    wait_until(lambda: sessions.info()["waiting"] == 1)
    gate.opened.release(2)
    assert first.result(BOUND) == ("ready", [1], 1)
    assert second.result(BOUND) == ("ready", [2], 2)


def test_a_repeated_call_that_waited_gets_the_item_that_the_first_one_computed(
    sessions: Sessions, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    first = pool.submit(take, sessions, gate, after=0)
    assert gate.entered.acquire(timeout=BOUND)
    again = pool.submit(take, sessions, gate, after=0)
    wait_until(lambda: sessions.info()["waiting"] == 1)
    gate.opened.release()
    assert first.result(BOUND) == again.result(BOUND) == ("ready", [1], 1)


def test_a_turn_that_does_not_come_in_time_is_409(make: Callable[..., Sessions], pool: ThreadPoolExecutor) -> None:
    sessions, gate = make(turn_timeout=0.01), Gate()
    first = pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    error = refused(sessions, gate)
    assert (error.status, error.retry_after) == (409, 1)
    assert sessions.info()["waiting"] == 0
    gate.opened.release()
    assert first.result(BOUND) == ("ready", [1], 1)


def test_no_more_calls_wait_than_may_whatever_their_keys(
    make: Callable[..., Sessions], pool: ThreadPoolExecutor
) -> None:
    sessions, gates = make(turn_timeout=BOUND, waiters=2), {"a": Gate(), "b": Gate()}
    running = [pool.submit(take, sessions, gate, key) for key, gate in gates.items()]
    for gate in gates.values():
        assert gate.entered.acquire(timeout=BOUND)
    waiting = [pool.submit(take, sessions, gate, key) for key, gate in gates.items()]
    wait_until(lambda: sessions.info()["waiting"] == 2)
    for key, gate in gates.items():
        assert refused(sessions, gate, key).status == 409
    assert take(sessions, Source(), "c") == ("ready", [1], 1)
    for gate in gates.values():
        gate.opened.release(2)
    assert [call.result(BOUND)[1] for call in running + waiting] == [[1], [1], [2], [2]]


def test_who_only_looks_does_not_wait_for_a_turn(sessions: Sessions, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    gate.opened.release()
    take(sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    running = pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    for after in (None, 0, 1):
        assert take(sessions, gate, after=after, most=0) == ("ready", [], 1)
    assert refused(sessions, gate, after=2, most=0).status == 400
    assert sessions.info()["waiting"] == 0
    gate.opened.release()
    assert running.result(BOUND) == ("ready", [2], 2)


# Life


def test_an_idle_generator_is_closed_and_forgotten(sessions: Sessions, clock: Clock) -> None:
    source = Source()
    take(sessions, source)
    clock.now += 59
    take(sessions, source, after=1)
    clock.now += 59
    sessions.sweep()
    assert sessions.info()["open"] == 1
    clock.now += 1
    sessions.sweep()
    assert source.closed.acquire(timeout=BOUND)
    assert refused(sessions, source, after=2).count == 0
    assert take(sessions, source) == ("ready", [1], 1)


@pytest.mark.parametrize("last", [10**9, 1])
def test_a_session_that_is_asked_outlives_one_that_began_after_it(sessions: Sessions, clock: Clock, last: int) -> None:
    for key in "ab":
        take(sessions, Source(last), key)
        take(sessions, Source(), key, after=1)
    clock.now += 40
    take(sessions, Source(), "a", after=1)
    clock.now += 40
    sessions.sweep()
    assert refused(sessions, Source(), "b", after=1).status == 410
    state, _, count = take(sessions, Source(), "a", after=1)
    assert (state, count) == (("done", 1) if last == 1 else ("ready", 2))


def test_a_generator_that_runs_is_not_idle(sessions: Sessions, clock: Clock, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    call = pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    clock.now += 1000
    sessions.sweep()
    gate.opened.release()
    assert call.result(BOUND) == ("ready", [1], 1)
    sessions.sweep()
    assert not gate.closed.is_set()
    clock.now += 60
    sessions.sweep()
    assert gate.closed.wait(BOUND)


def test_a_session_that_runs_keeps_no_idle_one_open(sessions: Sessions, clock: Clock, pool: ThreadPoolExecutor) -> None:
    gate, idle = Gate(), Source()
    call = pool.submit(take, sessions, gate, "running")
    assert gate.entered.acquire(timeout=BOUND)
    take(sessions, idle, "idle")
    clock.now += 60
    sessions.sweep()
    assert idle.closed.acquire(timeout=BOUND)
    gate.opened.release()
    assert call.result(BOUND) == ("ready", [1], 1)


def test_an_ended_session_is_forgotten_too(sessions: Sessions, clock: Clock) -> None:
    source = Source(last=0)
    take(sessions, source)
    clock.now += 60
    sessions.sweep()
    assert sessions.info() == {"open": 0, "ended": 0, "waiting": 0}


def test_an_ended_session_is_forgotten_by_the_sweeper_though_no_generator_is_open() -> None:
    sessions, ended = Sessions(timeout=0.05), threading.Event()

    def over() -> Items:
        yield 1
        ended.set()

    take(sessions, over)
    (sweeper,) = sweepers()
    take(sessions, over)
    assert ended.is_set()
    assert sessions.info()["ended"] == 1
    sweeper.join(BOUND)
    assert sessions.info() == {"open": 0, "ended": 0, "waiting": 0}


def test_a_session_that_begins_while_another_is_being_closed_is_closed_in_its_time(pool: ThreadPoolExecutor) -> None:
    sessions, gate, source = Sessions(timeout=0.05), Gate(), Source()
    call = pool.submit(take, sessions, gate, "running")
    assert gate.entered.acquire(timeout=BOUND)
    sessions.forget(owner("running"))  # it is closed at its yield: until then the sweeper has nothing to wait for
    wait_until(lambda: sessions.info()["open"] == 1)
    take(sessions, source)
    assert source.closed.acquire(timeout=BOUND)
    gate.opened.release()
    with pytest.raises(Refused):
        call.result(BOUND)
    assert sessions.close(BOUND) == 0


def test_the_sweeper_rests_while_no_session_has_been_idle_for_long_enough() -> None:
    looks = 0

    def counting() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic()

    sessions = Sessions(timeout=60, clock=counting)
    take(sessions, Source(), "idle")
    take(sessions, Source(last=0), "ended")
    before = looks
    threading.Event().wait(0.2)
    assert looks - before < 10
    assert sessions.close(BOUND) == 0


def test_threads_close_what_is_idle_and_end_when_nothing_is_left() -> None:
    sessions = Sessions(timeout=0.02)
    sources = [Source() for _ in range(20)]
    for number, source in enumerate(sources):
        take(sessions, source, key=str(number))
    (sweeper,) = sweepers()
    for source in sources:
        assert source.closed.acquire(timeout=BOUND)
        assert source.closed_in == ["pushdemo-generators-close"]
    sweeper.join(BOUND)
    assert not sweeper.is_alive()
    wait_until(lambda: not closers())
    again = Source()
    take(sessions, again)
    assert again.closed.acquire(timeout=BOUND)
    wait_until(lambda: not sweepers())


def test_forgetting_closes_an_idle_generator_in_another_thread(sessions: Sessions) -> None:
    source = Source()
    take(sessions, source)
    assert sessions.forget(owner())
    assert source.closed.acquire(timeout=BOUND)
    assert source.closed_in == ["pushdemo-generators-close"]
    assert not sessions.forget(owner())
    assert refused(sessions, source, after=1).status == 410


def test_forgetting_what_runs_does_not_wait_and_its_work_stops_at_the_next_yield(
    sessions: Sessions, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    call = pool.submit(take, sessions, gate, most=5)
    assert gate.entered.acquire(timeout=BOUND)
    assert sessions.forget(owner())
    assert not gate.closed.is_set()
    gate.opened.release(5)
    with pytest.raises(Refused) as caught:
        call.result(BOUND)
    assert (caught.value.status, caught.value.reason) == (410, "this session was closed")
    assert gate.closed.wait(BOUND)
    assert not gate.entered.acquire(blocking=False), "the generator went on after its yield"


def test_all_sessions_of_a_user_end_and_no_others(sessions: Sessions) -> None:
    anns, others = Source(), Source()
    for key, user in (("a", "ann"), ("b", "ann"), ("a", "ben"), ("a", None)):
        sessions.take(owner(key, user=user), anns if user == "ann" else others)
    sessions.take(owner("over", user="ann"), Source(last=0))
    assert sessions.forget_user("ann") == 3
    assert sessions.forget_user("ann") == 0
    wait_until(lambda: sessions.info() == {"open": 2, "ended": 0, "waiting": 0}, what="the end of two")
    assert len(anns.closed_in) == 2
    assert others.closed_in == []


def test_who_waited_for_a_forgotten_session_is_told(sessions: Sessions, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    calls = [pool.submit(take, sessions, gate)]
    assert gate.entered.acquire(timeout=BOUND)
    calls.append(pool.submit(take, sessions, gate))
    wait_until(lambda: sessions.info()["waiting"] == 1)
    sessions.forget(owner())
    gate.opened.release()
    for call in calls:
        with pytest.raises(Refused) as caught:
            call.result(BOUND)
        assert caught.value.status == 410


def test_a_forgotten_key_can_begin_anew_while_its_old_generator_still_runs(
    sessions: Sessions, pool: ThreadPoolExecutor
) -> None:
    gate = Gate()
    pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    sessions.forget(owner())
    assert take(sessions, Source()) == ("ready", [1], 1)
    gate.opened.release()
    assert gate.closed.wait(BOUND)
    assert take(sessions, Source(), after=1) == ("ready", [2], 2)


def test_what_fails_while_it_is_closed_is_logged_once_and_stops_nobody(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    def stubborn() -> Items:
        try:
            yield 1
        finally:
            raise ValueError("in finally")

    source = Source()
    take(sessions, stubborn, "first")
    take(sessions, source, "second")
    sessions.forget(owner("first"))
    sessions.forget(owner("second"))
    assert source.closed.acquire(timeout=BOUND)
    wait_until(lambda: sessions.info()["open"] == 0)
    assert [record.getMessage() for record in caplog.records] == ["json_yield: view failed while it was being closed"]


def test_beyond_the_limit_a_new_session_is_503_until_one_is_closed(make: Callable[..., Sessions], clock: Clock) -> None:
    sessions, source = make(limit=2), Source()
    take(sessions, Source(last=0), "ended")
    clock.now += 10
    take(sessions, source, "a")
    clock.now += 15.5
    take(sessions, source, "b")
    error = refused(sessions, source, "c")
    assert (error.status, error.retry_after) == (503, 45)
    assert "2 generator sessions" in error.reason
    assert take(sessions, source, "a") == ("ready", [2], 2)
    sessions.forget(owner("a"))
    assert source.closed.acquire(timeout=BOUND)
    wait_until(lambda: sessions.info()["open"] == 1)
    assert take(sessions, source, "c") == ("ready", [1], 1)


def test_ended_sessions_take_no_place_of_the_limit_and_are_no_more_than_it(make: Callable[..., Sessions]) -> None:
    sessions = make(limit=2)
    for number in range(5):
        take(sessions, Source(last=0), str(number))
    assert sessions.info() == {"open": 0, "ended": 2, "waiting": 0}
    assert take(sessions, Source(), "4", after=0) == ("done", [], 0)


def test_a_generator_that_is_slow_to_close_keeps_its_place_of_the_limit(make: Callable[..., Sessions]) -> None:
    sessions, closing, go = make(limit=1), threading.Event(), threading.Event()

    def slow_to_close() -> Items:
        try:
            yield 1
        finally:
            closing.set()
            assert go.wait(BOUND)

    take(sessions, slow_to_close, "a")
    sessions.forget(owner("a"))
    assert closing.wait(BOUND)
    assert refused(sessions, Source(), "b").status == 503
    go.set()
    wait_until(lambda: sessions.info()["open"] == 0)
    assert take(sessions, Source(), "b") == ("ready", [1], 1)


def test_a_slow_farewell_holds_up_no_other(make: Callable[..., Sessions]) -> None:
    sessions, go, quick = make(limit=20), threading.Event(), Source()

    def slow_to_close() -> Items:
        try:
            yield 1
        finally:
            assert go.wait(BOUND)

    for number in range(7):
        take(sessions, slow_to_close, f"slow {number}")
        sessions.forget(owner(f"slow {number}"))
    for number in range(13):
        take(sessions, quick, str(number))
        sessions.forget(owner(str(number)))
    wait_until(lambda: len(quick.closed_in) == 13)
    assert len(closers()) <= 8
    assert take(sessions, Source(), "new") == ("ready", [1], 1)
    go.set()


def test_a_request_that_is_rolled_back_takes_the_session_with_it_that_it_began(sessions: Sessions) -> None:
    source, request, other = Source(), object(), object()
    take(sessions, source, origin=request)
    sessions.undo(owner(), other)
    assert take(sessions, source, after=1, origin=other) == ("ready", [2], 2)
    sessions.undo(owner(), request)
    assert source.closed.acquire(timeout=BOUND)
    assert take(sessions, source, after=0) == ("ready", [1], 1)


def test_an_error_is_told_though_the_request_was_rolled_back_and_a_retry_begins_anew(sessions: Sessions) -> None:
    request = object()
    begun = []

    def failing_once() -> Items:
        begun.append(1)
        if len(begun) == 1:
            raise ValueError("once")
        yield 1

    for _ in range(2):
        with pytest.raises(ValueError, match="once"):
            take(sessions, failing_once, after=0, origin=request)
        sessions.undo(owner(), request)
    sessions.undo(owner(), request, failed=True)
    assert take(sessions, failing_once, after=0, origin=request) == ("ready", [1], 1)


def test_stopping_closes_all_and_begins_nothing(sessions: Sessions) -> None:
    source = Source()
    for number in range(50):
        take(sessions, source, str(number))
    assert sessions.close(BOUND) == 0
    assert len(source.closed_in) == 50
    assert refused(sessions, source, "new").status == 503
    assert source.begun == 50


def test_stopping_is_bounded_and_what_still_runs_is_closed_at_its_yield(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    sessions, gate = Sessions(), Gate()
    call = pool.submit(take, sessions, gate)
    assert gate.entered.acquire(timeout=BOUND)
    assert sessions.close(0.01) == 1
    assert "1 generators still open" in caplog.text
    gate.opened.release()
    with pytest.raises(Refused) as caught:
        call.result(BOUND)
    assert caught.value.status == 503
    assert gate.closed.wait(BOUND)
    assert sessions.close(BOUND) == 0
    wait_until(lambda: not sweepers())


# All at once


def test_fifty_threads_and_five_hundred_keys_lose_and_repeat_nothing(pool: ThreadPoolExecutor) -> None:
    sessions, last = Sessions(waiters=20), 20
    sources = {str(key): Source(last) for key in range(500)}
    got: dict[str, list[int]] = {key: [] for key in sources}
    clients = {key: threading.Lock() for key in sources}  # a client takes one answer in at a time
    left = set(sources)
    statuses: set[int] = set()

    def poll(seed: int) -> None:
        dice = random.Random(seed)
        while keys := list(left):
            key = dice.choice(keys)
            have = len(got[key])
            try:
                state, items, given_by_then = take(sessions, sources[key], key, after=have, most=dice.randint(1, 4))
            except Refused as error:
                # Its item was taken in by another thread meanwhile, or the key was busy: this client asks again.
                statuses.add(error.status)
                continue
            if dice.random() < 0.3:
                continue  # the answer is lost
            with clients[key]:
                if have == len(got[key]):
                    got[key] += items
                    assert given_by_then == len(got[key])
                    if state == "done":
                        left.discard(key)

    for call in [pool.submit(poll, seed) for seed in range(50)]:
        call.result(120)
    assert statuses <= {409, 410}
    assert all(items == list(range(1, last + 1)) for items in got.values())
    assert all((source.begun, source.given) == (1, last) for source in sources.values())
    assert sessions.close(BOUND) == 0


def test_polls_sweeps_closes_and_a_shutdown_at_once_close_every_generator_once(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sessions, source, stop = Sessions(timeout=0.001, limit=40, turn_timeout=0.01), Source(), threading.Event()
    statuses: set[int] = set()

    def poll(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            try:
                take(sessions, source, str(dice.randrange(30)), most=dice.randint(1, 30))
            except Refused as error:
                statuses.add(error.status)

    def forget() -> None:
        dice = random.Random(99)
        while not stop.is_set():
            sessions.forget(owner(str(dice.randrange(30))))
            sessions.sweep()

    calls = [pool.submit(poll, seed) for seed in range(12)] + [pool.submit(forget) for _ in range(2)]
    wait_until(lambda: source.begun > 2000)
    assert sessions.close(BOUND) == 0
    stop.set()
    for call in calls:
        call.result(BOUND)
    assert statuses <= {409, 410, 503}
    assert len(source.closed_in) == source.begun
    assert caplog.records == []
    wait_until(lambda: not sweepers())


@pytest.mark.heavy
def test_ten_thousand_abandoned_sessions_leave_nothing(make: Callable[..., Sessions], clock: Clock) -> None:
    sessions, source = make(limit=10_000), Source()
    generators: weakref.WeakSet[Items] = weakref.WeakSet()

    def start() -> Items:
        generator = source()
        generators.add(generator)
        return generator

    for number in range(10_000):
        take(sessions, start, str(number))
    (sweeper,) = sweepers()
    clock.now += 60
    sessions.sweep()
    wait_until(lambda: sessions.info()["open"] == 0)
    wait_until(lambda: not closers())
    gc.collect()
    assert len(source.closed_in) == 10_000
    assert len(generators) == 0
    assert sessions.info() == {"open": 0, "ended": 0, "waiting": 0}
    sweeper.join(BOUND)
    assert not sweeper.is_alive()


@pytest.mark.heavy
def test_an_idle_session_takes_at_most_two_kilobytes_beyond_its_generator(make: Callable[..., Sessions]) -> None:
    sessions, source = make(limit=1000), Source()
    generators: list[Items] = []

    def begin_alone(number: int) -> None:
        generators.append(source())
        next(generators[-1])

    def begin_session(number: int) -> None:
        take(sessions, source, f"00000000-0000-4000-8000-{number:012}")

    assert traced_bytes(begin_session, 1000) - traced_bytes(begin_alone, 1000) < 2048 * 1000


def traced_bytes(begin: Callable[[int], None], times: int) -> int:
    """The memory that is held after `begin` was called so often, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(times):
            begin(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def sweepers() -> list[threading.Thread]:
    """The sweeper threads that this test has started."""
    return threads("pushdemo-generators")


def closers() -> list[threading.Thread]:
    """The threads that close generators for this test."""
    return threads("pushdemo-generators-close")


def test_sessions_are_swept_and_closed_though_the_system_had_no_thread_at_first(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sessions, source = Sessions(timeout=60.0, clock=clock), Source()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread_left)
        assert take(sessions, source, "a") == ("ready", [1], 1)
        assert take(sessions, source, "b") == ("ready", [1], 1)
        assert sessions.forget(owner("b"))
    assert take(sessions, source, "a") == ("ready", [2], 2)
    assert len(sweepers()) == 1
    wait_until(lambda: sessions.info()["open"] == 1, what="the closing of the one that was forgotten")
    assert "cannot be started" in caplog.text
    assert sessions.close() == 0


def no_thread_left(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# -- one client's share


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:9:9:9:9", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", ""),
        ("127.8.9.10", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("localhost", ""),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(peer: str, network: str) -> None:
    assert network_of(peer) == network


def test_one_address_may_have_a_quarter_of_the_sessions_and_others_theirs(clock: Clock) -> None:
    sessions = Sessions(timeout=60.0, limit=8, clock=clock)
    for number in range(2):
        assert take(sessions, Source(), f"a{number}", peer="192.0.2.7") == ("ready", [1], 1)
    clock.now += 10.0
    refusal = refused(sessions, Source(), "a2", peer="192.0.2.7")
    assert (refusal.status, refusal.retry_after) == (503, 50)
    assert "2 generator sessions of one address" in refusal.reason
    assert take(sessions, Source(), "a1", peer="192.0.2.7") == ("ready", [2], 2)
    for number in range(2):
        assert take(sessions, Source(), f"b{number}", peer="192.0.2.8") == ("ready", [1], 1)
    for number in range(3):
        assert take(sessions, Source(), f"local{number}", peer="127.0.0.1") == ("ready", [1], 1)
    assert sessions.forget(owner("a0"))
    wait_until(lambda: sessions.info()["open"] == 6)
    assert take(sessions, Source(last=1), "a2", peer="192.0.2.7") == ("ready", [1], 1)
    assert take(sessions, Source(), "a2", peer="192.0.2.7") == ("done", [], 1)
    assert take(sessions, Source(), "a3", peer="192.0.2.7") == ("ready", [1], 1)
    assert sessions.close() == 0
    assert not sessions._networks
