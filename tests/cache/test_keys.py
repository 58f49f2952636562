"""Which calls are one call, and which are not."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import gc
import sys
import uuid
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushdemo.cache.keys import Key, Signature, is_dead, key_of, quick_key


def key(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Key:
    """The key of a call, found as a hit finds it, with the number of its arguments known or not."""
    signature = Signature(function)
    first = key_of(signature.values(args, kwargs))
    assert key_of(signature.values(args, kwargs)) == first  # the second time it goes by what it learnt
    return first


def ordinary(a: Any, b: Any = 2) -> None: ...


def positional(a: Any, b: Any = 2, /) -> None: ...


def keywords(a: Any, *, b: Any = 2, c: Any = 3) -> None: ...


def several(a: Any, *rest: Any, b: Any = 2, **more: Any) -> None: ...


class Colour(enum.Enum):
    RED = 1


class Weekday(enum.IntEnum):
    MONDAY = 1


Point = namedtuple("Point", "x y")


@dataclass
class Mutable:
    x: Any


@dataclass(frozen=True)
class Frozen:
    x: Any


class Plain:
    """Equal to itself alone."""


class Tight:
    """Equal to itself alone, and without room for a weak reference."""

    __slots__ = ()


class Never:
    """Neither to be hashed nor to be pickled."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __reduce__(self) -> str:
        raise RuntimeError("not to be pickled")


@pytest.mark.parametrize(
    ("function", "ways"),
    [
        (ordinary, [((1,), {}), ((1, 2), {}), ((1,), {"b": 2}), ((), {"a": 1}), ((), {"b": 2, "a": 1})]),
        (positional, [((1,), {}), ((1, 2), {})]),
        (keywords, [((1,), {}), ((), {"a": 1}), ((1,), {"c": 3, "b": 2}), ((1,), {"b": 2, "c": 3})]),
        (several, [((1,), {}), ((), {"a": 1}), ((1,), {"b": 2})]),
        (several, [((1, 5, 6), {"x": 1, "y": 2}), ((1, 5, 6), {"y": 2, "x": 1, "b": 2})]),
    ],
)
def test_one_call_has_one_key_however_it_is_written(
    function: Callable[..., Any], ways: list[tuple[tuple[Any, ...], dict[str, Any]]]
) -> None:
    assert len({key(function, *args, **kwargs) for args, kwargs in ways}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((1,), {}), ((2,), {})),
        (((1, 5), {}), ((1,), {"b": 5})),
        (((1,), {"x": 1}), ((1,), {"y": 1})),
        (((1,), {"x": 1}), ((1, 1), {})),
        (((1, 2), {}), ((1, 2, 2), {})),
        (((1, {"x": 1}), {}), ((1,), {"x": 1})),
    ],
)
def test_other_arguments_have_another_key(one: Any, other: Any) -> None:
    assert key(several, *one[0], **one[1]) != key(several, *other[0], **other[1])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"c": 1}), ((1,), {"a": 1}), ((), {"b": 1}), ((1, 2), {"b": 2})],
)
def test_a_call_that_does_not_fit_is_refused_each_time(args: Any, kwargs: Any) -> None:
    signature = Signature(ordinary)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"^ordinary\(\): "):
            signature.values(args, kwargs)


def test_a_call_that_fits_does_not_let_others_pass() -> None:
    signature = Signature(ordinary)
    assert signature.values((1,), {"b": 3}) == (1, 3)
    for wrong in ({"a": 3}, {"c": 3}):
        with pytest.raises(TypeError, match=r"^ordinary\(\): "):
            signature.values((1,), wrong)


def test_positional_only_parameters_are_no_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        Signature(positional).values((), {"a": 1})


# Each stands for a value of its own. Many of them are equal, and of one hash.
DIFFERENT = [
    *[None, 0, 1, 1.0, 1 + 0j, True, False, 0.0, "1", b"1", "", b"", "None", 2, "True"],
    *[(), [], set(), frozenset(), {}, bytearray(), "()", (None,)],
    *[(1,), (1.0,), (True,), ("1",), [1], [True], [[1]], [(1,)], ([1],), ((1,),), (1, 1)],
    *[
        {1},
        {True},
        {1.0},
        frozenset({1}),
        frozenset({True}),
        {1: 1},
        {True: 1},
        {1: True},
        {"1": 1},
        {1: [1]},
        {1: (1,)},
    ],
    *[{"a": 1, "b": 2}, {"a": 2, "b": 1}, [("a", 1), ("b", 2)], [["a", 1], ["b", 2]]],
    *[bytearray(b"1"), Weekday.MONDAY, Colour.RED, int, bool, Point, Point(1, 2), Point(1.0, 2), (1, 2), [1, 2]],
    *[OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), defaultdict(int, a=1), {"a": 1}],
    *[Mutable(1), Mutable(True), Mutable([1]), Mutable({"a": 1}), Frozen(1), Frozen(2), Frozen([1]), Frozen([True])],
    *[decimal.Decimal(1), datetime.date(2009, 1, 1), datetime.datetime(2009, 1, 1), uuid.UUID(int=1)],
    *[range(1), range(2), slice(1), print, key, ..., NotImplemented, str.upper, "".upper],
]


def test_what_differs_in_value_or_type_at_any_depth_has_a_key_of_its_own() -> None:
    keys = [key(ordinary, value) for value in DIFFERENT]
    for number, one in enumerate(keys):
        assert keys.index(one) == number, f"{DIFFERENT[number]!r} has the key of {DIFFERENT[keys.index(one)]!r}"
        assert len({one, *keys}) == len(keys)


def test_equal_values_made_anew_have_one_key() -> None:
    made = [
        lambda: {"a": [1, {2, 3}], "b": ({"c": bytearray(b"x")},)},
        lambda: [Mutable(1), Frozen((1, 2)), Point(1, [2])],
        lambda: datetime.datetime(2009, 5, 1),
        lambda: decimal.Decimal("1.5"),
        lambda: "".join(["a", "b"]),
    ]
    for make in made:
        assert key(ordinary, make()) == key(ordinary, make())
    assert key(ordinary, {"a": 1, "b": 2}) == key(ordinary, {"b": 2, "a": 1})


def test_the_key_stays_when_the_list_changes() -> None:
    numbers = [1]
    first = key(ordinary, numbers)
    numbers.append(2)
    assert first == key(ordinary, [1])
    assert first != key(ordinary, numbers)


def test_a_default_that_is_a_list_counts_as_it_is_at_the_call() -> None:
    def gathers(found: list[int] = []) -> None: ...  # noqa: B006

    first = key(gathers)
    gathers.__defaults__[0].append(1)  # type: ignore[index]
    assert key(gathers) != first
    assert key(gathers) == key(gathers, [1])


def test_a_hit_s_quick_look_finds_the_right_call_or_none() -> None:
    alike = [((int, 1),), (list, ((int, 1),)), (int, 1), (1, int)]  # what stands in keys for other values, or nearly
    keys = {key(ordinary, value): value for value in DIFFERENT}
    for value in [*DIFFERENT, *alike]:
        try:
            found = keys.get(quick_key((value, 2)), value)
        except TypeError:  # not to be hashed, so not found
            continue
        assert found is value


def test_an_object_of_its_own_equality_is_not_kept_alive() -> None:
    thing = Plain()
    gone: list[Any] = []
    found = key_of((thing, 1), gone.append)
    assert found == key_of((thing, 1))
    assert found != key_of((Plain(), 1))
    assert not is_dead(found)
    reference = weakref.ref(thing)
    del thing
    assert reference() is None
    assert is_dead(found)
    assert len(gone) == 1
    assert found != key_of((Plain(), 1))


def test_a_weak_reference_is_not_what_it_refers_to() -> None:
    thing = Plain()
    assert key(ordinary, weakref.ref(thing)) != key(ordinary, thing)


def test_an_object_without_room_for_a_weak_reference_is_itself() -> None:
    one, other = Tight(), Tight()
    assert key(ordinary, one) == key(ordinary, one)
    assert key(ordinary, one) != key(ordinary, other)


def test_what_can_be_neither_hashed_nor_pickled_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"type Never can be neither hashed nor pickled \(not to be pickled\)"):
        key(ordinary, [Never()])


def test_the_wrapper_s_own_parameters_count() -> None:
    def with_connection(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function("connection", *args)

        return wrapper

    @with_connection
    def query(connection: str, table: str) -> None: ...

    assert key(query, "people") != key(query, "places")


def test_a_method_s_first_argument_may_be_missing_or_among_several() -> None:
    def method(*args: Any) -> None: ...

    signature = Signature(method, method=True)
    assert signature.values((), {}) == ()
    assert signature.values((1, 2), {}) == (1, 2)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(-2, 2)
    | st.text("ab", max_size=2)
    | st.binary(max_size=1),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("ab", max_size=1) | st.booleans() | st.integers(0, 1), inner, max_size=2)
        | st.frozensets(st.integers(0, 1) | st.booleans(), max_size=2)
    ),
    max_leaves=6,
)


def typed(value: Any) -> Any:
    """A value as a text that tells each type and value; what keys must tell apart, by another way."""
    name = type(value).__name__
    if isinstance(value, list | tuple):
        return f"{name}({','.join(map(typed, value))})"
    if isinstance(value, dict):
        return f"{name}({','.join(sorted(f'{typed(k)}:{typed(v)}' for k, v in value.items()))})"
    if isinstance(value, frozenset):
        return f"{name}({','.join(sorted(map(typed, value)))})"
    return f"{name}({value + 0.0!r})" if isinstance(value, float) else f"{name}({value!r})"


@pytest.mark.heavy
@settings(deadline=None)
@given(VALUES, VALUES)
def test_keys_are_equal_where_types_and_values_are(one: Any, other: Any) -> None:
    assert (key(ordinary, one) == key(ordinary, other)) == (typed(one) == typed(other))
    if key(ordinary, one) == key(ordinary, other):
        assert hash(key(ordinary, one)) == hash(key(ordinary, other))


# What is no part of a key


def query(request: Any, item: Any, *, dbsession: Any, currency: Any = "EUR") -> None: ...


def gathering(item: Any, *rest: Any, **more: Any) -> None: ...


def test_ignored_parameters_are_no_part_of_the_key() -> None:
    signature = Signature(query, ignore=("request", "dbsession"))
    ways = [
        signature.values((Plain(), 1), {"dbsession": Plain()}),
        signature.values((Plain(), 1), {"dbsession": Plain()}),
        signature.values((), {"item": 1, "request": Plain(), "dbsession": None, "currency": "EUR"}),
    ]
    assert {key_of(values) for values in ways} == {key_of((1, "EUR"))}
    with pytest.raises(TypeError, match=r"query\(\): missing a required .*argument: 'dbsession'"):
        signature.values((Plain(), 1), {})


def test_what_is_ignored_may_be_missing_where_a_value_is_forgotten() -> None:
    signature = Signature(query, ignore=("request", "dbsession"))
    kept = signature.values((Plain(), 1), {"dbsession": Plain(), "currency": "USD"})
    assert signature.values_to_forget((), {"item": 1, "currency": "USD"}) == kept
    assert signature.values_to_forget((None, 1), {"currency": "USD"}) == kept
    for args, kwargs in (((), {}), ((1,), {}), ((), {"item": 1, "tax": 2})):
        with pytest.raises(TypeError, match=r"^query\(\): "):
            signature.values_to_forget(args, kwargs)
    with pytest.raises(TypeError, match="missing a required argument"):
        Signature(query).values_to_forget((), {"item": 1})


def test_variable_parameters_are_ignored_by_their_name_or_by_a_keyword() -> None:
    by_keyword = Signature(gathering, ignore=["dbsession"])
    assert by_keyword.values((1, 2), {"dbsession": 3, "a": 4}) == by_keyword.values((1, 2), {"a": 4})
    assert Signature(gathering, ignore=["rest"]).values((1, 2), {}) == Signature(gathering).values((1,), {})
    assert Signature(gathering, ignore=["more"]).values((1,), {"a": 2}) == (1,)


def test_the_object_of_a_method_may_be_ignored() -> None:
    signature = Signature(query, method=True, ignore="request")
    assert signature.values((Plain(), 1), {"dbsession": 2}) == (1, 2, "EUR")


def test_what_is_ignored_must_be_a_parameter() -> None:
    with pytest.raises(
        ValueError, match=r"ignore=\['dbsesion'\]: query\(\) has no such parameters; it has request, item"
    ):
        Signature(query, ignore=("request", "dbsesion"))


# Large arguments


def size(found: Any) -> int:
    """Roughly the bytes that a key holds."""
    if isinstance(found, tuple | frozenset):
        return sum(map(size, found))
    return 0 if isinstance(found, type) else sys.getsizeof(found)


LARGE: dict[str, Callable[[int], Any]] = {
    "list": lambda last: [*range(99_999), last],
    "texts": lambda last: [f"text {number}" for number in range(9_999)] + [str(last)],
    "floats": lambda last: [number / 2 for number in range(9_999)] + [float(last)],
    "mixed": lambda last: [None, "a", 1.5, b"b"] * 2_500 + [last],
    "tuple": lambda last: (*range(9_999), last),
    "set": lambda last: {*range(9_999), -last},
    "frozenset": lambda last: frozenset([*map(str, range(9_999)), f"last {last}"]),
    "dict": lambda last: {**{str(number): number for number in range(9_999)}, "last": last},
    "nested": lambda last: [[[last, number]] * 20 for number in range(500)],
    "small in many": lambda last: {number: [str(number), last] for number in range(900)},
    "text": lambda last: "a" * 100_000 + str(last),
    "bytes": lambda last: b"a" * 100_000 + str(last).encode(),
    "bytearray": lambda last: bytearray(b"a" * 100_000 + str(last).encode()),
    "dataclass": lambda last: Mutable([*range(9_999), last]),
    "frozen dataclass": lambda last: Frozen((*range(9_999), last)),
    "text in a dataclass": lambda last: Mutable({"a": "a" * 100_000 + str(last)}),
    "deque": lambda last: deque([*range(9_999), last]),
}


@pytest.mark.parametrize("what", LARGE)
def test_of_a_large_argument_the_key_has_a_digest(what: str) -> None:
    make = LARGE[what]
    found = key(ordinary, make(1))
    assert size(found) < 5_000
    assert found == key(ordinary, make(1))
    assert found != key(ordinary, make(2))
    assert type(make(1)) is type(make(2))


def test_many_arguments_are_one_digest_and_no_call_with_one() -> None:
    many = tuple(range(9_999))
    found = key(gathering, *many)
    assert size(found) < 1_000
    assert found == key(gathering, *many)
    assert len({found, key(gathering, *many, 1), key(gathering, many), key(gathering, list(many))}) == 4


def test_a_large_list_of_what_has_no_digest_counts_by_what_is_in_it() -> None:
    things = [Plain() for _ in range(2_000)]
    assert key(ordinary, things) == key(ordinary, list(things))
    assert key(ordinary, things) != key(ordinary, things[:-1])


def test_small_and_large_are_told_apart() -> None:
    from pushdemo.cache.keys import LARGE as LIMIT

    keys = [key(ordinary, [1] * number) for number in (LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2)]
    assert len(set(keys)) == 4


# Equal objects that are not identical


def twice() -> list[str]:
    """Two equal texts that are two objects."""
    return ["".join(["d", "e"]), "".join(["d", "e"])]


class Comparing:
    """Compares by its attributes, and cannot be hashed."""

    def __init__(self, one: Any, two: Any) -> None:
        self.one, self.two = one, two

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparing) and vars(other) == vars(self)


class Items(list[Any]):
    """A list that compares in a way of its own."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Items) and list(other) == list(self)


@dataclass
class Noted:
    x: Any
    note: str = field(default="", compare=False)


def same(make: Callable[..., Any]) -> tuple[Any, Any]:
    """Equal values: of one text twice, and of two texts."""
    one = twice()[0]
    return make(one, one), make(*twice())


@pytest.mark.parametrize(
    "make",
    [
        lambda one, two: Mutable([one, two]),
        lambda one, two: Mutable(Mutable((one, two))),
        lambda one, two: [Mutable(one), Frozen(two)],
        Comparing,
        lambda one, two: OrderedDict(a=one, b=two),
        lambda one, two: {"a": Comparing(one, two)},
        lambda one, two: slice(one, two),
        lambda one, two: deque([one, two]),
        lambda one, two: UserDict(a=one, b=two),
        lambda one, two: Counter([one, two]),
    ],
)
def test_equal_objects_of_equal_parts_have_one_key(make: Callable[..., Any]) -> None:
    one, other = same(make)
    assert one == other
    assert key(ordinary, one) == key(ordinary, other)


def test_items_of_a_list_or_a_dict_that_compares_in_its_own_way_count() -> None:
    values = [Items([1]), Items([2]), Items([1, 2]), OrderedDict(a=1), OrderedDict(a=2), OrderedDict(a=1, b=1)]
    assert len({key(ordinary, value) for value in values}) == len(values)
    assert key(ordinary, Items([1])) == key(ordinary, Items([1]))


def test_fields_that_do_not_compare_do_not_count() -> None:
    assert Noted(1, "a") == Noted(1, "b")
    assert key(ordinary, Noted(1, "a")) == key(ordinary, Noted(1, "b")) != key(ordinary, Noted(2, "a"))


def test_what_contains_itself_has_a_key() -> None:
    loops: list[list[Any]] = [[], []]
    for loop in loops:
        loop.append(loop)
    assert key(ordinary, loops[0]) == key(ordinary, loops[1])
    loops[1].append(1)
    assert key(ordinary, loops[0]) != key(ordinary, loops[1])


def test_keys_leave_no_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        thing = Frozen(1)
        reference = weakref.ref(thing)
        found = key(several, thing, [thing], x={"a": thing})
        del thing, found
        assert reference() is None
    finally:
        gc.enable()
