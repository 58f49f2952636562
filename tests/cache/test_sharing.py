"""What is given to more than one caller: which values are refused, and which copies of an exception are made."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import mmap
import os
import re
import sqlite3
import tempfile
import traceback
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from pyramid.httpexceptions import HTTPForbidden, HTTPFound, HTTPServiceUnavailable
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from pyramid.testing import DummyRequest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from pushdemo import memorize
from pushdemo.cache import Caches
from pushdemo.cache.sharing import copy_of, template
from tests.cache.support import Asked, Gate, together
from tests.support import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def _caches() -> Iterator[None]:
    with Caches(wait=PATIENCE).active():
        yield


# Values that serve one caller


Pair = namedtuple("Pair", "one two")


class OwnResponse:
    """What a response has, in attributes of the object."""

    def __init__(self) -> None:
        self.status, self.headerlist, self.app_iter = "200 OK", [], [b""]


class Delegating:
    """A response behind another object."""

    def __getattr__(self, name: str) -> Any:
        return getattr(Response(), name)


@pytest.mark.parametrize(
    "make",
    [
        Response,
        HTTPFound,
        HTTPForbidden,
        OwnResponse,
        Delegating,
        lambda: SimpleNamespace(status="200 OK", headerlist=[], app_iter=[]),
        lambda: [1, Response()],
        lambda: (Response(), 200),
        lambda: {"response": Response()},
    ],
)
@pytest.mark.parametrize("duration", [0, 60])
def test_a_response_is_refused_with_what_to_memorize_instead(make: Callable[[], Any], duration: int) -> None:
    function = memorize(duration)(make)
    with pytest.raises(
        TypeError, match=r"a response: it belongs to one request.*Memorize a function that returns what"
    ):
        function()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Request.blank("/"),
        DummyRequest,
        lambda: session(),
        lambda: [Request.blank("/")],
        lambda: {"session": session()},
        lambda: Pair(1, Request.blank("/")),
    ],
)
def test_a_request_and_a_visitor_s_session_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="which belongs to one request: return what is the same for all visitors"):
        memorize(make)()


def opened(connection: sqlite3.Connection) -> sqlite3.Cursor:
    return connection.execute("SELECT 1")


class OwnCursor:
    """A database cursor without `__next__`."""

    def fetchone(self) -> None: ...


class OwnFile:
    """A file of somebody's own making."""

    def read(self) -> None: ...

    def seek(self) -> None: ...

    def close(self) -> None: ...


async def coroutine() -> None: ...


READ_ONCE: dict[str, Callable[[], Any]] = {
    "generator": lambda: (number for number in range(3)),
    "iterator": lambda: iter([1, 2]),
    "map": lambda: map(str, [1, 2]),
    "filter": lambda: filter(None, [1, 2]),
    "zip": lambda: zip([1], [2], strict=True),
    "enumerate": lambda: enumerate("ab"),
    "reversed": lambda: reversed([1, 2]),
    "itertools": lambda: itertools.chain([1], [2]),
    "matches": lambda: re.finditer("a", "aa"),
    "csv": lambda: csv.reader(["a,b"]),
    "DictReader": lambda: csv.DictReader(["a,b", "1,2"]),
    "BytesIO": lambda: io.BytesIO(b"a"),
    "StringIO": lambda: io.StringIO("a"),
    "cursor of one's own": OwnCursor,
    "file of one's own": OwnFile,
    "context manager": lambda: contextlib.contextmanager(lambda: (yield))(),  # type: ignore[misc]
    "in a list": lambda: [map(str, [1, 2])],
    "in a tuple": lambda: (iter([1, 2]), 2),
    "in a dict": lambda: {"rows": iter([1, 2])},
    "in a named tuple": lambda: Pair(1, iter([1, 2])),
    "in a dict of one's own": lambda: OrderedDict(rows=iter([1, 2])),
}


@pytest.mark.parametrize("what", READ_ONCE)
def test_what_is_read_once_is_refused_with_the_remedy(what: str) -> None:
    function = memorize(60)(READ_ONCE[what])
    for _ in range(2):
        with pytest.raises(TypeError, match=r"which serves one caller: use a list, such as list\(\.\.\.\) of it"):
            function()


def test_open_files_and_awaitables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"data")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        values = [
            file,
            stack.enter_context(path.open()),
            stack.enter_context(path.open("rb", buffering=0)),
            stack.enter_context(tempfile.NamedTemporaryFile()),
            stack.enter_context(tempfile.SpooledTemporaryFile()),
            stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)),
            stack.enter_context(os.scandir(tmp_path)),
        ]
        awaitable = coroutine()
        stack.callback(awaitable.close)
        values.append(awaitable)
        for value in values:
            with pytest.raises(TypeError, match=f"returned a {type(value).__name__}, which serves one caller"):
                memorize(lambda value=value: value)()

    async def main() -> None:
        task = asyncio.ensure_future(asyncio.sleep(0))
        with pytest.raises(TypeError, match="serves one caller"):
            memorize(lambda: task)()
        await task

    asyncio.run(main())


def test_results_of_databases_are_refused_and_their_rows_are_kept() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(TypeError, match="returned a Cursor, which serves one caller"):
            memorize(lambda: opened(connection))()
        assert memorize(lambda: opened(connection).fetchall())() == [(1,)]
        kept = memorize(lambda: connection)  # merely can be closed
        assert kept() is kept()
    engine = create_engine("sqlite://")
    with engine.connect() as database:
        for method in ("scalars", "mappings", "freeze"):
            result = database.execute(text("SELECT 1"))
            function = memorize(lambda result=result, method=method: getattr(result, method)())
            if method == "freeze":  # made to be read again
                assert function() is function()
            else:
                with pytest.raises(TypeError, match="serves one caller"):
                    function()
        with pytest.raises(TypeError, match="serves one caller"):
            memorize(lambda: database.execute(text("SELECT 1")))()
        assert memorize(lambda: database.execute(text("SELECT 1")).all())() == [(1,)]
    engine.dispose()


class Picture:
    """What Pillow's images have of a file: it can be closed, and there is a place in it."""

    def close(self) -> None: ...

    def seek(self, frame: int) -> None: ...

    def tell(self) -> int:
        return 0


class Lazy:
    """An object of an object-relational mapper, whose attributes cannot be read any more."""

    @property
    def status(self) -> None:
        raise RuntimeError("not bound to a session")

    app_iter = headerlist = read = close = status


@pytest.mark.parametrize(
    "make", [Picture, Lazy, Mock, MagicMock, dict, object, range, lambda: {1: 2}.keys(), lambda: Picture]
)
def test_other_values_are_kept(make: Callable[..., Any]) -> None:
    function = memorize(60)(lambda: make() if make is not range else range(3))
    assert function() is function()


def test_an_archive_is_kept(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        function = memorize(lambda: archive)
        assert function() is archive


# Exceptions


class Plain(Exception):
    pass


class Formatting(Exception):
    """Its `__init__` makes another text of its argument: to call it again would make yet another."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class TwoArguments(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class Detailed(Exception):
    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__("details")
        self.details = details


class OwnError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such file", path)
        self.path = path


def integrity_error() -> Exception:
    return IntegrityError("INSERT", {"id": 1}, sqlite3.IntegrityError("UNIQUE"))


def noted(error: Exception) -> Exception:
    error.add_note("as it was")
    return error


ERRORS: list[Exception] = [
    ValueError("no", 1),
    KeyError("a"),
    Plain(),
    Plain([1], {"a": 2}),
    Formatting(5),
    TwoArguments(1, two=2),
    Slotted(5),
    Detailed({"a": [1]}),
    OSError(2, "no such file", "a"),
    ConnectionError("no rate"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    StopIteration(5),
    ImportError("no", name="a", path="b"),
    ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
    integrity_error(),
    noted(Plain("noted")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_copy_is_of_the_same_type_and_says_the_same(error: Exception) -> None:
    made = copy_of(error)
    assert made is not None
    assert made is not error
    assert type(made) is type(error)
    assert str(made) == str(error)
    assert repr(made.args) == repr(error.args)
    assert vars(made).keys() == vars(error).keys()
    for name in ("code", "details", "errno", "filename", "object", "value", "name", "path", "exceptions", "orig"):
        if hasattr(error, name):
            assert repr(getattr(made, name)) == repr(getattr(error, name))
            if isinstance(getattr(error, name), dict):
                assert getattr(made, name) is not getattr(error, name)
    assert (made.__traceback__, made.__context__, made.__cause__) == (None, None, None)


class Unbound(Exception):
    """With something that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = (number for number in range(3))


class Growing(OSError):
    """A copy of it says more than it does."""

    def __init__(self, text: str) -> None:
        super().__init__(text + "!")


class Forgetful(OSError):
    """A copy of it lacks an attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __reduce__(self) -> Any:
        return type(self).__new__, (type(self), *self.args)


class Turning(OSError):
    """A copy of it is of another type."""

    def __reduce__(self) -> Any:
        return OSError, self.args


def with_attribute(value: Any) -> Exception:
    error = Plain("with an attribute")
    error.attribute = value  # type: ignore[attr-defined]
    return error


def session() -> Any:
    return SignedCookieSessionFactory("only for tests")(Request.blank("/"))


@pytest.mark.parametrize(
    "error",
    [
        HTTPServiceUnavailable("down"),
        HTTPFound("/"),
        Unbound(),
        OwnError("a"),
        Growing("a"),
        Forgetful("a"),
        Turning("a"),
        with_attribute(Response()),
        with_attribute([{"of": HTTPFound("/")}]),
        with_attribute(Request.blank("/")),
        with_attribute(session()),
        with_attribute(DummyRequest()),
        Plain(Response()),
        ExceptionGroup("several", [HTTPFound("/")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_of_what_cannot_be_copied_or_is_of_one_request_there_is_no_copy(error: Exception) -> None:
    assert template(error) is None


# Those who wait


def crowd(function: Any, number: int, gate: Gate) -> list[Asked]:
    """So many callers of a function that stops at the gate, all but one of which have waited for the one."""
    asked = together(number, function)
    wait_until(lambda: function.info().waits == number - 1, what="those who wait")
    gate.open()
    return asked


def test_an_exception_that_is_a_response_is_not_given_to_those_who_wait() -> None:
    gate = Gate()

    @memorize(60)
    def stock() -> int:
        gate.stop()
        raise HTTPServiceUnavailable("down")

    errors = [each.error() for each in crowd(stock, 5, gate)]
    assert len({id(error) for error in errors}) == 5
    assert all(type(error) is HTTPServiceUnavailable for error in errors)
    assert stock.info().misses == 5


def test_who_cannot_have_a_copy_computes_for_himself() -> None:
    gate, calls = Gate(), []

    @memorize(60)
    def stock() -> int:
        calls.append(1)
        if len(calls) == 1:
            gate.stop()
            raise Unbound
        return 7

    asked = crowd(stock, 5, gate)
    assert sorted(str(type(each.error()).__name__) for each in asked) == ["NoneType"] * 4 + ["Unbound"]
    assert len(calls) == 5


def test_what_one_caller_writes_into_an_exception_no_other_reads() -> None:
    gate = Gate()

    @memorize(60)
    def stock() -> int:
        gate.stop()
        raise Detailed({"retry": [1]})

    def ask() -> str:
        try:
            raise KeyError("card 4711")
        except KeyError:
            try:
                stock()
            except Detailed as error:
                error.add_note("seen by one")
                error.details["retry"].append(2)
                return "".join(traceback.format_exception(error)) + repr(error.details)
        return ""

    texts = [each.answer() for each in crowd(lambda_of(stock, ask), 6, gate)]
    assert [text.count("card 4711") for text in texts] == [2] * 6, texts
    assert all(text.count("seen by one") == 1 for text in texts)
    assert all("[1, 2]}" in text for text in texts)


def lambda_of(function: Any, ask: Callable[[], Any]) -> Any:
    """`ask`, which calls `function`, as `crowd` takes it."""

    class Asking:
        info = staticmethod(function.info)

        def __call__(self) -> Any:
            return ask()

    return Asking()


def test_a_copy_tells_the_cause_but_not_the_context_of_the_other_caller() -> None:
    try:
        try:
            raise KeyError("card 4711")
        except KeyError:
            try:
                raise OSError("the disk is full")
            except OSError as cause:
                raise Plain("not stored") from cause
    except Plain as error:
        made = template(error)
    assert made is not None
    text = "".join(traceback.format_exception(made))
    assert "OSError: the disk is full" in text
    assert "KeyError" not in text
    assert made.__cause__ is None


def test_except_clauses_and_attributes_go_on_working() -> None:
    gate = Gate()

    @memorize(60)
    def stock() -> int:
        gate.stop()
        raise Formatting(404)

    def ask() -> tuple[str, int]:
        try:
            stock()
        except Formatting as error:
            return str(error), error.code
        return "", 0

    assert [each.answer() for each in crowd(lambda_of(stock, ask), 4, gate)] == [("code 404", 404)] * 4
    assert stock.info().misses == 1
