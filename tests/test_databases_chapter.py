"""docs/databases.md: its example runs, by polls and by streams, and its other blocks do what they are said to do."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy.pool import NullPool
from webtest import TestApp

from pushdemo import json_yield
from pushdemo.web.rendering import blank_request
from tests.support import ROOT

CHAPTER = (ROOT / "docs" / "databases.md").read_text(encoding="utf-8")
APP, VIEW, RENDERER = re.findall(r"^```python\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module app.py of the chapter."""
    path = tmp_path / "app.py"
    path.write_text(APP)
    spec = importlib.util.spec_from_file_location("app_of_the_chapter", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "app_of_the_chapter", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(example: Any, tmp_path: Path) -> Iterator[TestApp]:
    # No pool: or a connection would be left to the collector.
    app = TestApp(example.main({}, **{"sqlalchemy.url": f"sqlite:///{tmp_path}/db", "sqlalchemy.poolclass": NullPool}))
    yield app
    assert app.app.registry["pushdemo.generators"].close(20) == 0


@contextmanager
def database(site: TestApp) -> Iterator[Any]:
    """A database session of the test's own."""
    request = blank_request(site.app.registry)
    with request.tm:
        yield request.dbsession


def make(example: Any, site: TestApp, *amounts: int) -> None:
    with database(site) as session:
        session.add_all(example.Invoice(amount=amount) for amount in amounts)


def sent(example: Any, site: TestApp) -> list[bool]:
    with database(site) as session:
        return [is_sent for (is_sent,) in session.query(example.Invoice.sent).order_by(example.Invoice.id)]


def test_polls_see_each_invoice_committed(example: Any, site: TestApp) -> None:
    make(example, site, 5, 7, 9)
    for number in range(3):
        answer = site.get(f"/invoices/send?key=K&after={number}").json
        assert answer["content"] == {"invoice": number + 1, "of": 3}
        assert sent(example, site) == [True] * (number + 1) + [False] * (2 - number)
    assert site.get("/invoices/send?key=K&after=3").json["content"] == {"total": 21}


def test_a_stream_does_too(example: Any, site: TestApp) -> None:
    make(example, site, 5, 7)
    response = Request.blank("/invoices/send?key=S&transport=jsonlines").get_response(site.app)
    lines = [json.loads(line) for line in b"".join(response.app_iter).splitlines()]
    assert [line["content"] for line in lines if "id" in line] == [{"invoice": n, "of": 2} for n in (1, 2)]
    assert lines[-1]["content"] == {"total": 12}
    assert sent(example, site) == [True, True]


def test_the_exception_view_of_the_chapter_answers() -> None:
    class OutOfStockError(Exception):
        pass

    @json_yield
    def ordering(request: Request) -> Iterator[int]:
        yield 1
        raise OutOfStockError("no bread")

    names: dict[str, Any] = {"OutOfStock": OutOfStockError}
    exec(VIEW, names)
    with Configurator() as config:
        config.include("pushdemo")
        config.add_exception_view(names["out_of_stock"], context=OutOfStockError, renderer="json")
        config.add_route("ordering", "/ordering")
        config.add_view(ordering, route_name="ordering")
        app = TestApp(config.make_wsgi_app())
    app.get("/ordering?key=K&after=0")
    for _ in range(2):
        assert app.get("/ordering?key=K&after=1", status=409).json == {"state": "error", "reason": "no bread"}


def test_the_renderer_of_the_chapter_writes_decimals() -> None:
    @json_yield
    def prices(request: Request) -> Iterator[Decimal]:
        yield Decimal("1.10")

    names: dict[str, Any] = {}
    exec(RENDERER, names)
    with Configurator() as config:
        config.include("pushdemo")
        names["includeme"](config)
        config.add_route("prices", "/prices")
        config.add_view(prices, route_name="prices")
        app = TestApp(config.make_wsgi_app())
    assert app.get("/prices?key=K").json["content"] == "1.10"
