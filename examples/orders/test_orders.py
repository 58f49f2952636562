"""The orders, tested without a server: who may listen, what is published and when, where the page ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orders import main
from orders.models import Member, Order, User
from webtest import TestApp

from pushdemo import testing

PASSWORD = "a password for tests"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[TestApp]:
    url = f"sqlite:///{tmp_path}/orders.sqlite"
    settings = {"pyramid.includes": "pushdemo.testing", "session.secret": "for tests", "sqlalchemy.url": url}
    app = main({}, **settings)
    with app.registry["dbsession_factory"].begin() as session:
        session.add_all([User("cook", PASSWORD), User("waiter", PASSWORD)])
        session.flush()
        session.add_all([Member(room="kitchen", user_name="cook"), Member(room="bar", user_name="waiter")])
    yield TestApp(app)
    app.registry["pushdemo.topics"].close()


def token(app: TestApp) -> str:
    found = re.search(r'name="csrf_token" value="(\w+)"', app.get("/login").text)
    assert found
    return found[1]


def login(app: TestApp, name: str, password: str = PASSWORD, **options: Any) -> Any:
    return app.post("/login", {"name": name, "password": password, "csrf_token": token(app)}, **options)


def order(app: TestApp, item: str, **options: Any) -> Any:
    return app.post("/rooms/kitchen/orders", {"item": item, "csrf_token": token(app)}, **options)


def test_a_member_sees_orders_as_they_come_and_change(app: TestApp) -> None:
    login(app, "cook")
    with testing.listen(app, "/rooms/kitchen/stream") as stream:
        stream.nothing()
        order(app, "soup")
        assert stream.next().content == {"id": 1, "item": "soup", "state": "open", "version": 1}
        app.post("/rooms/kitchen/orders/1", {"csrf_token": token(app)})
        assert stream.next().content == {"id": 1, "item": "soup", "state": "done", "version": 2}


def test_only_members_may_read_and_write(app: TestApp) -> None:
    assert app.get("/rooms/kitchen").location.endswith("/login")
    login(app, "cook", "another", status=403)
    login(app, "waiter")
    for address in ("/rooms/kitchen", "/rooms/kitchen/orders", "/rooms/kitchen/stream"):
        app.get(address, status=403)
    order(app, "soup", status=403)
    assert testing.outbox(app) == []
    assert 'href="/rooms/bar"' in app.get("/").text


def test_a_post_without_a_token_is_refused(app: TestApp) -> None:
    login(app, "cook")
    app.post("/rooms/kitchen/orders", {"item": "soup"}, status=400)


def test_what_is_not_committed_is_not_told(app: TestApp, monkeypatch: pytest.MonkeyPatch) -> None:
    login(app, "cook")
    order(app, "", status=400)
    monkeypatch.setattr("orders.views.HTTPNoContent", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        order(app, "soup")
    assert testing.outbox(app) == []
    with app.app.registry["dbsession_factory"]() as session:
        assert session.query(Order).count() == 0


def test_the_stream_begins_where_the_page_ends(app: TestApp) -> None:
    login(app, "cook")
    order(app, "soup")
    page = app.get("/rooms/kitchen")
    assert "soup" in page.text
    found = re.search(r'data-last-event-id="([\w-]+)"', page.text)
    assert found
    assert found[1] == app.get("/rooms/kitchen/orders").json["last_event_id"]
    order(app, "bread")
    with testing.listen(app, f"/rooms/kitchen/stream?last_event_id={found[1]}") as stream:
        items = [stream.next().content["item"]]
        while items[-1] != "bread":
            items.append(stream.next().content["item"])
        stream.nothing()


def test_who_has_logged_out_may_not_come_back(app: TestApp) -> None:
    login(app, "cook")
    app.post("/logout", {"csrf_token": token(app)})
    app.get("/rooms/kitchen/stream", status=403)
