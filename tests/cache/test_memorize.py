"""What `memorize` promises to one caller at a time; test_cache_threads.py has what it promises to many."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import types
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pushdemo.cache.memorize import Caches, Info, RecursiveCallError, memorize
from tests.cache.support import Clock, Source


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caches(clock: Clock) -> Iterator[Caches]:
    """The application of most tests: a value is used for 10 seconds."""
    with Caches(duration=10, timer=clock).active() as active:
        yield active


pytestmark = pytest.mark.usefixtures("caches")


# How long a value is used


@pytest.mark.parametrize("duration", [30, 30.0, timedelta(seconds=30)])
def test_a_value_is_used_for_its_duration(clock: Clock, duration: float | timedelta) -> None:
    source = Source()
    rate = memorize(duration)(lambda: source())
    assert rate() == 1
    clock.advance(29.9)
    assert rate() == 1
    clock.advance(0.1)
    assert rate() == 2


def test_each_way_of_giving_the_duration_is_the_same(clock: Clock) -> None:
    source = Source()
    for decorate in (memorize(20), memorize(duration=20), memorize(duration=20, name="rate")):
        source.calls = 0
        rate = decorate(lambda: source())
        rate()
        clock.advance(19)
        assert rate() == 1
        clock.advance(1)
        assert rate() == 2


@pytest.mark.parametrize("decorate", [memorize, memorize(), memorize(None)])
def test_a_duration_that_is_left_out_is_the_application_s(clock: Clock, decorate: Callable[[Any], Any]) -> None:
    source = Source()
    rate = decorate(lambda: source())
    rate()
    clock.advance(9.9)
    assert rate() == 1
    clock.advance(0.1)
    assert rate() == 2


def test_the_duration_counts_from_the_end_of_the_computation(clock: Clock) -> None:
    @memorize
    def slow() -> float:
        clock.advance(60)
        return clock()

    made = slow()
    clock.advance(9.9)
    assert slow() == made


def test_an_endless_duration(clock: Clock) -> None:
    source = Source()
    rate = memorize(math.inf)(lambda: source())
    rate()
    clock.advance(1e9)
    assert rate() == 1


def test_none_is_a_value_like_any_other() -> None:
    source = Source()
    rate = memorize(lambda: source() and None)
    assert [rate(), rate()] == [None, None]
    assert source.calls == 1


def test_a_duration_of_0_turns_the_cache_off() -> None:
    source = Source()
    rate = memorize(0, stale=60, stale_if_error=60)(lambda: source())
    assert [rate(), rate()] == [1, 2]
    source.fails = True
    with pytest.raises(ConnectionError):
        rate()
    assert rate.info() == Info(hits=0, misses=3, waits=0, stale=0, errors=1, size=0, age=None)


def test_a_function_without_cache_may_call_itself() -> None:
    @memorize(0)
    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else factorial.__wrapped__(1) if number < 0 else 1

    assert factorial(5) == 120


# Exceptions, and old values


def test_an_exception_is_not_kept() -> None:
    source = Source()
    source.fails = True
    rate = memorize(lambda: source())
    for number in (1, 2):
        with pytest.raises(ConnectionError, match=f"call {number} failed"):
            rate()
    source.fails = False
    assert rate() == 3
    assert rate.info()[:5] == (0, 3, 0, 0, 2)


def test_an_exception_leaves_no_cycle_that_keeps_its_arguments() -> None:
    class Big:
        pass

    @memorize
    def fails(big: Big) -> None:
        raise ValueError("no")

    gc.collect()
    gc.disable()
    try:
        big = Big()
        reference = weakref.ref(big)
        with contextlib.suppress(ValueError):
            fails(big)
        del big
        assert reference() is None
    finally:
        gc.enable()


def test_stale_if_error_uses_the_old_value_in_place_of_the_exception(clock: Clock) -> None:
    source = Source()
    rate = memorize(10, stale_if_error=20)(lambda: source())
    assert rate() == 1
    source.fails = True
    clock.advance(29.9)
    assert rate() == 1
    clock.advance(0.1)
    with pytest.raises(ConnectionError, match="call 3 failed"):
        rate()
    source.fails = False
    assert rate() == 4
    assert rate.info()[:5] == (0, 4, 0, 1, 2)


def test_an_old_value_does_not_take_the_place_of_an_interrupt(clock: Clock) -> None:
    answers: list[Any] = [1, KeyboardInterrupt]

    @memorize(stale_if_error=60)
    def rate() -> int:
        answer = answers.pop(0)
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        return int(answer)

    rate()
    clock.advance(11)
    with pytest.raises(KeyboardInterrupt):
        rate()


def test_the_exception_that_nobody_sees_is_logged_once_until_it_works_again(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    rate = memorize(10, name="rate", stale_if_error=1000)(lambda: source())
    rate()
    for _ in range(2):
        source.fails = True
        for _ in range(3):
            clock.advance(11)
            rate()
        source.fails = False
        rate()
    assert [(record.name, record.levelno) for record in caplog.records] == [("pushdemo.cache", logging.WARNING)] * 2
    assert "rate raised" in caplog.records[0].message
    assert caplog.records[0].exc_info is not None
    assert "call 2 failed" in str(caplog.records[0].exc_info[1])


def test_an_exception_during_which_the_value_was_invalidated_is_raised(clock: Clock) -> None:
    answers = [1]

    @memorize(10, stale_if_error=60)
    def rate() -> int:
        if not answers:
            rate.invalidate()
        return answers.pop()

    rate()
    clock.advance(11)
    with pytest.raises(IndexError):
        rate()


def test_stale_alone_does_not_hide_an_exception(clock: Clock) -> None:
    source = Source()
    rate = memorize(10, stale=60)(lambda: source())
    rate()
    clock.advance(11)
    source.fails = True
    with pytest.raises(ConnectionError):
        rate()
    source.fails = False
    assert rate() == 3


# Which calls share a value


def test_a_call_is_the_same_however_it_is_written() -> None:
    source = Source()

    @memorize
    def price(item: int = 1, currency: str = "EUR") -> int:
        return source()

    ways = [
        price(),
        price(1),
        price(item=1),
        price(1, "EUR"),
        price(currency="EUR"),
        price(currency="EUR", item=1),
        price(1, currency="EUR"),
    ]
    assert ways == [1] * 7
    assert price(2) == 2
    assert price(currency="USD") == 3


def test_1_and_its_likes_are_different_arguments() -> None:
    @memorize
    def shown(value: Any) -> str:
        return repr(value)

    values = [1, "1", 1.0, True, [1], [True], (1,), (1.0,), {"a": 1}, {"a": True}, b"1"]
    assert [shown(value) for value in values * 2] == [repr(value) for value in values * 2]
    assert shown.info()[:2] == (len(values), len(values))


def test_lists_and_dicts_count_by_what_is_in_them_at_the_call() -> None:
    @memorize
    def total(numbers: list[int], **more: dict[str, int]) -> int:
        return sum(numbers)

    numbers = [1, 2]
    assert total(numbers, a={"b": 1}) == 3
    assert total([1, 2], a={"b": 1}) == 3
    numbers.append(3)
    assert total(numbers, a={"b": 1}) == 6
    assert total([1, 2], a={"b": 1}) == 3
    assert total.info()[:2] == (2, 2)


def test_an_argument_that_the_function_changes_is_remembered_as_it_came() -> None:
    @memorize
    def emptied(numbers: list[int]) -> int:
        count = len(numbers)
        numbers.clear()
        return count

    assert emptied([1, 2]) == 2
    assert emptied([]) == 0
    assert emptied([1, 2]) == 2


def test_two_functions_of_one_name_do_not_collide() -> None:
    modules = []
    for number in (1, 2):
        module = types.ModuleType(f"rates_{number}")
        source = f"from pushdemo import memorize\n@memorize\ndef rate():\n    return {number}\n"
        exec(source, module.__dict__)
        modules.append(module)
    assert [module.rate() for module in modules * 2] == [1, 2, 1, 2]


def test_two_closures_of_one_place_do_not_collide() -> None:
    def make(number: int) -> Callable[[], int]:
        @memorize
        def rate() -> int:
            return number

        return rate

    one, two = make(1), make(2)
    assert [one(), two(), one(), two()] == [1, 2, 1, 2]


def test_a_call_that_does_not_fit_is_a_type_error_and_computes_nothing() -> None:
    source = Source()

    @memorize
    def price(item: int) -> int:
        return source()

    for call in (lambda: price(), lambda: price(1, 2), lambda: price(1, item=2), lambda: price(1, tax=2)):  # type: ignore[call-arg]
        for _ in range(2):
            with pytest.raises(TypeError, match=r"price\(\): "):
                call()
    assert source.calls == 0


def test_parameters_may_have_any_name() -> None:
    @memorize
    def odd(self: int, function: int, args: int, key: int = 0) -> tuple[int, ...]:
        return self, function, args, key

    assert odd(self=1, function=2, args=3, key=4) == odd(1, 2, 3, 4) == (1, 2, 3, 4)
    odd.invalidate(self=1, function=2, args=3, key=4)
    assert odd.info().size == 0


# Bounds


@pytest.mark.parametrize("kind", [int, str, lambda number: [number]])
def test_no_more_than_maxsize_values_are_kept_and_the_used_ones_stay(kind: Callable[[int], Any]) -> None:
    source = Source()

    @memorize(maxsize=3)
    def price(item: Any) -> int:
        return source()

    for number in range(100):
        price(kind(number))
        price(kind(0))
        assert price.info().size <= 3
    assert source.calls == 100


def test_the_application_s_maxsize_is_for_each_function(clock: Clock) -> None:
    one, two = memorize(lambda item: item), memorize(lambda item: item)
    with Caches(maxsize=2, timer=clock).active():
        for item in range(5):
            one(item)
            two(item)
        assert one.info().size == two.info().size == 2


def test_a_value_that_is_driven_out_while_it_is_computed_anew(clock: Clock) -> None:
    @memorize(maxsize=1, stale_if_error=60)
    def price(item: int) -> int:
        if item == 0 and clock() > 1005:
            price(1)
        return item

    price(0)
    clock.advance(11)
    assert price(0) == 0
    assert price.info().size == 1


def test_values_past_their_use_go_at_the_next_computation(clock: Clock) -> None:
    class Report:
        pass

    @memorize
    def report(number: int) -> Report:
        return Report()

    references = [weakref.ref(report(number)) for number in range(5)]
    clock.advance(11)
    report(9)
    assert [reference() for reference in references] == [None] * 5
    assert report.info().size == 1


# Invalidation


def test_invalidate_forgets_one_call_and_clear_all() -> None:
    source = Source()

    @memorize
    def price(item: int, currency: str = "EUR") -> int:
        return source()

    assert [price(1), price(2)] == [1, 2]
    price.invalidate(currency="EUR", item=1)
    assert [price(1), price(2)] == [3, 2]
    price.clear()
    assert [price(1), price(2)] == [4, 5]
    price.invalidate(99)
    with pytest.raises(TypeError, match="price"):
        price.invalidate(1, "EUR", 3)  # type: ignore[call-arg]


@pytest.mark.parametrize("forget", ["invalidate", "clear"])
def test_what_was_being_computed_is_not_kept(forget: str) -> None:
    data = ["old"]

    @memorize
    def read() -> str:
        found = data[0]
        if found == "old":
            data[0] = "new"
            getattr(read, forget)()
        return found

    assert read() == "old"
    assert read() == "new"
    assert read() == "new"


# Asking for what one is computing


def test_a_function_that_asks_for_its_own_value_is_told_so() -> None:
    @memorize(name="endless")
    def endless(number: int = 1) -> int:
        return endless(number=1)

    with pytest.raises(RecursiveCallError, match="endless, while it computes a value, asks for it"):
        endless()


def test_a_circle_through_another_function_is_found_too() -> None:
    @memorize
    def hen() -> int:
        return egg()

    @memorize
    def egg() -> int:
        return hen()

    with pytest.raises(RecursiveCallError):
        hen()


def test_a_refresh_that_asks_for_the_old_value_is_told_so_too(clock: Clock) -> None:
    @memorize(stale=60, stale_if_error=0)
    def rate() -> int:
        return 1 if clock() == 1000 else rate()

    rate()
    clock.advance(11)
    with pytest.raises(RecursiveCallError):
        rate()


def test_a_function_may_ask_for_its_other_values() -> None:
    @memorize
    def fibonacci(number: int) -> int:
        return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

    assert fibonacci(60) == 1548008755920
    assert fibonacci.info().misses == 61
