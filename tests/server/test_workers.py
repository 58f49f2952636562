"""Waitress's threads as our server wakes them."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from pushdemo.server.workers import Dispatcher, Work, Workers
from tests.support import PATIENCE, wait_until


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    found = Dispatcher()
    found.set_thread_count(2)
    wait_until(lambda: found.active_count == 0)
    yield found
    found.shutdown()


def test_what_one_turn_adds_wakes_the_threads_at_its_end(dispatcher: Dispatcher) -> None:
    done = threading.Semaphore(0)
    with dispatcher.together():
        for _ in range(5):
            dispatcher.add_task(Work(done.release))
        assert not done.acquire(timeout=0.1)
        assert len(dispatcher.queue) == 5
    for _ in range(5):
        assert done.acquire(timeout=PATIENCE)
    assert dispatcher.take_waiting() == 3, "of five, for two threads"


def test_others_wake_a_thread_at_once_meanwhile(dispatcher: Dispatcher) -> None:
    done = threading.Event()
    with dispatcher.together():
        thread = threading.Thread(target=dispatcher.add_task, args=(Work(done.set),))
        thread.start()
        assert done.wait(PATIENCE)
        thread.join()


def test_threads_are_woken_after_an_error_too(dispatcher: Dispatcher) -> None:
    done = threading.Event()
    with suppress(KeyError), dispatcher.together():
        dispatcher.add_task(Work(done.set))
        raise KeyError
    assert done.wait(PATIENCE)


def test_a_thread_that_is_awake_takes_what_the_turn_has_added_so_far(dispatcher: Dispatcher) -> None:
    go_on, taken = threading.Event(), threading.Event()
    dispatcher.add_task(Work(lambda: go_on.wait(PATIENCE) and None))
    with dispatcher.together():
        dispatcher.add_task(Work(taken.set))
        go_on.set()
        assert taken.wait(PATIENCE)


def test_no_task_is_left_where_turns_and_other_threads_add_at_once(dispatcher: Dispatcher) -> None:
    done = threading.Semaphore(0)

    def others() -> None:
        for _ in range(500):
            dispatcher.add_task(Work(done.release))

    thread = threading.Thread(target=others)
    thread.start()
    for _ in range(100):
        with dispatcher.together():
            for _ in range(5):
                dispatcher.add_task(Work(done.release))
    thread.join()
    for _ in range(1000):
        assert done.acquire(timeout=PATIENCE)
    assert not done.acquire(blocking=False)


# -- turns


class Noted:
    """A request that waits, and notes when it is run and whether with a turn."""

    def __init__(self, name: str, notes: list[tuple[str, bool]]) -> None:
        self.name = name
        self.notes = notes

    def run(self, *, turn: bool) -> None:
        self.notes.append((self.name, turn))


def run_all(dispatcher: Dispatcher) -> None:
    """Do what a thread would, of a dispatcher that has none."""
    while dispatcher.queue:
        dispatcher.queue.popleft().service()


def test_requests_that_have_waited_in_vain_leave_the_queue_where_the_others_keep_their_order() -> None:
    dispatcher, notes = Dispatcher(), list[tuple[str, bool]]()
    workers = Workers(dispatcher, 1)
    assert workers.take()
    requests = [Noted(name, notes) for name in "abcdef"]
    for request in requests:
        workers.run_later(request, 0 if request.name in "ace" else PATIENCE)
        if request.name == "c":
            workers.run(partial(notes.append, ("no request", True)))
    waiting = {request.name: weakref.ref(request) for request in requests}
    del request, requests
    assert not notes
    workers.expire(time.monotonic())
    run_all(dispatcher)
    assert notes == [("a", False), ("c", False), ("e", False)]
    assert [name for name, request in waiting.items() if request()] == ["b", "d", "f"]
    assert len(workers._queue) == 4
    notes.clear()
    workers.give()
    run_all(dispatcher)
    assert notes == [("b", True), ("no request", True), ("d", True), ("f", True)]
    workers.expire(time.monotonic() + 2 * PATIENCE)
    run_all(dispatcher)
    assert len(notes) == 4
    assert workers.take(), "the turn is given back"


@pytest.mark.parametrize("late", [False, True])
def test_a_request_whose_turn_comes_as_its_time_is_over_is_run_once(late: bool) -> None:
    dispatcher, notes = Dispatcher(), list[tuple[str, bool]]()
    workers = Workers(dispatcher, 1)
    assert workers.take()
    for name in "ab":
        workers.run_later(Noted(name, notes), 0 if name == "a" else PATIENCE)
    workers.give()  # it has left the queue, and no thread has come to it
    assert len(dispatcher.queue) == 1
    if not late:
        run_all(dispatcher)
    workers.expire(time.monotonic())
    run_all(dispatcher)
    assert sorted(notes) == [("a", not late), ("b", True)]
    assert workers.take(), "the turn is given back"
    assert not workers.take()
