"""The caches of an application: its durations, what it says of single functions, what its operator sees and clears."""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import math
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pushdemo.cache import functions
from pushdemo.cache.memorize import Caches, Info, UnknownFunctionError, memorize
from pushdemo.cache.store import CachetoolsStore
from tests.cache.support import Asked, Clock, Gate, Source
from tests.support import ROOT, wait_until


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


# Names that are shared with other processes


def fetch(table: str, item: int) -> str:
    return f"{table} {item}"


class Table:
    """Memorizes its own method, and can be called."""

    def __init__(self) -> None:
        self.row = memorize(60)(self.row)  # type: ignore[method-assign]

    def row(self, item: int) -> None: ...

    def __call__(self, item: int) -> None: ...


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@memorize
def plain() -> None: ...


@decorated
@memorize
@decorated
def between() -> None: ...


class Shop:
    @memorize
    def method(self) -> None: ...

    @memorize
    @classmethod
    def class_above(cls) -> None: ...

    @classmethod
    @memorize
    def class_below(cls) -> None: ...

    @memorize
    @staticmethod
    def static_above() -> None: ...

    @staticmethod
    @memorize
    def static_below() -> None: ...

    @property
    @memorize
    def size(self) -> None: ...

    class Inner:
        @memorize
        def method(self) -> None: ...


@memorize
def redefined() -> int:
    return 1


the_first = redefined


@memorize
def redefined() -> int:  # type: ignore[no-redef]
    return 2


AT_THEIR_ADDRESS = [
    plain,
    between.__wrapped__,
    Shop.method,
    vars(Shop)["class_above"],
    vars(Shop)["class_below"].__func__,
    Shop.static_above,
    Shop.static_below,
    Shop.size.fget,  # type: ignore[attr-defined]
    Shop.Inner.method,
]


@pytest.mark.parametrize("function", AT_THEIR_ADDRESS, ids=lambda function: function.name)
def test_the_one_function_at_its_address_is_shared_by_this(function: Any) -> None:
    assert function.store_name() == function.name == f"{__name__}.{function.__qualname__}"


@pytest.mark.parametrize(
    "make",
    [
        lambda **name: memorize(60, **name)(functools.partial(fetch, "users")),
        lambda **name: memorize(60, **name)(fetch),
        lambda **name: memorize(60, **name)(Table()),
        lambda **name: memorize(60, **name)(Table().__call__),
        lambda **name: memorize(60, **name)(lambda: None),
        lambda **name: memorize(60, **name)(str.upper),
    ],
)
def test_what_is_not_is_shared_only_by_a_name_of_its_own(make: Callable[..., Any]) -> None:
    assert "<" in make().store_name()
    name = f"shared {next(numbers)}"
    assert make(name=name).store_name() == name


numbers = itertools.count()


def test_a_method_that_an_object_memorizes_and_a_function_that_was_redefined_are_not_shared() -> None:
    assert "<" in Table().row.store_name()  # type: ignore[attr-defined]
    assert "<" in the_first.store_name()
    assert "<" in redefined.store_name(), "the values of the first may be at the store under this name"


def test_a_second_function_of_a_name_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    name = f"twice {next(numbers)}"
    one = memorize(name=name)(lambda: 1)
    assert not caplog.records
    two, three = memorize(name=name)(lambda: 2), memorize(name=name)(lambda: 3)
    assert [f"called {name}" in record.getMessage() for record in caplog.records] == [True]
    assert "memorize(name=...)" in caplog.text
    assert [one(), two(), three()] == [1, 2, 3]


def test_the_functions_of_each_request_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        @memorize
        def inner() -> None: ...

        return inner

    assert len({make(), make(), memorize(lambda: 1), memorize(lambda: 2)}) == 4
    assert not caplog.records


# Numbers that are too large


def test_a_duration_past_all_numbers_is_for_ever(clock: Clock) -> None:
    source = Source()
    with Caches(duration=10**400, stale=10**400, functions={"a": {"stale_if_error": 10**400}}, timer=clock).active():
        rate, other = memorize(10**400)(lambda: source()), memorize(lambda: source())
        assert [rate(), other()] == [1, 2]
        clock.advance(1e12)
        assert [rate(), other()] == [1, 2]
    with pytest.raises(ValueError, match=r"duration=-1.*: must be 0 seconds or more"):
        memorize(-(10**400))


@pytest.mark.parametrize("wait", [math.inf, 1e300, 10**400, timedelta.max, timedelta(seconds=60), 60])
def test_a_wait_may_be_endless(wait: Any) -> None:
    gate = Gate()

    @memorize
    def rate() -> int:
        gate.stop()
        return 1

    with Caches(wait=wait).active():
        asked = [Asked(rate)]
        gate.reached()
        asked.append(Asked(rate))
        wait_until(lambda: rate.info().waits == 1, what="the second caller")
        gate.open()
        assert [each.answer() for each in asked] == [1, 1]
        store = CachetoolsStore("rate", 8, time.monotonic)
        claim = store.claim((1,), wait.total_seconds() if isinstance(wait, timedelta) else wait)
        assert store.settle((1,), claim, None)


@pytest.mark.parametrize(("wait", "error"), [("60", TypeError), (-1, ValueError), (math.nan, ValueError)])
def test_a_wait_that_will_not_do_is_named(wait: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"wait={wait!r}: must be"):
        Caches(wait=wait)


# Calls outside of an application


@pytest.fixture
def outside() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Calls a function in a context without an application."""
    others = [reference() for reference in functions.outside._applications.values()]
    for caches in others:
        if caches:
            caches.close()
    yield lambda call: contextvars.Context().run(call)
    for caches in others:
        if caches:
            caches.serve()


@pytest.mark.usefixtures("caches")
def test_outside_of_the_only_application_its_caches_are_used(outside: Any) -> None:
    source = Source()
    rate = memorize(lambda: source())
    application = Caches()
    application.serve()
    with application.active():
        assert rate() == 1
    assert outside(rate) == 1
    outside(rate.invalidate)
    with application.active():
        assert rate() == 2
    assert outside(rate.info).misses == 2
    outside(rate.clear)
    assert Asked(lambda: outside(rate)).answer() == 3
    with application.active():
        assert rate() == 3


def test_an_application_that_is_gone_is_no_longer_the_only_one(outside: Any) -> None:
    source = Source()
    rate = memorize(lambda: source())
    application = Caches()
    application.serve()
    assert [outside(rate), outside(rate)] == [1, 1]
    del application
    gc.collect()
    assert outside(rate) == 2


@pytest.mark.heavy
def test_outside_of_several_a_change_is_refused_and_a_computation_is_told_once(
    outside: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    rate = memorize(lambda: source())
    applications = [Caches(), Caches()]
    for application in applications:
        application.serve()
    for change in (rate.invalidate, rate.clear, rate.info):
        with pytest.raises(RuntimeError, match=r"this process has 2 of them: call it `with caches\.active\(\):`"):
            outside(change)
    functions.outside._told = False
    assert [outside(rate), outside(rate)] == [1, 1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "caches.active()" in caplog.text
    applications[0].close()
    applications[0].close()
    outside(rate.invalidate)
    with applications[1].active():
        assert rate() == 2
    assert outside(rate) == 2
    del application, applications  # an application that is gone is no application
    gc.collect()
    assert outside(rate) == 1, "the process's own value"


@pytest.mark.heavy
def test_an_application_that_only_the_collector_keeps_is_none_of_several(outside: Any) -> None:
    class Held:
        """What holds itself, as an application's registry does."""

        def __init__(self) -> None:
            self.own = self
            self.caches = Caches()
            self.caches.serve()

    rate = memorize(lambda: 1)
    gc.disable()
    try:
        kept, other = Held(), Held()
        with pytest.raises(RuntimeError):
            outside(rate.invalidate)
        del other
        outside(rate.invalidate)
        other = Held()
        del other
        outside(rate.clear)
        assert outside(rate) == 1
        assert list(kept.caches.info()) == [rate.name]
    finally:
        gc.enable()
    kept.caches.close()


def test_the_word_of_the_web_framework_comes_first(outside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    rate = memorize(lambda: source())
    applications = [Caches(), Caches()]
    for application in applications:
        application.serve()
    monkeypatch.setattr(functions.outside, "in_request", lambda: applications[1])
    assert outside(rate) == 1
    outside(rate.invalidate)
    assert outside(rate) == 2
    assert [len(each.info()) for each in applications] == [0, 1]
    for application in applications:
        application.close()
