"""Topics of patterns in an application: directive and request methods, what clients may name, what is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router
from webtest import TestApp

from pushdemo import topic
from pushdemo.topics.catalog import Catalog
from tests.support import PATIENCE, Client, port_of, serving, wait_until

ODD = ["/", "%", "{}", "{user}", "\0", "\u202eevil", "..", "a,b:c", "~", "é\n", "x" * 200]


def price(symbol: str) -> str:
    return f"{symbol} is dear"


def declare(config: Configurator) -> None:
    """The topics of the application of these tests."""
    for name in ("news", "orders.all"):
        config.add_topic(name, content_type="text/plain")
    config.add_topic("orders.{user}", content_type="text/plain", history=3, lifetime=600)
    config.add_topic("price.{symbol}", source=price, interval=1000, content_type="text/plain")


def add_views(config: Configurator) -> None:
    def of(request: Request) -> str:
        return str(request.params.get("user", ""))

    views: dict[str, Callable[[Request], Any]] = {
        "orders": lambda request: request.push("orders.{user}", user=of(request)),
        "history": lambda request: request.push("orders.{user}", start="earliest", user=of(request)),
        "both": lambda request: request.push("news", "orders.{user}", user=of(request)),
        "nobody": lambda request: request.push("orders.{user}", user=None),
        "prices": lambda request: request.push(*[topic("price.{symbol}", symbol=symbol) for symbol in "ABC"]),
        "say": lambda request: published(request.publish("orders.{user}", "hello", user=of(request))),
        "end": lambda request: published(request.end_topic("orders.{user}", user=of(request))),
        "raw": lambda request: request.push(of(request)),
    }
    for name, view in views.items():
        config.add_route(name, f"/{name}")
        config.add_view(view, route_name=name)


def published(message: Any) -> Response:
    return Response(text=message.id if message else "None")


@contextmanager
def application(configure: Callable[[Configurator], None] = declare, **settings: Any) -> Iterator[Router]:
    ini = {"pushdemo.longpoll.timeout": "0.05"}
    ini |= {f"pushdemo.{key.replace('__', '.')}": str(value) for key, value in settings.items()}
    with Configurator(settings=ini) as config:
        config.include("pushdemo")
        configure(config)
        add_views(config)
        app = config.make_wsgi_app()
    try:
        yield app
    finally:
        app.registry["pushdemo.topics"].close()


@pytest.fixture
def app() -> Iterator[TestApp]:
    with application() as made:
        yield TestApp(made)


def catalog_of(app: TestApp) -> Catalog:
    catalog: Catalog = app.app.registry["pushdemo.topics"]
    return catalog


def poll(app: TestApp, path: str, user: str = "ann", **query: str) -> list[tuple[str | None, str]]:
    """The topics and contents of what one long poll brings."""
    answer = app.get(f"/{path}", {"transport": "longpoll", "user": user, **query})
    return [(message.get("topic"), message["content"]) for message in answer.json["messages"]]


# -- a topic for each user


def test_each_user_has_a_topic_of_their_own(app: TestApp) -> None:
    app.get("/say", {"user": "ann"})
    assert poll(app, "orders", "ann") == [(None, "hello")]
    assert poll(app, "orders", "bob") == []


@pytest.mark.parametrize("user", ODD)
def test_any_text_is_a_user_and_reaches_no_other_topic(app: TestApp, user: str) -> None:
    for name in ("news", "orders.all"):
        catalog_of(app)[name].publish("secret")
    app.get("/say", {"user": "ann"})
    assert poll(app, "orders", user) == []
    app.get("/say", {"user": user})
    assert poll(app, "orders", user) == [(None, "hello")]


def test_the_word_of_a_declared_name_is_a_value_as_any(app: TestApp) -> None:
    catalog_of(app)["orders.all"].publish("secret")
    assert poll(app, "orders", "all") == []


@pytest.mark.parametrize("user", ["", "x" * 10_000])
@pytest.mark.parametrize("path", ["orders", "say", "end", "both"])
def test_text_that_cannot_be_a_value_is_400_and_names_the_keyword(app: TestApp, path: str, user: str) -> None:
    refused = app.post(f"/{path}", {"user": user}, status=[400, 405])
    if path in ("say", "end"):
        assert "user must have 1 to 200 characters" in refused.text
    else:
        assert "user must have 1 to 200 characters" in app.get(f"/{path}", {"user": user}, status=400).text


def test_none_is_an_error_that_names_the_keyword(app: TestApp) -> None:
    with pytest.raises(ValueError, match="user must be text or a whole number, not None"):
        app.get("/nobody")


@pytest.mark.parametrize("text", ["orders.{user}", "orders.~ann", "orders.{x}", "price.{symbol}"])
def test_a_clients_text_in_the_place_of_a_pattern_reaches_no_value(app: TestApp, text: str) -> None:
    app.get("/say", {"user": "ann"})
    with pytest.raises((KeyError, TypeError), match=r"there are: news|lacks"):
        app.get("/raw", {"user": text})


# -- what a view and a client choose


def test_several_topics_take_the_values_that_are_theirs(app: TestApp) -> None:
    catalog_of(app)["news"].publish("for all")
    app.get("/say", {"user": "ann"})
    assert poll(app, "both") == [("news", "for all"), ("orders.~ann", "hello")]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("news", ["news"]), ("orders.{user}", ["orders.~ann"]), ("orders.~ann", ["orders.~ann"])],
)
def test_a_client_chooses_among_the_views_topics(app: TestApp, wanted: str, found: list[str]) -> None:
    catalog_of(app)["news"].publish("for all")
    app.get("/say", {"user": "ann"})
    contents = {"news": "for all", "orders.~ann": "hello"}
    assert [content for _, content in poll(app, "both", topic=wanted)] == [contents[name] for name in found]


@pytest.mark.parametrize("wanted", ["orders.~bob", "orders.all", "orders.{x}", "~ann", "ann", ""])
def test_a_client_cannot_name_a_topic_that_the_view_has_not(app: TestApp, wanted: str) -> None:
    app.get("/say", {"user": "bob"})
    refused = app.get("/both", {"user": "ann", "topic": wanted}, status=400)
    assert "must be one of news, orders.{user}" in refused.text


def test_thirty_references_of_one_pattern_are_one_connection(app: TestApp) -> None:
    found = poll(app, "prices")
    while len(found) < 3:  # each source is asked for its value when the first client comes
        found = poll(app, "prices", last_event_id="earliest")
    assert sorted(found) == [(f"price.~{symbol}", f"{symbol} is dear") for symbol in "ABC"]


def test_a_client_begins_at_the_start_of_the_history_where_the_view_says_so(app: TestApp) -> None:
    for number in range(5):
        catalog_of(app).publish(topic("orders.{user}", user="ann"), str(number))
    assert [content for _, content in poll(app, "orders")] == ["4"]
    assert [content for _, content in poll(app, "history")] == ["2", "3", "4"], "three are kept"
    there = catalog_of(app)["orders.~ann"]
    assert [content for _, content in poll(app, "history", last_event_id=f"{there.epoch}-4")] == ["4"]


def test_an_ended_topic_is_a_clean_end_for_who_comes_late(app: TestApp) -> None:
    app.get("/say", {"user": "ann"})
    app.get("/end", {"user": "ann"})
    last = catalog_of(app)["orders.~ann"].id_at(1)
    answer = app.get("/orders", {"transport": "longpoll", "user": "ann", "last_event_id": last})
    assert answer.json["state"] == "done"
    app.get("/orders", {"transport": "sse", "user": "ann", "last_event_id": last}, status=204)
    with pytest.raises(RuntimeError, match="has ended"):
        app.get("/say", {"user": "ann"})
    app.get("/end", {"user": "new"})
    assert app.get("/orders", {"transport": "longpoll", "user": "new"}).json["state"] == "done"


# -- what a request does not make


@pytest.mark.parametrize(
    ("method", "query", "status"),
    [
        ("HEAD", {"user": "ann"}, 200),
        ("OPTIONS", {"user": "ann"}, 204),
        ("GET", {"user": "ann", "transport": "pigeon"}, 400),
        ("DELETE", {"user": "ann"}, 405),
    ],
)
def test_a_request_that_is_no_client_makes_no_topic(
    app: TestApp, method: str, query: dict[str, str], status: int
) -> None:
    app.request(f"/orders?{urlencode(query)}", method=method, status=status)
    assert catalog_of(app).figures()[2].topics == 0


def test_a_client_without_a_place_makes_no_topic() -> None:
    with application(max_threads=1) as router:
        router.registry["pushdemo.clients"].threads.take()
        TestApp(router).get("/orders?user=ann&transport=longpoll", status=503)
        assert router.registry["pushdemo.topics"].figures()[2].topics == 0


def test_a_refused_client_gives_its_place_back() -> None:
    with application(topics__limit=1) as router, serving(router) as server:
        places = router.registry["pushdemo.clients"].all
        with Client(port_of(server)) as first:
            assert first.get("/orders?user=ann&transport=sse").head()[0] == 200
            with Client(port_of(server)) as second:
                status, headers, body = second.get("/orders?user=bob&transport=sse").response()
            assert status == 503
            assert 5 <= int(headers["retry-after"]) <= 15
            assert b"pushdemo.topics.limit" in body
            assert places.taken == 1


def test_a_message_without_room_for_its_topic_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with application(topics__limit=1) as router, caplog.at_level(logging.WARNING, "pushdemo"):
        app = TestApp(router)
        catalog_of(app).open(topic("orders.{user}", user="ann")).join()
        for _ in range(2):
            assert app.get("/say", {"user": "bob"}).text == "None"
        assert [figures.dropped for figures in catalog_of(app).figures()] == [0, 0, 2, 0]
    assert len([said for said in caplog.messages if "dropped" in said]) == 1
    assert "bob" not in caplog.text


# -- the directive


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "a.{x:\\d+}"}, ValueError, "placeholder"),
        ({"name": "a.{owner}"}, ValueError, "the name of an option"),
        ({"name": "a.{x}", "history": 0}, ValueError, "history = 0: must be above 0"),
        ({"name": "a.{x}", "history_bytes": -1}, ValueError, "history_bytes = -1: must be above 0"),
        ({"name": "a.{x}", "lifetime": 0}, ValueError, "lifetime = 0: must be above 0"),
        ({"name": "a.{x}", "content_type": "text"}, ValueError, "must be a media type"),
        ({"name": "a.{x}", "source": price}, TypeError, "its source is called with x"),
        ({"name": "a", "source": price}, TypeError, "its source is called with nothing"),
    ],
)
def test_what_will_not_do_stops_the_application(arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words), application(lambda config: config.add_topic(**arguments)):
        pass


def test_patterns_of_the_same_topics_conflict() -> None:
    def one(config: Configurator) -> None:
        config.add_topic("orders.{user}")

    def other(config: Configurator) -> None:
        config.add_topic("orders.{customer}")

    def configure(config: Configurator) -> None:
        config.include(one)
        config.include(other)

    with pytest.raises(ConfigurationConflictError, match=r"orders\.\{\}"), application(configure):
        pass


def test_the_lifetime_of_the_ini_is_that_of_patterns() -> None:
    with application(lambda config: config.add_topic("a.{x}"), topics__lifetime=0.05) as router:
        catalog: Catalog = router.registry["pushdemo.topics"]
        catalog.publish(topic("a.{x}", x=1), "x")
        assert len(catalog) == 1
        catalog.clock = lambda: 1e9
        catalog.sweep()
        assert len(catalog) == 0


def test_the_history_is_bounded_in_bytes_too() -> None:
    add = lambda config: config.add_topic("a.{x}", content_type="text/plain", history_bytes=10)  # noqa: E731
    with application(add) as router:
        catalog: Catalog = router.registry["pushdemo.topics"]
        for text in ("1234", "5678", "90", "x" * 100):
            catalog.publish(topic("a.{x}", x=1), text)
            there = catalog["a.~1"]
            kept, position = [], there.oldest()
            while (message := there.following(position)[0]) is not None:
                kept.append(message.body.decode())
                position = message.position
            assert kept[-1] == text
            assert len(kept) == 1 or sum(map(len, kept)) <= 10
        assert kept == ["x" * 100]


def test_a_client_of_a_source_for_which_there_is_no_thread_is_refused() -> None:
    def forever(x: str) -> Iterator[str]:
        yield x
        release.wait(PATIENCE)

    def configure(config: Configurator) -> None:
        config.add_topic("a.{x}", forever, interval=0, content_type="text/plain")
        config.add_route("a", "/a/{x}")
        config.add_view(lambda request: request.push("a.{x}", **request.matchdict), route_name="a")

    release = threading.Event()
    with application(configure, sources__limit=1) as router:
        app = TestApp(router)
        catalog_of(app).open(topic("a.{x}", x=1)).join()
        wait_until(lambda: catalog_of(app).pool.full, what="the source's thread")
        refused = app.get("/a/2", {"transport": "longpoll"}, status=503)
        assert "pushdemo.sources.limit" in refused.text
        assert 5 <= int(refused.headers["Retry-After"]) <= 15
        assert poll(app, "a/1", last_event_id="earliest") == [(None, "1")], "others go on"
        release.set()
