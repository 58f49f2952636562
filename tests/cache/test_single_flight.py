"""What `memorize` promises to many callers at once."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pushdemo.cache.memorize import Caches, Memorized, memorize
from tests.cache.support import Asked, Clock, Gate, together
from tests.support import PATIENCE, ROOT, in_child, wait_until

CROWD = 100


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caches(clock: Clock) -> Iterator[Caches]:
    """The application of most tests: a value is used for 10 seconds."""
    with Caches(duration=10, timer=clock, wait=PATIENCE).active() as active:
        yield active


@pytest.fixture
def gate() -> Gate:
    return Gate()


pytestmark = pytest.mark.usefixtures("caches")


def all_wait(function: Memorized[..., Any], number: int) -> None:
    """Return when so many callers wait for another's computation."""
    wait_until(lambda: function.info().waits == number, what=f"{number} callers that wait")


def test_a_hundred_on_a_cold_key_make_one_computation(gate: Gate) -> None:
    calls = []

    @memorize
    def rate() -> object:
        calls.append(1)
        gate.stop()
        return object()

    asked = together(CROWD, rate)
    all_wait(rate, CROWD - 1)
    gate.open()
    assert len({each.answer() for each in asked}) == 1
    assert len(calls) == 1
    assert rate.info()[:5] == (0, 1, CROWD - 1, 0, 0)


def test_a_hundred_have_copies_of_one_exception_which_is_not_kept(gate: Gate) -> None:
    calls = []

    @memorize
    def rate() -> int:
        calls.append(1)
        if len(calls) == 1:
            gate.stop()
            raise ConnectionError("no rate")
        return 5

    asked = together(CROWD, rate)
    all_wait(rate, CROWD - 1)
    gate.open()
    errors = [each.error() for each in asked]
    assert len({id(error) for error in errors}) == CROWD
    assert all(type(error) is ConnectionError and str(error) == "no rate" for error in errors)
    assert len(calls) == 1
    assert rate() == 5


def test_a_copy_of_an_exception_tells_where_the_exception_was_raised(gate: Gate) -> None:
    @memorize
    def rate() -> int:
        gate.stop()
        raise ConnectionError("no rate")

    asked = together(20, rate)
    all_wait(rate, 19)
    gate.open()
    texts = ["".join(traceback.format_exception(each.error())) for each in asked]
    assert all('raise ConnectionError("no rate")' in text for text in texts)
    assert sum("Raised for another caller" in text for text in texts) == 19
    assert max(text.count("File ") for text in texts) < 40, "each caller's frames were added to the others'"


def test_an_exception_leaves_no_cycle_in_those_who_waited(gate: Gate) -> None:
    class Big:
        """What an exception's traceback would keep."""

    @memorize
    def fails(number: int) -> None:
        gate.stop()
        raise ValueError("no")

    references = []

    def ask() -> None:
        big = Big()
        references.append(weakref.ref(big))
        with contextlib.suppress(ValueError):
            fails(1)

    first = Asked(ask)
    gate.reached()
    gc.collect()
    gc.disable()
    try:
        second = Asked(ask)
        all_wait(fails, 1)
        gate.open()
        first.answer()
        second.answer()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_with_stale_one_computes_and_the_others_have_the_old_value_at_once(clock: Clock, gate: Gate) -> None:
    calls = []

    @memorize(10, stale=5)
    def rate() -> int:
        calls.append(1)
        if len(calls) == 2:
            gate.stop()
        return len(calls)

    rate()
    clock.advance(14.9)
    refreshes = Asked(rate)
    gate.reached()
    assert [each.answer() for each in together(CROWD - 1, rate)] == [1] * (CROWD - 1)
    gate.open()
    assert refreshes.answer() == 2
    assert rate() == 2
    assert rate.info()[:5] == (1, 2, 0, CROWD - 1, 0)


def test_past_the_stale_time_all_wait_for_the_new_value(clock: Clock, gate: Gate) -> None:
    calls = []

    @memorize(10, stale=5)
    def rate() -> int:
        calls.append(1)
        if len(calls) == 2:
            gate.stop()
        return len(calls)

    rate()
    clock.advance(15)
    asked = together(10, rate)
    all_wait(rate, 9)
    gate.open()
    assert [each.answer() for each in asked] == [2] * 10


def test_a_refresh_that_raises_is_seen_by_its_caller_alone_and_tried_again(clock: Clock, gate: Gate) -> None:
    calls = []

    @memorize(10, stale=20)
    def rate() -> int:
        calls.append(1)
        if len(calls) == 2:
            gate.stop()
            raise ConnectionError("no rate")
        return len(calls)

    rate()
    clock.advance(11)
    refreshes = Asked(rate)
    gate.reached()
    assert rate() == 1
    gate.open()
    assert isinstance(refreshes.error(), ConnectionError)
    assert rate() == 3


def test_those_who_wait_get_the_old_value_where_the_computation_raises(clock: Clock, gate: Gate) -> None:
    calls = []

    @memorize(10, stale_if_error=20)
    def rate() -> int:
        calls.append(1)
        if len(calls) == 2:
            gate.stop()
            raise ConnectionError("no rate")
        return len(calls)

    rate()
    clock.advance(11)
    asked = together(10, rate)
    all_wait(rate, 9)
    gate.open()
    assert [each.answer() for each in asked] == [1] * 10
    assert len(calls) == 2


@pytest.mark.parametrize("forget", ["invalidate", "clear"])
def test_an_invalidation_during_a_computation_wins(forget: str, gate: Gate) -> None:
    data = ["old"]

    @memorize
    def read() -> str:
        found = data[0]
        if found == "old":
            gate.stop()
        return found

    asked = together(10, read)
    all_wait(read, 9)
    data[0] = "new"
    getattr(read, forget)()
    assert read() == "new"  # does not wait for the old computation
    gate.open()
    assert [each.answer() for each in asked] == ["old"] * 10  # they asked before
    assert read() == "new"
    assert read.info().misses == 2


@pytest.mark.parametrize("forget", ["invalidate", "clear"])
@pytest.mark.parametrize("outcome", ["value", "exception"])
def test_a_computation_that_was_invalidated_leaves_the_next_one_its_flight(forget: str, outcome: str) -> None:
    gates, calls = [Gate(), Gate()], []

    @memorize
    def read() -> int:
        number = len(calls)
        calls.append(number)
        gates[number].stop()
        if number == 0 and outcome == "exception":
            raise ConnectionError
        return number

    old = Asked(read)
    gates[0].reached()
    getattr(read, forget)()
    new = Asked(read)
    gates[1].reached()
    gates[0].open()
    old.error()  # has ended, while the new one computes
    later = Asked(read)
    all_wait(read, 1)
    gates[1].open()
    assert (new.answer(), later.answer(), read()) == (1, 1, 1)
    assert len(calls) == 2


def test_an_invalidation_leaves_the_computations_of_other_keys_alone(gate: Gate) -> None:
    @memorize
    def read(item: int) -> int:
        gate.stop()
        return item

    first = Asked(lambda: read(1))
    gate.reached()
    read.invalidate(2)
    second = Asked(lambda: read(1))
    all_wait(read, 1)
    gate.open()
    assert (first.answer(), second.answer()) == (1, 1)
    assert read.info()[:3] == (0, 1, 1)


def test_the_operator_s_clear_wins_too(caches: Caches, gate: Gate) -> None:
    @memorize(name="read")
    def read() -> int:
        gate.stop()
        return 1

    asked = Asked(read)
    gate.reached()
    caches.clear("read")
    gate.open()
    asked.answer()
    assert read.info().size == 0


def test_other_keys_and_other_functions_never_wait(gate: Gate) -> None:
    @memorize
    def price(item: int) -> int:
        if item == 1:
            gate.stop()
        return item

    @memorize
    def rate() -> int:
        return 7

    slow = Asked(lambda: price(1))
    gate.reached()
    assert [price(2), price(3), rate()] == [2, 3, 7]
    price.invalidate(2)
    assert price.info().size == 1
    gate.open()
    assert slow.answer() == 1


def test_a_wait_is_bounded(clock: Clock, gate: Gate) -> None:
    @memorize(name="endless")
    def endless() -> int:
        gate.stop()
        return 1

    with Caches(timer=clock, wait=0.05).active():
        slow = Asked(endless)
        gate.reached()
        with pytest.raises(
            TimeoutError, match=r"endless: another caller has been computing the value for over 0.05 seconds"
        ):
            endless()
        gate.open()
        assert slow.answer() == 1
        assert endless() == 1


def test_two_that_wait_for_each_other_come_to_an_end(clock: Clock) -> None:
    meet = threading.Barrier(2)

    @memorize
    def crossed(item: int) -> int:
        meet.wait(PATIENCE)
        return crossed(1 - item)

    with Caches(timer=clock, wait=0.05).active():
        asked = [Asked(lambda: crossed(0)), Asked(lambda: crossed(1))]
        assert {type(each.error()) for each in asked} == {TimeoutError}


def test_an_interrupt_ends_one_caller_and_another_computes(gate: Gate) -> None:
    calls = []

    @memorize
    def rate() -> int:
        calls.append(1)
        if len(calls) == 1:
            gate.stop()
            raise SystemExit
        return len(calls)

    asked = together(10, rate)
    all_wait(rate, 9)
    gate.open()
    outcomes = Counter(type(each.error()) for each in asked)
    assert outcomes == {SystemExit: 1, type(None): 9}
    assert len(calls) == 2


def test_a_recursion_is_told_from_another_caller(gate: Gate) -> None:
    @memorize
    def rate() -> int:
        gate.stop()
        return 1

    first = Asked(rate)
    gate.reached()
    second = Asked(rate)
    all_wait(rate, 1)
    gate.open()
    assert (first.answer(), second.answer()) == (1, 1)


def test_a_value_that_is_fresh_for_no_time_is_still_shared_by_those_who_waited(clock: Clock, gate: Gate) -> None:
    @memorize(1)
    def rate() -> int:
        gate.stop()
        return 1

    asked = together(5, rate)
    all_wait(rate, 4)
    clock.advance(100)
    gate.open()
    assert [each.answer() for each in asked] == [1] * 5


def test_two_applications_compute_at_one_time(clock: Clock, gate: Gate) -> None:
    calls = []

    @memorize
    def rate() -> int:
        calls.append(1)
        gate.stop()
        return len(calls)

    asked = []
    for _ in range(2):
        with Caches(timer=clock).active():
            asked.append(Asked(rate))
        gate.reached()
    gate.open()
    assert [each.answer() for each in asked] == [2, 2]


def test_a_hit_takes_no_lock(caches: Caches) -> None:
    @memorize
    def rate(item: int, currency: str = "EUR") -> int:
        return item

    class Shop:
        @memorize
        def price(self, item: int) -> int:
            return item

    shop = Shop()
    hits = {rate: (lambda: rate(1), lambda: rate(item=1, currency="EUR")), Shop.price: (lambda: shop.price(1),)}
    for function, calls in hits.items():
        for call in calls:
            call()
            cache = caches.open(function)
            with cache._lock, cache._store._changed, caches._lock:  # type: ignore[attr-defined]
                assert Asked(call).answer() == 1


def test_the_counts_of_many_threads_add_up() -> None:
    @memorize
    def rate() -> int:
        return 1

    def ask() -> None:
        for _ in range(2000):
            rate()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for each in together(8, ask):
            each.answer()
    finally:
        sys.setswitchinterval(interval)
    info = rate.info()
    assert info.misses == 1
    assert info.hits + info.waits == 8 * 2000 - 1


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads take turns far more often than they do otherwise."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("stale", [0, 3])
@pytest.mark.parametrize("maxsize", [64, 4])
def test_under_stress_one_computes_a_key_at_a_time_and_no_value_is_too_old(
    clock: Clock, stale: int, maxsize: int
) -> None:
    running: Counter[int] = Counter()
    failures: list[str] = []

    @memorize(5, stale=stale)
    def read(key: int) -> float:
        running[key] += 1
        if running[key] != 1:
            failures.append(f"{running[key]} computations of {key} at once")
        clock.advance(0.01)
        running[key] -= 1
        if random.random() < 0.1:
            raise ConnectionError
        return clock()

    def ask(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(400):
            now = clock()
            with contextlib.suppress(ConnectionError):
                made = read(choice.randrange(8))
                if not now - made < 5 + stale:
                    failures.append(f"a value made {now - made} seconds ago")

    with Caches(timer=clock, maxsize=maxsize, wait=PATIENCE).active():
        asked = [Asked(lambda seed=seed: ask(seed)) for seed in range(8)]  # type: ignore[misc]
        for each in asked:
            each.answer()
            clock.advance(1)
        info = read.info()
    assert not failures, failures[:5]
    assert info.size <= maxsize
    assert info.hits + info.misses + info.waits + info.stale == 8 * 400


@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("stale", [0, 3])
def test_under_stress_nobody_gets_what_was_invalidated_before_he_asked(clock: Clock, stale: int) -> None:
    versions = dict.fromkeys(range(4), 0)
    invalidated = dict.fromkeys(range(4), 0)
    failures: list[str] = []

    @memorize(5, stale=stale, stale_if_error=20)
    def read(key: int) -> int:
        version = versions[key]
        if random.random() < 0.1:
            raise ConnectionError
        return version

    def ask(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(400):
            key = choice.randrange(4)
            least = invalidated[key]
            with contextlib.suppress(ConnectionError):
                if (version := read(key)) < least:
                    failures.append(f"version {version} of {key} after the invalidation of {least - 1}")

    def change(key: int) -> None:
        for turn in range(100):
            versions[key] += 1
            read.clear() if turn % 10 == 0 else read.invalidate(key)
            invalidated[key] = versions[key]
            clock.advance(0.2)

    with Caches(timer=clock, wait=PATIENCE).active():
        asked = [Asked(lambda seed=seed: ask(seed)) for seed in range(6)]  # type: ignore[misc]
        asked += [Asked(lambda key=key: change(key)) for key in range(4)]  # type: ignore[misc]
        for each in asked:
            each.answer()
    assert not failures, failures[:5]


# Forks


def test_a_child_forked_while_a_thread_computes_begins_without_flights(clock: Clock, gate: Gate) -> None:
    @memorize
    def table(item: int) -> int:
        if item == 1 and os.getpid() == parent:
            gate.stop()
        return item

    parent = os.getpid()
    table(2)
    slow = Asked(lambda: table(1))
    gate.reached()
    assert in_child(lambda: [table(1), table(1), table(2), table.info()[:3]]) == [1, 1, 2, (2, 3, 0)]
    gate.open()
    assert slow.answer() == 1
    assert table.info()[:2] == (0, 2)


def test_a_child_forked_in_the_middle_of_a_computation_computes_too() -> None:
    @memorize
    def parallel(item: int) -> Any:
        if os.getpid() == parent:
            return in_child(lambda: (parallel(item), parallel(item)))
        return item

    parent = os.getpid()
    assert parallel(1) == parallel(1) == (1, 1)
    assert parallel.info()[:2] == (1, 1)


def test_a_child_has_fresh_locks_and_a_whole_cache(caches: Caches) -> None:
    @memorize(maxsize=2)
    def rate(item: int) -> int:
        return item

    rate(1)
    cache = caches.open(rate)
    store: Any = cache._store
    store._whole = False  # as where another thread is in the middle of a change
    held = threading.Event()
    done = threading.Event()

    def hold() -> None:
        with cache._lock, caches._lock, store._changed, store._changing:
            held.set()
            done.wait(PATIENCE)

    holding = Asked(hold)
    assert held.wait(PATIENCE)

    def ask() -> Any:
        other = memorize(lambda: 7)
        found = [rate(1), rate(2), rate(3), other(), rate.info().size]
        rate.clear()
        return [*found, rate.info().size]

    assert in_child(ask) == [1, 2, 3, 7, 2, 0]
    done.set()
    holding.answer()


def test_a_computation_that_ends_in_the_child_takes_no_claim_of_the_child() -> None:
    @memorize
    def rate() -> int:
        nonlocal child
        if os.getpid() == parent and child is None:
            reader, writer = os.pipe()
            child = os.fork()
            if not child:  # goes on as a child
                os.close(reader)
                pipe = writer
                assert rate() == 2
                outcome.append(pipe)
                return 3
            os.close(writer)
            with open(reader, "rb") as data:
                assert data.read() == b"3, then 2"
            os.waitpid(child, 0)
            return 1
        return 2

    parent = os.getpid()
    child: int | None = None
    outcome: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        value = rate()
    if os.getpid() != parent:
        os.write(outcome[0], f"{value}, then {rate()}".encode())
        os._exit(0)
    assert value == rate() == 1


# Interrupts

INTERRUPTED = """
import os, signal, sys
from pushdemo import memorize
from pushdemo.cache import Caches, canonical

class Interrupt(BaseException):
    pass

FOLDERS = os.path.dirname(canonical.__file__), os.path.dirname(__import__("cachetools").__file__)
OTHERS = "threading.py", "weakref.py"
interrupts = 0
places = set()

def handler(number, frame):
    global interrupts
    file = frame.f_code.co_filename
    if file.startswith(FOLDERS) or file.endswith(OTHERS):
        interrupts += 1
        places.add((file, frame.f_lineno))
        raise Interrupt

@memorize(60, maxsize=16)
def value(number):
    return number

signal.signal(signal.SIGALRM, handler)
with Caches(wait=0.5).active():
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.00003)
    while interrupts < 5000:
        try:
            for number in range(20):
                assert value(number) == number
                value.invalidate(number)
                assert value(number) == number
            value.clear()
        except Interrupt:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert [value(number) for number in range(20)] == list(range(20))
    assert value.info().size == 16
    assert len(places) > 30, places
"""


def test_no_interrupt_of_thousands_leaves_a_key_locked() -> None:
    run = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


class Interrupt(BaseException):
    """What a signal raises in the main thread."""


def test_who_waits_for_an_interrupted_computation_computes(gate: Gate) -> None:
    calls = []

    @memorize
    def rate() -> int:
        calls.append(1)
        if len(calls) == 1:
            gate.stop()
            raise Interrupt
        return 2

    asked = together(6, rate)
    all_wait(rate, 5)
    gate.open()
    assert Counter(type(each.error()) for each in asked) == {Interrupt: 1, type(None): 5}
    assert len(calls) == 2
