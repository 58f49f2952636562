"""Streams whose right ends: in time, at once, for one owner or one topic; who listens, and where a page ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from webtest import TestApp

from pushdemo.server import Server
from pushdemo.web.expiry import EARLY
from tests.readers import TRANSPORTS, Reader
from tests.support import PATIENCE, Client, port_of, serving, wait_until

WITHIN = 1.0  # seconds in which an ordered end reaches every client
BUSY = 2.0  # seconds more, on a busy machine


class Named:
    """A security policy for tests: whoever says a name in a header is that user."""

    def authenticated_userid(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    def identity(self, request: Request) -> str | None:
        return self.authenticated_userid(request)

    def permits(self, request: Request, context: Any, permission: str) -> bool:
        return True


def application(**settings: object) -> Any:
    """`/push` brings a room, `/news` a common topic, `/end` ends streams, `/count` counts."""
    ini = {f"pushdemo.{key}": str(value) for key, value in settings.items()}
    with Configurator(settings=ini) as config:
        config.set_security_policy(Named())
        config.include("pushdemo")
        config.add_topic("room.{room}", content_type="text/plain")
        config.add_topic("news", content_type="text/plain")

        def push(request: Request) -> Any:
            expires = request.GET.get("expires")
            room = request.GET["room"]
            return request.push("room.{room}", room=room, expires=float(expires) if expires else None)

        def end(request: Request) -> dict[str, bool]:
            chosen = dict(request.GET)
            if "topic" in chosen:
                request.end_streams(**chosen)
            else:
                request.end_streams(owner=chosen["owner"])
            return {"ended": True}

        views = {
            "push": push,
            "news": lambda request: request.push("news"),
            "publish": lambda request: request.publish("room.{room}", "said", room=request.GET["room"]).id,
            "end": end,
            "count": lambda request: request.count_listeners("room.{room}", room=request.GET["room"]),
            "newest": lambda request: request.newest_event_id("room.{room}", room=request.GET["room"]),
        }
        for name, view in views.items():
            config.add_route(name, f"/{name}")
            config.add_view(view, route_name=name, renderer=None if name in ("push", "news") else "json")
        return config.make_wsgi_app()


@contextmanager
def running(**settings: object) -> Iterator[tuple[Server, TestApp]]:
    app = application(**settings)
    with serving(app) as server:
        yield server, TestApp(app)
    app.registry["pushdemo.topics"].close()


@pytest.fixture
def site() -> Iterator[tuple[Server, TestApp]]:
    with running() as site:
        yield site


def listen(server: Server, transport: str, path: str, user: str = "") -> Reader:
    """A client that the server holds."""
    reader = Reader(port_of(server), transport, path, *([f"X-User: {user}"] if user else []))
    return reader.start() if transport == "longpoll" else reader.join()


def clients(app: TestApp) -> int:
    return int(app.app.registry["pushdemo.clients"].all.taken)


def until_end(reader: Reader) -> float:
    """How many seconds the end takes: a clean one, after which the client comes back."""
    began = time.monotonic()
    if reader.transport == "longpoll":
        assert reader.next(heartbeats=True).kind == "heartbeat"
    else:
        assert [event.kind for event in reader.rest()] == ["retry"]
    return time.monotonic() - began


def is_open(reader: Reader) -> bool:
    assert reader.client
    reader.client.sock.settimeout(0.1)
    try:
        return bool(reader.client.sock.recv(1))
    except TimeoutError:
        return True
    finally:
        reader.client.sock.settimeout(PATIENCE)


@pytest.mark.heavy
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_ends_in_time_and_never_late(site: tuple[Server, TestApp], transport: str) -> None:
    server, app = site
    with listen(server, transport, "/push?room=a&expires=1.2") as reader:
        took = until_end(reader)
    assert took < 1.2 + BUSY
    wait_until(lambda: clients(app) == 0, what="its place")


def test_the_time_is_up_to_a_tenth_early_at_random_and_not_late() -> None:
    from pushdemo.web.expiry import deadline

    now = time.monotonic()
    ends = [deadline(100.0) - now for _ in range(200)]
    assert min(ends) >= 100 * (1 - EARLY)
    assert max(ends) <= 100.1
    assert max(ends) - min(ends) > 5


@pytest.mark.heavy
def test_the_ini_says_when_all_streams_end() -> None:
    with running(**{"streams.expire": 1}) as (server, _), listen(server, "sse", "/news") as reader:
        assert until_end(reader) < 1 + BUSY


@pytest.mark.heavy
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_owners_streams_end_at_once_and_others_go_on(site: tuple[Server, TestApp], transport: str) -> None:
    server, app = site
    ann = [listen(server, transport, "/push?room=a", "ann"), listen(server, transport, "/news", "ann")]
    others = [listen(server, transport, "/push?room=a", "bob"), listen(server, transport, "/push?room=a")]
    wait_until(lambda: clients(app) == 4, what="four clients")
    app.get("/end?owner=ann")
    for reader in ann:
        assert until_end(reader) < WITHIN + BUSY
    for reader in others:
        assert is_open(reader)
    for reader in ann + others:
        reader.leave()


@pytest.mark.parametrize(
    ("order", "ends"),
    [
        ("topic=room.{room}&room=a", {("ann", "a"), ("bob", "a")}),
        ("topic=room.{room}", {("ann", "a"), ("bob", "a"), ("ann", "b")}),
        ("topic=room.{room}&room=a&owner=ann", {("ann", "a")}),
        ("topic=room.{room}&owner=ann", {("ann", "a"), ("ann", "b")}),
    ],
)
def test_an_order_is_for_a_topic_for_all_of_a_pattern_and_for_an_owner_in_it(
    site: tuple[Server, TestApp], order: str, ends: set[tuple[str, str]]
) -> None:
    server, app = site
    everyone = {
        (user, room): listen(server, "sse", f"/push?room={room}", user)
        for user, room in (("ann", "a"), ("bob", "a"), ("ann", "b"))
    }
    app.get(f"/end?{order}")
    for who, reader in everyone.items():
        if who in ends:
            assert until_end(reader) < WITHIN + BUSY
    for who, reader in everyone.items():
        assert who in ends or is_open(reader)
        reader.leave()


@pytest.mark.heavy
def test_who_comes_back_after_the_order_stays(site: tuple[Server, TestApp]) -> None:
    server, app = site
    with listen(server, "sse", "/push?room=a", "ann") as reader:
        app.get("/end?owner=ann")
        until_end(reader)
    with listen(server, "sse", "/push?room=a", "ann") as again:
        orders = app.app.registry["pushdemo.clients"].pace.orders
        app.get("/end?owner=nobody")  # has the hub look once more
        wait_until(lambda: orders.number == 2, what="the order")
        time_of_looks = time.monotonic() + 2 * WITHIN
        wait_until(lambda: time.monotonic() > time_of_looks, what="two looks")
        assert is_open(again)


def test_a_request_that_began_before_the_order_is_ended_though_it_streams_after(site: tuple[Server, TestApp]) -> None:
    server, app = site
    app.get("/end?owner=ann")
    orders = app.app.registry["pushdemo.clients"].pace.orders
    orders._latest = {key: at + 3600 for key, at in orders._latest.items()}  # as if the order came in the meantime
    with listen(server, "sse", "/push?room=a", "ann") as reader:
        assert until_end(reader) < WITHIN + BUSY


def test_an_order_needs_a_part_and_none_is_no_part(site: tuple[Server, TestApp]) -> None:
    _, app = site
    request = Request.blank("/")
    request.registry = app.app.registry
    from pyramid.interfaces import IRequestExtensions
    from pyramid.request import apply_request_extensions

    assert app.app.registry.queryUtility(IRequestExtensions)
    apply_request_extensions(request)
    for parts in ({}, {"owner": None}, {"topic": None}, {"owner": None, "topic": "news"}, {"owner": "a", "room": "b"}):
        with pytest.raises(TypeError):
            request.end_streams(**parts)
    with pytest.raises(KeyError, match="no topic nowhere"):
        request.end_streams(topic="nowhere")


def test_listeners_are_counted_by_topic(site: tuple[Server, TestApp]) -> None:
    server, app = site
    assert app.get("/count?room=a").json == 0
    readers = [listen(server, transport, "/push?room=a") for transport in TRANSPORTS]
    readers.append(listen(server, "sse", "/push?room=b"))
    wait_until(lambda: app.get("/count?room=a").json == 4, what="four listeners")
    assert app.get("/count?room=b").json == 1
    for reader in readers:
        reader.leave()
    wait_until(lambda: app.get("/count?room=a").json == 0, what="nobody")


def test_the_newest_id_is_that_of_the_requests_beginning() -> None:
    app = application()
    registry = app.registry
    catalog = registry["pushdemo.topics"]
    topic = catalog.open(catalog.refer("room.{room}", {"room": "a"}))
    first = topic.publish("first")
    began = topic.clock()
    topic.publish("second")
    assert topic.newest_id(began) == first.id
    assert topic.begin(first.id).reset is False
    assert topic.newest_id(topic.clock()) == topic.publish("third").id.replace("-3", "-2")
    catalog.close()


def test_a_page_that_begins_where_it_was_rendered_misses_nothing(site: tuple[Server, TestApp]) -> None:
    server, app = site
    app.get("/publish?room=a")
    newest = app.get("/newest?room=a").json
    after = [app.get("/publish?room=a").json for _ in range(3)]
    with Reader(port_of(server), "sse", "/push?room=a", last=newest) as reader:
        assert [event.id for event in reader.take(3)] == after
    empty = app.get("/newest?room=new").json
    only = app.get("/publish?room=new").json
    with Reader(port_of(server), "sse", "/push?room=new", last=empty) as reader:
        assert reader.next().id == only


def test_latest_is_nothing_but_what_comes(site: tuple[Server, TestApp]) -> None:
    server, app = site
    app.get("/publish?room=a")
    for transport in TRANSPORTS:
        with Reader(port_of(server), transport, "/push?room=a", last="latest") as reader:
            reader.start()
            wait_until(lambda: clients(app) == 1, what="the client")
            published = app.get("/publish?room=a").json
            assert reader.next().id == published
        wait_until(lambda: clients(app) == 0, what="its leaving")


@pytest.mark.parametrize(
    ("setting", "user", "reason"),
    [
        ("max_clients_per_user", "ann", "2 clients of this user are connected already (pushdemo.max_clients_per_user)"),
        ("max_clients_per_address", "", "2 clients from this address are connected already"),
    ],
)
def test_one_visitor_has_so_many_clients(setting: str, user: str, reason: str) -> None:
    with running(**{setting: 2}) as (server, app):
        readers = [listen(server, "sse", "/news", user) for _ in range(2)]
        with Client(port_of(server)) as client:
            client.get("/news", *([f"X-User: {user}"] if user else []))
            status, headers, body = client.response()
        assert (status, reason in body.decode(), "retry-after" in headers) == (503, True, True)
        assert app.app.registry["pushdemo.clients"].counters.refusals()["topic", 503] == 1
        if user:
            listen(server, "sse", "/news", "bob").leave()
        readers.pop().leave()
        wait_until(lambda: _is_let_in(server, user), what="the place that was given back")
        readers.pop().leave()


def _is_let_in(server: Server, user: str) -> bool:
    with Client(port_of(server)) as client:
        return client.get("/news", *([f"X-User: {user}"] if user else [])).head()[0] == 200
