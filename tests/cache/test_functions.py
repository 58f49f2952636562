"""The caches of an application: its durations, what it says of single functions, what its operator sees and clears."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pushdemo.cache.memorize import Caches, Info, UnknownFunctionError, memorize
from tests.cache.support import Clock, Source
from tests.support import ROOT


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caches(clock: Clock) -> Iterator[Caches]:
    """The application of most tests: a value is used for 10 seconds."""
    with Caches(duration=10, timer=clock).active() as active:
        yield active


pytestmark = pytest.mark.usefixtures("caches")


# Names


def test_a_function_goes_by_its_module_and_name_or_by_the_name_that_it_was_given(caches: Caches) -> None:
    @memorize
    def rate() -> None: ...

    @memorize(name="the rate")
    def other() -> None: ...

    rate()
    other()
    place = f"{__name__}.{rate.__qualname__}"
    assert list(caches.info()) == sorted([place, "the rate"])


def test_a_name_belongs_to_one_place() -> None:
    @memorize(name="taken")
    def first() -> None: ...

    with pytest.raises(ValueError, match=r"name='taken' for .*second: .*first has this name already"):

        @memorize(name="taken")
        def second() -> None: ...


def test_functions_of_one_name_are_counted_and_cleared_together(caches: Caches, clock: Clock) -> None:
    one, two, three = (memorize(name="of one place")(lambda: 1) for _ in range(3))
    one()
    clock.advance(3)
    two()
    clock.advance(1)
    three.clear()
    assert caches.info() == {"of one place": Info(hits=0, misses=2, waits=0, stale=0, errors=0, size=2, age=1.0)}
    caches.clear("of one place")
    assert caches.info()["of one place"][5:] == (0, None)


def test_a_module_that_is_imported_again_has_its_names_again() -> None:
    def load() -> Any:
        @memorize(name="again")
        def rate() -> int:
            return 1

        return rate

    assert load()() == load()() == 1


# One application and another


def test_two_applications_have_durations_and_values_of_their_own(clock: Clock) -> None:
    source = Source()
    rate = memorize(lambda: source())
    slow, quick = Caches(duration=60, timer=clock), Caches(duration=5, timer=clock)

    def rates() -> list[int]:
        found = []
        for caches in (slow, quick):
            with caches.active():
                found.append(rate())
        return found

    assert rates() == [1, 2]
    clock.advance(6)
    assert rates() == [1, 3]
    with slow.active():
        rate.clear()
    assert rates() == [4, 3]
    assert [next(iter(caches.info().values())).misses for caches in (slow, quick)] == [2, 2]


def test_applications_may_be_nested_and_the_outer_one_comes_back(caches: Caches, clock: Clock) -> None:
    source = Source()
    rate = memorize(lambda: source())
    rate()
    with Caches(timer=clock).active() as inner:
        rate()
        assert len(inner.info()) == 1
        with caches.active():
            assert rate() == 1
        assert rate() == 2
    assert rate() == 1


def test_a_decorator_s_own_options_come_before_the_application_s(clock: Clock) -> None:
    source = Source()
    rate = memorize(20, stale_if_error=0)(lambda: source())
    with Caches(duration=5, stale_if_error=100, timer=clock).active():
        rate()
        clock.advance(19)
        assert rate() == 1
        clock.advance(1)
        source.fails = True
        with pytest.raises(ConnectionError):
            rate()


def test_what_the_application_says_of_a_function_comes_before_its_decorator(clock: Clock) -> None:
    source = Source()
    rate = memorize(20, name="rate", maxsize=9)(lambda item: source())
    functions = {"rate": {"duration": timedelta(minutes=1), "maxsize": 2, "stale_if_error": 60}}
    with Caches(duration=5, functions=functions, timer=clock).active() as caches:
        caches.check()
        rate(1)
        clock.advance(59)
        assert rate(1) == 1
        clock.advance(1)
        source.fails = True
        assert rate(1) == 1
        source.fails = False
        for item in range(5):
            rate(item)
        assert rate.info().size == 2


def test_an_application_that_turns_the_cache_off_for_one_function(clock: Clock) -> None:
    source = Source()
    rate = memorize(20, name="off here")(lambda: source())
    with Caches(functions={"off here": {"duration": 0}}, timer=clock).active():
        assert [rate(), rate()] == [1, 2]


def test_a_function_that_the_application_names_must_exist() -> None:
    @memorize(name="known")
    def known() -> None: ...

    Caches(functions={"known": {"duration": 5}}).check()
    with pytest.raises(UnknownFunctionError, match=r"no memorized function is called knwon; there are: .*\bknown\b"):
        Caches(functions={"known": {}, "knwon": {"duration": 5}}).check()


def test_an_operator_clears_one_function_by_its_name(caches: Caches) -> None:
    source = Source()
    one, two = memorize(name="one")(lambda: source()), memorize(name="two")(lambda: source())
    assert [one(), two()] == [1, 2]
    caches.clear("one")
    assert [one(), two()] == [3, 2]
    Caches().clear("one")  # known, but not called there
    assert one() == 3
    with pytest.raises(UnknownFunctionError, match=r"no memorized function is called three; there are: .*one.*two"):
        caches.clear("three")


def test_a_function_that_is_gone_leaves_nothing_in_the_application(caches: Caches) -> None:
    for number in range(20):
        memorize(name="for one request")(lambda number=number: number)()
    gc.collect()
    assert caches.info() == {}
    with pytest.raises(UnknownFunctionError):
        caches.clear("for one request")


def test_an_application_that_is_gone_leaves_nothing_in_the_function(clock: Clock) -> None:
    class Report:
        pass

    report = memorize(lambda: Report())
    with Caches(timer=clock).active():
        reference = weakref.ref(report())
    gc.collect()
    assert reference() is None


def test_outside_of_any_application_values_are_kept_too() -> None:
    script = (
        "from pushdemo import memorize; rate = memorize(lambda: object()); print(rate() is rate(), rate.info().hits)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["True", "1"]
