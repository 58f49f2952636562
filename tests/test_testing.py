"""`pushdemo.testing`, and the code of docs/testing.md: an application's own tests, without a server or a sleep."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.router import Router
from webtest import TestApp

from pushdemo import json_yield, memorize, testing
from tests.fixtureapps.shop import make_app
from tests.fixtureapps.shop.models import Item
from tests.support import ROOT, wait_until

TRANSPORTS = ("jsonlines", "sse", "multipart", "longpoll")
CALLS: list[str] = []


@memorize(60, name="tests.testing.rate")
def rate() -> int:
    CALLS.append("rate")
    return len(CALLS)


def configure(config: Configurator) -> None:
    config.include("pushdemo")
    config.add_topic("news", content_type="application/json")
    config.add_topic("rooms.{room}", content_type="text/plain", lifetime=60)
    config.add_topic("ticks", lambda: "tick", interval=10, content_type="text/plain")
    config.add_route("say", "/say/{room}")
    config.add_view(say, route_name="say", renderer="json", request_method="POST")
    config.add_route("push", "/push/{topic}")
    config.add_view(lambda request: request.push(request.matchdict["topic"]), route_name="push")
    config.add_route("both", "/both")
    config.add_view(lambda request: request.push("news", "rooms.{room}", room="tea"), route_name="both")
    config.add_route("room", "/rooms/{room}")
    config.add_view(lambda request: request.push("rooms.{room}", room=request.matchdict["room"]), route_name="room")
    config.add_route("rate", "/rate")
    config.add_view(lambda request: rate(), route_name="rate", renderer="json")
    config.add_route("steps", "/steps")
    config.add_view(json_yield(steps), route_name="steps")


def say(request: Any) -> None:
    request.publish("rooms.{room}", request.text, room=request.matchdict["room"], event="said")


def steps(request: Any) -> Iterator[int]:
    while True:
        yield 1


@pytest.fixture
def app() -> Iterator[TestApp]:
    with Configurator(settings={"pyramid.includes": "pushdemo.testing"}) as config:
        configure(config)
        app = config.make_wsgi_app()
    yield TestApp(app)
    app.registry["pushdemo.topics"].close()
    app.registry["pushdemo.generators"].close()


def publish(app: TestApp, value: Any, topic: str = "news", **options: Any) -> str:
    return str(app.app.registry["pushdemo.topics"][topic].publish(value, **options).id)


def test_the_outbox_has_what_was_published_with_names_and_values(app: TestApp) -> None:
    app.post("/say/tea", "hello")
    app.post("/say/milk", "you")
    assert [(each.topic, each.values, each.value, each.event) for each in testing.outbox(app)] == [
        ("rooms.{room}", {"room": "tea"}, "hello", "said"),
        ("rooms.{room}", {"room": "milk"}, "you", "said"),
    ]
    testing.outbox(app).clear()
    assert testing.outbox(app.app) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_is_read_cut_resumed_and_reset(app: TestApp, transport: str) -> None:
    with testing.listen(app, "/push/news", transport=transport) as stream:
        stream.nothing()
        first = publish(app, {"n": 1})
        heard = stream.next()
        assert (heard.kind, heard.content, heard.id) == ("message", {"n": 1}, first)
        stream.nothing()
        stream.drop()
        publish(app, {"n": 2})
        publish(app, {"n": 3})
        assert [stream.next().content for _ in range(2)] == [{"n": 2}, {"n": 3}]
        stream.reset()
        assert stream.next().kind == "reset"
        assert stream.next().content == {"n": 3}, "the newest"
        stream.nothing()
        app.app.registry["pushdemo.topics"]["news"].end()
        assert stream.next().kind == "end"
    assert app.app.registry["pushdemo.topics"]["news"].clients == 0
    assert app.app.registry["pushdemo.clients"].all.taken == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_of_several_topics_goes_on_in_each_of_them(app: TestApp, transport: str) -> None:
    def both(value: str) -> None:
        publish(app, value)
        app.post("/say/tea", value)

    both("old")
    with testing.listen(app, "/both", transport=transport) as stream:
        assert [stream.next().content for _ in range(2)] == ["old", "old"]
        stream.drop()
        both("a")
        both("b")
        heard = [stream.next() for _ in range(4)]
        assert {each.kind for each in heard} == {"message"}
        assert sorted(each.content for each in heard) == ["a", "a", "b", "b"], (
            "at one time of a clock that stands still"
        )
        stream.nothing()


def test_a_message_that_does_not_come_fails_the_test_in_time(app: TestApp) -> None:
    with testing.listen(app, "/push/news") as stream:
        with pytest.raises(AssertionError, match=r"nothing came within 0\.01 s"):
            stream.next(timeout=0.01)
        publish(app, 1)
        with pytest.raises(AssertionError, match="has come"):
            stream.nothing()


def test_what_is_no_stream_fails_with_its_reason(app: TestApp) -> None:
    with pytest.raises(AssertionError, match="404"):
        testing.listen(app, "/nowhere")
    with pytest.raises(AssertionError, match="answers no stream"):
        testing.listen(app, "/rate")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_plain_request_for_a_stream_is_answered_with_what_there_is_and_a_note(app: TestApp, transport: str) -> None:
    publish(app, {"n": 1})
    response = app.get(f"/push/news?transport={transport}")
    assert '{"n":1}' in response.text
    if transport != "longpoll":  # whose answer is whole
        assert "pushdemo.testing.listen" in response.headers["X-Pushdemo-Testing"]
    last = publish(app, {"n": 2})
    app.get(f"/push/news?transport={transport}&last_event_id={last}")
    app.get("/steps?key=k&transport=sse")
    assert app.app.registry["pushdemo.clients"].all.taken == 0


def test_the_clock_moves_memorized_values_sources_and_lifetimes(app: TestApp) -> None:
    clock = testing.clock(app)
    CALLS.clear()
    assert [app.get("/rate").json for _ in range(2)] == [1, 1]
    clock.advance(61)
    assert app.get("/rate").json == 2
    with testing.listen(app, "/push/ticks") as stream:
        assert stream.next().content == "tick"
        stream.nothing()
        clock.advance(10)
        assert stream.next().content == "tick"
    app.post("/say/tea", "hello")
    topics = app.app.registry["pushdemo.topics"]
    assert "rooms.~tea" in topics
    clock.advance(61)
    wait_until(lambda: "rooms.~tea" not in topics)


def test_an_application_that_was_not_made_for_it_has_no_clock() -> None:
    with Configurator() as config:
        configure(config)
        config.include("pushdemo.testing")
        app = config.make_wsgi_app()
    with pytest.raises(KeyError, match=r"pyramid\.includes"):
        testing.clock(app)
    assert testing.outbox(app) == []
    app.registry["pushdemo.topics"].close()


def test_nothing_warns_of_threads(caplog: pytest.LogCaptureFixture, app: TestApp) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.get("/push/news?transport=sse")
        testing.listen(app, "/push/news").close()
    assert not [record for record in caplog.records if record.name == "pushdemo"]


# -- the cookiecutter's way: a transaction around the test, which is rolled back


def shop_views(config: Configurator) -> None:
    config.add_topic("items", content_type="application/json")
    config.add_route("add", "/add/{name}")
    config.add_view(add, route_name="add", renderer="json", request_method="POST")
    config.add_route("items", "/items-stream")
    config.add_view(lambda request: request.push("items"), route_name="items")


def add(request: Any) -> None:
    if "savepoint" in request.params:  # before the database takes part: SQLite has none by default
        savepoint = request.tm.savepoint()
        request.publish("items", "dropped with the savepoint")
        savepoint.rollback()
        request.dbsession.add(Item(name=request.matchdict["name"], price=1))
        request.dbsession.flush()
    request.publish("items", {"name": request.matchdict["name"]})
    if "fail" in request.params:
        raise RuntimeError("on purpose")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[TestApp, Router]]:
    app = make_app(tmp_path / "shop.sqlite", shop_views, toolbar=False, pyramid__includes="pushdemo.testing")
    tm = transaction.TransactionManager(explicit=True)
    tm.begin()
    tm.doom()
    yield TestApp(app, extra_environ={"tm.active": True, "tm.manager": tm, "REMOTE_ADDR": "127.0.0.1"}), app
    tm.abort()
    app.registry["pushdemo.topics"].close()


def test_messages_are_seen_although_the_test_rolls_its_transaction_back(shop: tuple[TestApp, Router]) -> None:
    web, app = shop
    with testing.listen(app, "/items-stream") as stream:
        web.post("/add/tea?savepoint=1")
        assert stream.next().content == {"name": "tea"}
        with pytest.raises(RuntimeError):
            web.post("/add/milk?fail=1")
        stream.nothing()
        web.post("/add/honey")
        assert stream.next().content == {"name": "honey"}
    assert [each.value for each in testing.outbox(app)] == [{"name": "tea"}, {"name": "honey"}]


def test_the_document_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    tests = [name for name in names if name.startswith("test_")]
    assert len(tests) >= 3
    for name in tests:
        made = names["app"].__wrapped__() if hasattr(names["app"], "__wrapped__") else names["make_app"]()
        app = next(made) if hasattr(made, "__next__") else made
        names[name](app)
