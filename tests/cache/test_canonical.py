"""Which values have bytes that are the same in every process, and which values have the same ones."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address, ip_network
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from pushdemo import memorize
from pushdemo.cache.canonical import NotCanonicalError, canonical, digest
from pushdemo.cache.keys import Instance, key_of
from tests.support import ROOT

Point = namedtuple("Point", "x y")
BERLIN = ZoneInfo("Europe/Berlin")


class Colour(enum.Enum):
    RED = "r"
    CRIMSON = "r"
    BLUE = "b"


class Weekday(enum.IntEnum):
    MONDAY = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Query:
    source: Any
    target: Any
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Frozen:
    source: Any


class Shop:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    @staticmethod
    def static() -> None: ...

    @memorize
    def memorized(self) -> None: ...


class Label(str):
    """Compares as text does."""


class Plain:
    """Equals nothing but itself."""


class CaseBlind:
    """Equals what looks different."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaseBlind) and other.text.lower() == self.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())


def fresh(text: str) -> str:
    """An equal text that is another object."""
    return "".join(list(text))


# Each a value with bytes of its own.
DIFFERENT: list[Any] = [
    *[None, True, False, 0, 1, 1.0, 1 + 0j, "1", b"1", "", b"", 10**5000, float("inf")],
    *[(), [], set(), frozenset(), {}, deque(), bytearray(), (None,), [None], [1], [True], [1.0], ["1"], (1,), {1}],
    *[[[1], [2]], [[1, 2]], [[1], 2], {"a": 1}, {"a": True}, {"b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {1: {2: 3}}],
    *[
        defaultdict(int, a=1),
        OrderedDict(a=1, b=2),
        OrderedDict(b=2, a=1),
        Point(1, 2),
        Label("1"),
        range(3),
        range(4),
        range(0, 6, 2),
        range(0, 9, 3),
    ],
    *[Colour.RED, Colour.BLUE, Weekday.MONDAY, Access.READ, Access.READ | Access.WRITE, [Colour.RED]],
    *[Query("a", "b"), Query("b", "a"), Query(1, 2), Query(True, 2), Frozen("a"), Frozen(["a"])],
    *[int, bool, Shop, Colour, len, print, str.upper, fresh, json.dumps, json, threading.Thread, type(None)],
    *[Shop.method, Shop.of_class, Shop.static, Shop.memorized, ..., NotImplemented, UTC, BERLIN, ZoneInfo("UTC")],
    *[timezone(timedelta(hours=1)), date(2009, 5, 1), datetime(2009, 5, 1), datetime(2009, 5, 1, tzinfo=UTC)],
    *[time(12), time(12, tzinfo=UTC), timedelta(days=1), Decimal(1), Decimal("1.5"), Decimal("NaN"), Fraction(1, 2)],
    *[UUID(int=1), ip_address("::1"), ip_address("127.0.0.1"), ip_network("10.0.0.0/8"), PurePosixPath("a/b")],
]


def test_what_differs_has_other_bytes() -> None:
    found: dict[bytes, Any] = {}
    for value in DIFFERENT:
        data = canonical(value)
        assert data not in found, f"{value!r} has the bytes of {found[data]!r}"
        found[data] = value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.0, -0.0),
        ([0.0], [-0.0]),
        (0j, -0j),
        ([fresh("de"), fresh("de")], [fresh("de")] * 2),
        (Query(fresh("de"), fresh("de")), Query(*[fresh("de")] * 2)),
        (Query(1, 2, "one note"), Query(1, 2, "another")),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        ({3, 1, 2}, {2, 3, 1}),
        ({"a", "b", None}, {None, "b", "a"}),
        (Decimal("1.50"), Decimal("1.5")),
        (Decimal("100"), Decimal("1E+2")),
        (Decimal("-0"), Decimal("0.00")),
        (datetime(2026, 7, 1, 12, tzinfo=UTC), datetime(2026, 7, 1, 14, tzinfo=BERLIN)),
        (datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 12, fold=1)),
        (time(12, tzinfo=UTC), time(13, tzinfo=timezone(timedelta(hours=1)))),
        (timezone.utc, timezone(timedelta(0), "Greenwich")),  # noqa: UP017
        (Colour.RED, Colour.CRIMSON),
        (ZoneInfo("Europe/Berlin"), BERLIN),
        (range(0, 3, 2), range(0, 4, 2)),
        (range(0), range(1, 1)),
        (range(0, 1), range(0, 1, 5)),
        (deque([1], maxlen=3), deque([1])),
        (Fraction(2, 4), Fraction(1, 2)),
    ],
)
def test_what_is_equal_has_the_same_bytes_and_one_key(one: Any, other: Any) -> None:
    assert one == other
    assert canonical(one) == canonical(other)
    assert digest(key_of((one,))) == digest(key_of((other,)))
    assert key_of((one,)) == key_of((other,))


MADE = """
class Made:
    def __init__(self, text):
        self.text = text
    def __eq__(self, other):
        return isinstance(other, Made)
    def __hash__(self):
        return 1
"""


def made() -> Any:
    """An object of a class that was made from a text, as `dataclass` makes its methods, and compares in its own way."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(MADE, names)
    return names["Made"]("a")


def local() -> Any:
    class Local:
        pass

    return Local


@pytest.mark.parametrize(
    "make",
    [
        Plain,
        lambda: Shop().method,
        lambda: CaseBlind("a"),
        made,
        local,
        lambda: local()(),
        lambda: lambda: None,
        lambda: [Plain()],
        lambda: {"a": CaseBlind("a")},
        lambda: Frozen(Plain()),
        lambda: "".upper,
        lambda: threading.Lock(),
        lambda: enum.Enum("Colour", "RED").RED,  # type: ignore[attr-defined]
        lambda: datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_what_other_processes_cannot_know_has_none(make: Callable[[], Any]) -> None:
    with pytest.raises(NotCanonicalError):
        digest(make())


def test_what_contains_itself_has_none() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotCanonicalError, match="list"):
        digest(loop)


def test_an_object_that_is_gone_is_no_longer_known() -> None:
    thing = Plain()
    reference = Instance(thing)
    del thing
    assert reference() is None
    with pytest.raises(NotCanonicalError):
        digest((reference, "and what else was in the key", Plain()))


def test_an_object_that_is_gone_is_not_taken_for_none() -> None:
    thing = Plain()
    reference = Instance(thing)
    del thing
    for key in (reference, (reference, Plain)):
        with pytest.raises(NotCanonicalError, match="Instance"):
            canonical(key)


SCRIPT = """
from tests.cache.test_canonical import DIFFERENT, digest, key_of
print(*[digest(key_of((value,))).hex() for value in DIFFERENT])
"""


def test_the_bytes_are_the_same_in_another_process() -> None:
    here = [digest(key_of((value,))).hex() for value in DIFFERENT]
    assert len(set(here)) == len(DIFFERENT)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},  # here it is random, or another
    )
    assert run.stdout.split() == here
