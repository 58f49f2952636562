"""Waitress's threads as our server wakes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pushdemo.server.workers import Dispatcher, Work
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
