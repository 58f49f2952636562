"""`memorize` on methods, class methods and static methods."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pushdemo.cache.memorize import Caches, memorize
from tests.cache.support import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caches(clock: Clock) -> Iterator[Caches]:
    """The application of most tests: a value is used for 10 seconds."""
    with Caches(duration=10, timer=clock).active() as active:
        yield active


pytestmark = pytest.mark.usefixtures("caches")


class Shop:
    """A class with memorized methods of every kind; `calls` counts for all."""

    calls = 0

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def count(cls) -> int:
        Shop.calls += 1
        return Shop.calls

    @memorize
    def price(self, item: int, currency: str = "EUR") -> tuple[str, int, int]:
        """What an item costs here."""
        return self.name, item, self.count()

    @memorize(60)
    @classmethod
    def above(cls, item: int = 1) -> tuple[type, int, int]:
        return cls, item, cls.count()

    @classmethod
    @memorize(60)
    def below(cls, item: int = 1) -> tuple[type, int, int]:
        return cls, item, cls.count()

    @memorize(60)
    @staticmethod
    def static_above(item: int = 1) -> tuple[int, int]:
        return item, Shop.count()

    @staticmethod
    @memorize(60)
    def static_below(item: int = 1) -> tuple[int, int]:
        return item, Shop.count()

    @property
    @memorize
    def size(self) -> int:
        return self.count()


class Branch(Shop):
    @memorize
    def price(self, item: int, currency: str = "EUR") -> tuple[str, int, int]:
        return super().price(item, currency)


def test_each_object_has_its_own_values() -> None:
    one, two = Shop("one"), Shop("two")
    first = one.price(1)
    assert first[:2] == ("one", 1)
    assert two.price(1)[:2] == ("two", 1)
    assert one.price(item=1, currency="EUR") is first
    assert Shop.price(one, 1) is first
    assert one.size == one.size != two.size


def test_a_method_is_invalidated_through_its_object_or_its_class() -> None:
    one, two = Shop("one"), Shop("two")
    before = one.price(1), two.price(1)
    one.price.invalidate(1)
    assert one.price(1) != before[0]
    assert two.price(1) == before[1]
    Shop.price.invalidate(two, item=1)
    assert two.price(1) != before[1]
    assert one.price.info().size == Shop.price.info().size == 2
    one.price.clear()
    assert Shop.price.info().size == 0


def test_a_method_that_calls_the_one_it_overrides() -> None:
    branch = Branch("branch")
    assert branch.price(1) is branch.price(1)
    assert Shop.price(branch, 1) is branch.price(1)


@pytest.mark.parametrize("name", ["above", "below"])
def test_class_methods_have_their_values_by_class(name: str) -> None:
    of_shop, of_branch = getattr(Shop, name), getattr(Branch, name)
    assert of_shop()[:2] == (Shop, 1)
    assert of_branch(1)[:2] == (Branch, 1)
    assert getattr(Shop("one"), name)(item=1) is of_shop()
    assert getattr(Branch("one"), name)() is of_branch()


def test_class_methods_are_invalidated_by_class() -> None:
    before = Shop.above(), Branch.above()
    Shop.above.invalidate(item=1)
    assert Shop.above() != before[0]
    assert Branch.above() == before[1]


@pytest.mark.parametrize("name", ["static_above", "static_below"])
def test_static_methods(name: str) -> None:
    method = getattr(Shop, name)
    assert method(2) is getattr(Shop("one"), name)(item=2)
    before = method()
    method.invalidate(1)
    assert method() != before


def test_a_function_that_becomes_a_method() -> None:
    @memorize
    def named(self: Shop) -> str:
        return self.name

    class Other(Shop):
        named_later = named

    assert Other("a").named_later() == "a"
    assert Other("b").named_later() == "b"


def test_values_of_a_method_do_not_keep_its_object_alive() -> None:
    shop = Shop("one")
    shop.price(1)
    shop.price([1])  # type: ignore[arg-type]
    reference = weakref.ref(shop)
    del shop
    assert reference() is None


def test_values_of_objects_that_are_gone_go_at_the_next_computation() -> None:
    class Report:
        pass

    class Desk:
        @memorize
        def report(self) -> Report:
            return Report()

    kept = Desk()
    kept.report()
    references = [weakref.ref(Desk().report()) for _ in range(50)]
    Desk().report()
    assert [reference() for reference in references] == [None] * 50
    assert Desk.report.info().size == 1
    kept.report()
    assert kept.report.info().hits == 1


def test_a_function_whose_every_call_is_of_another_object_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    @memorize(name="of a request")
    def of_request(request: object) -> int:
        return 1

    @memorize(ignore=("request",))
    def without(request: object) -> int:
        return 1

    for _ in range(100):
        of_request(Branch("a request"))
        without(Branch("a request"))
    assert [record.getMessage()[:19] for record in caplog.records] == ["of a request keeps "]
    assert "memorize(ignore=...)" in caplog.text
    assert without.info()[:2] == (99, 1)


def test_an_object_with_an_equality_of_its_own_shares_values_with_its_equals() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Point) and other.x == self.x

        def __hash__(self) -> int:
            return hash(self.x)

        @memorize
        def norm(self) -> int:
            return Shop.count()

    assert Point(1).norm() == Point(1).norm() != Point(2).norm()


METHODS = [lambda: Shop.above, lambda: Branch.above, lambda: Shop.below, lambda: Shop.static_above, lambda: Shop.price]


@pytest.mark.parametrize("find", METHODS)
def test_methods_of_classes_are_pickled_and_copied_as_methods_are(find: Callable[[], Any]) -> None:
    for made in (pickle.loads(pickle.dumps(find())), copy.copy(find()), copy.deepcopy(find())):
        assert made == find()
        made.info()
    assert hash(find()) == hash(find())


def test_a_method_of_an_object_is_pickled_with_its_object() -> None:
    shop = Shop("one")
    for bound, text in ((shop.price, "price"), (shop.above, "above")):
        made = pickle.loads(pickle.dumps(bound))
        assert made.__name__ == text
    assert pickle.loads(pickle.dumps(shop.price))(1)[:2] == ("one", 1)
    assert pickle.loads(pickle.dumps(Shop("two").above))() is Shop.above()
    assert shop.price == shop.price
    assert shop.price != Shop("one").price
    assert shop.price != shop.above
    assert shop.price != 5
