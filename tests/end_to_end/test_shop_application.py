"""The application of the cookiecutter's shape that other tests use is in order itself, by WebTest and by our server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from webtest import TestApp

from tests.fixtureapps.shop import make_app
from tests.support import port_of, serving


@pytest.fixture
def app(tmp_path: Path) -> TestApp:
    # The toolbar shows itself to a client with an address only.
    return TestApp(make_app(tmp_path / "shop.sqlite"), extra_environ={"REMOTE_ADDR": "127.0.0.1"})


def test_a_page_bears_the_toolbar_and_what_the_database_has(app: TestApp) -> None:
    page = app.get("/").text
    assert "bread, butter, jam" in page
    assert "pDebug" in page


def test_a_change_is_committed_and_a_failure_rolls_it_back(app: TestApp) -> None:
    assert app.post("/items/jam?price=6").json == {"name": "jam", "price": 6, "version": 2}
    app.post("/items/jam?price=9&fail=1", status=500)
    assert app.get("/items/jam").json == {"name": "jam", "price": 6, "version": 2}


def test_a_session_is_its_visitor_s(app: TestApp) -> None:
    app.get("/login?user=alice")
    assert app.get("/whoami").json == {"user": "alice"}
    assert TestApp(app.app).get("/whoami").json == {"user": None}


def test_a_server_serves_it(tmp_path: Path) -> None:
    with (
        serving(make_app(tmp_path / "shop.sqlite")) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{port_of(server)}/items/bread") as response,
    ):
        assert json.load(response)["price"] == 3
