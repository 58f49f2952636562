"""What `memorize` decorates, what it refuses, and what can be seen of a memorized function."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import math
import pickle
import pydoc
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pushdemo.cache.memorize import Caches, Info, memorize
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


# What is refused


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Calls:
    """An object whose call is a coroutine function."""

    async def __call__(self) -> int:
        return 1


@pytest.mark.parametrize("decorate", [memorize, memorize(15), lambda function: memorize(classmethod(function))])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            generator,
            "generator function .*Memorize a function that returns a list, or push the generator with json_yield",
        ),
        (functools.partial(generator), "generator function"),
        (async_generator, "generator function"),
        (coroutine, "coroutine function .* is awaited once"),
        (Calls(), "coroutine function"),
    ],
)
def test_what_returns_something_for_one_use_is_refused_where_it_is_decorated(
    decorate: Callable[[Any], Any], function: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        decorate(function)


@pytest.mark.parametrize("make", [generator, coroutine, async_generator])
def test_what_turns_out_to_be_for_one_use_is_refused_where_it_is_returned(make: Callable[[], Any]) -> None:
    made = make()
    rate = memorize(lambda: made)
    with pytest.raises(TypeError, match=rf"returned a {type(made).__name__}, which serves one caller: use a list"):
        rate()
    with contextlib.suppress(AttributeError):
        made.close()


def test_a_future_is_for_one_use_too() -> None:
    async def main() -> None:
        rate = memorize(lambda: asyncio.get_running_loop().create_future())
        with pytest.raises(TypeError, match="returned a"):
            rate()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"duration": "15"},
            TypeError,
            "duration='15': must be a number of seconds or a timedelta, such as duration=15",
        ),
        ({"duration": True}, TypeError, "duration=True: must be a number"),
        ({"duration": -1}, ValueError, "duration=-1: must be 0 seconds or more"),
        ({"duration": timedelta(seconds=-1)}, ValueError, "duration=.*: must be 0 seconds or more"),
        ({"duration": math.nan}, ValueError, "duration=nan: must be 0 seconds or more"),
        ({"stale": -0.5}, ValueError, "stale=-0.5: must be 0 seconds or more"),
        ({"stale_if_error": "x"}, TypeError, "stale_if_error='x': must be a number"),
        ({"maxsize": 0}, ValueError, "maxsize=0: must be 1 or more"),
        ({"maxsize": 1.5}, TypeError, "maxsize=1.5: must be a whole number"),
        ({"maxsize": True}, TypeError, "maxsize=True: must be a whole number"),
    ],
)
def test_an_option_that_will_not_do_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for refuse in (lambda: memorize(**options), lambda: Caches(**options), lambda: Caches(functions={"a": options})):
        with pytest.raises(error, match=message):
            refuse()


def test_an_option_of_a_function_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        TypeError, match="durations=5: memorized functions have duration, stale, stale_if_error and maxsize"
    ):
        Caches(functions={"rate": {"durations": 5}})


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="memorize decorates functions, not 5"):
        memorize(15)(5)  # type: ignore[arg-type]


# What can be seen


def test_info_counts_what_happened(clock: Clock) -> None:
    source = Source()
    rate = memorize(10, stale_if_error=60)(lambda item: source())
    rate(1)
    rate(1)
    clock.advance(4)
    rate(2)
    clock.advance(3)
    assert rate.info() == Info(hits=1, misses=2, waits=0, stale=0, errors=0, size=2, age=3.0)
    clock.advance(3)
    source.fails = True
    rate(1)
    assert rate.info() == Info(hits=1, misses=3, waits=0, stale=1, errors=1, size=2, age=6.0)
    rate.clear()
    assert rate.info() == Info(hits=1, misses=3, waits=0, stale=1, errors=1, size=0, age=None)


def test_help_shows_the_function_s_own_signature_and_words() -> None:
    @memorize(15)
    def price(item: int, currency: str = "EUR") -> float:
        """What an item costs."""
        return 1.0

    class Shop:
        @memorize
        def price(self, item: int, currency: str = "EUR") -> float:
            """What an item costs."""
            return 1.0

        @memorize
        @classmethod
        def above(cls, item: int, currency: str = "EUR") -> float:
            """What an item costs."""
            return 1.0

        @classmethod
        @memorize
        def below(cls, item: int, currency: str = "EUR") -> float:
            """What an item costs."""
            return 1.0

        @staticmethod
        @memorize
        def static(item: int, currency: str = "EUR") -> float:
            """What an item costs."""
            return 1.0

    # In Python 3.13 inspect takes whatever is a partial for data, and help() shows its class.
    bound = [] if sys.version_info[:2] == (3, 13) else [Shop().price, Shop.above, Shop().above]
    for thing in (price, Shop.price, Shop.below, Shop.static, *bound):
        text = pydoc.plain(pydoc.render_doc(thing))
        assert f"{thing.__name__}(" in text
        assert "item: 'int', currency: 'str' = 'EUR') -> " in text
        assert "What an item costs" in text
        assert "partial" not in text
    assert pydoc.plain(pydoc.render_doc(Shop)).count("What an item costs") == 4
    assert inspect.signature(price) == inspect.signature(price.__wrapped__)
    assert price.__name__ == "price"
    assert str(inspect.signature(Shop().price)) == "(item: 'int', currency: 'str' = 'EUR') -> 'float'"
    assert "memorized <function" in repr(price)


@memorize
def at_module_level() -> int:
    return 1


def test_a_memorized_function_is_pickled_and_copied_as_a_function_is() -> None:
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level
    assert copy.deepcopy(at_module_level) is at_module_level


def test_callables_that_are_no_functions() -> None:
    source = Source()
    rate = memorize(functools.partial(source, 1))
    assert rate() == rate() == 1
    assert memorize(Source())() == 1


@pytest.mark.heavy
def test_a_type_checker_sees_the_decorated_function_s_signature(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "typed.py").write_text(
        textwrap.dedent("""
            from typing import assert_type
            from pushdemo.cache.memorize import memorize

            @memorize
            def bare(item: int, currency: str = "EUR") -> list[int]: return [item]

            @memorize(15, name="price")
            def price(item: int) -> float: return 1.0

            class Shop:
                @memorize
                def price(self, item: int) -> float: return 1.0
                @memorize(15)
                @classmethod
                def of(cls, item: int) -> float: return 1.0
                @classmethod
                @memorize(15)
                def below(cls, item: int) -> float: return 1.0
                @staticmethod
                @memorize
                def tax(item: int) -> float: return 1.0

            class Branch(Shop):
                @memorize
                def price(self, item: int) -> float: return super().price(item) + self.tax(item) + self.of(item)
                @memorize(15)
                @classmethod
                def of(cls, item: int) -> float: return 1.0

            assert_type(bare(1, currency="USD"), list[int])
            assert_type(price(1), float)
            assert_type(Shop().price(1), float)
            assert_type(Shop.price(Shop(), 1), float)
            assert_type(Shop.of(1), float)
            assert_type(Shop().of(item=1), float)
            assert_type(Shop.below(1), float)
            assert_type(Shop.tax(1), float)
            assert_type(Shop.tax(item=1), float)
            assert_type(Shop().tax(1), float)
            Shop().price.invalidate(1)
            Shop.of.invalidate(1)
            price("1")  # wrong
            price.invalidate("1")  # wrong
            Shop().price("1")  # wrong
            Shop.of("1")  # wrong
            Shop().of("1")  # wrong
            Shop.below("1")  # wrong
            Shop.tax("1")  # wrong
            Shop().price.invalidate()  # wrong
            memorize("15")  # wrong
        """)
    )
    wrong = [
        number for number, line in enumerate((tmp_path / "typed.py").read_text().splitlines(), 1) if "wrong" in line
    ]
    output, _, _ = api.run(["--strict", "--cache-dir", str(ROOT / ".mypy_cache" / "test"), str(tmp_path / "typed.py")])
    errors = {int(number) for number in re.findall(r"typed\.py:(\d+): error:", output)}
    assert sorted(errors) == wrong, output
