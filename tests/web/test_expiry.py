"""Streams of generators that end because their right to listen does."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.router import Router

from pushdemo import json_yield
from pushdemo.web.expiry import checked, deadline
from tests import readers
from tests.support import SOON, Client, port_of, serving, wait_until


@pytest.mark.parametrize("expires", [10, 10.0, timedelta(seconds=10), datetime.now(UTC) + timedelta(seconds=10)])
def test_it_is_never_late_and_up_to_a_tenth_early(expires: Any) -> None:
    if isinstance(expires, datetime):
        expires = datetime.now(UTC) + timedelta(seconds=10)
    now = time.monotonic()
    earliest, latest = (deadline(expires, lambda fraction=fraction: fraction) for fraction in (1, 0))
    assert earliest - now == pytest.approx(9, abs=0.2)
    assert latest - now == pytest.approx(10, abs=0.2)
    assert len({deadline(checked(expires)) for _ in range(9)}) == 9


def test_a_time_that_is_over_ends_at_once_and_none_never() -> None:
    assert deadline(datetime(2020, 1, 1, tzinfo=UTC)) <= time.monotonic()
    assert deadline(None) == math.inf


@pytest.mark.parametrize("expires", ["10", True, [1], object()])
def test_what_is_no_time_is_refused_where_it_decorates(expires: Any) -> None:
    with pytest.raises(TypeError, match="expires="):
        json_yield(expires=expires)


@pytest.mark.parametrize("expires", [0, -1, math.inf, math.nan, timedelta(0), datetime(2040, 1, 1)])
def test_a_time_that_nobody_can_wait_for_is_refused_too(expires: Any) -> None:
    with pytest.raises(ValueError, match="expires="):
        json_yield(expires=expires)


LARGE = "x" * 8_000_000  # more than the sockets keep for a client that does not read


class Views:
    """Generators whose streams end in time, and who may read them."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.allowed = True

    def permits(self, request: Request, context: Any, permission: str) -> bool:
        return self.allowed

    def authenticated_userid(self, request: Request) -> None:
        return None

    @json_yield(expires=1.0)
    def fast(self, request: Request) -> Iterator[int]:
        number = 0
        while True:
            number += 1
            threading.Event().wait(0.02)
            yield number

    @json_yield(expires=1.0)
    def slow(self, request: Request) -> Iterator[int]:
        yield 1
        self.go_on.wait(20)
        yield 2

    @json_yield(expires=3_600)
    def large(self, request: Request) -> Iterator[str]:
        while True:
            yield LARGE


@pytest.fixture
def views() -> Views:
    return Views()


@pytest.fixture
def app(views: Views) -> Router:
    with Configurator() as config:
        config.set_security_policy(views)
        config.include("pushdemo")
        for name in ("fast", "slow", "large"):
            config.add_route(name, f"/{name}")
            config.add_view(getattr(views, name), route_name=name, permission="read")
        return config.make_wsgi_app()


@pytest.fixture
def port(app: Router, views: Views) -> Iterator[int]:
    with serving(app) as server:
        yield port_of(server)
    views.go_on.set()
    assert app.registry["pushdemo.generators"].close(20) == 0


def lines(client: Client) -> list[Any]:
    """What a stream says up to its end."""
    client.head()
    chunks = []
    while chunk := client.chunk():
        chunks.append(chunk)
    return [json.loads(line) for line in b"".join(chunks).splitlines()]


@pytest.mark.heavy
def test_the_client_comes_back_with_its_last_id_and_the_view_decides(port: int, views: Views) -> None:
    began = time.monotonic()
    with Client(port) as client:
        told = lines(client.get("/fast?key=K&transport=jsonlines"))
    assert 0.5 < time.monotonic() - began < 1.0 + SOON
    last = [line["id"] for line in told if "id" in line][-1]
    assert told[-1]["state"] == "waiting"
    assert "retry" in told[-1]
    with Client(port) as client:
        client.get(f"/fast?key=K&transport=jsonlines&last_event_id={last}")
        assert client.until(f'"id": "{int(last) + 1}"'.encode()).count(b'"id"') == 1
    views.allowed = False
    with Client(port) as client:
        assert client.get(f"/fast?key=K&transport=jsonlines&last_event_id={last}").head()[0] == 403


def test_a_generator_that_takes_its_time_holds_no_stream_open(port: int, views: Views) -> None:
    began = time.monotonic()
    with Client(port) as client:
        told = lines(client.get("/slow?key=K&transport=jsonlines"))
    assert time.monotonic() - began < 1.0 + SOON
    assert [line["id"] for line in told if "id" in line] == ["1"]
    assert told[-1]["state"] == "waiting"
    views.go_on.set()
    with Client(port) as client:
        told = lines(client.get("/slow?key=K&transport=jsonlines&last_event_id=1"))
    assert [line["id"] for line in told if "id" in line] == ["2"]
    assert told[-1]["state"] == "done"


def test_who_reads_slowly_when_the_right_ends_has_the_whole_item_and_comes_back(app: Router, views: Views) -> None:
    with serving(app) as server, Client(port_of(server)) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        raw = client.get("/large?key=K&transport=jsonlines").until(b'"xxx')
        (pull,) = server.hub._pulls
        pull.body.ends = 0.0  # as if it were time
        wait_until(lambda: pull.last or not pull.open, timeout=SOON, what="the hub's look at the time")
        raw += client.rest()
    found = readers.answer(raw)
    assert found
    assert found.whole
    _, item, end = readers.jsonlines(found)
    assert (item.id, item.content) == ("1", LARGE)
    assert end.kind == "retry"
    assert app.registry["pushdemo.generators"].close(20) == 0


@pytest.mark.heavy
def test_the_ini_says_when_streams_of_generators_end(views: Views) -> None:
    @json_yield
    def endless(request: Request) -> Iterator[int]:
        yield from iter(lambda: views.go_on.wait(0.02) or 1, 2)

    with Configurator(settings={"pushdemo.streams.expire": "1"}) as config:
        config.include("pushdemo")
        config.add_route("endless", "/endless")
        config.add_view(endless, route_name="endless")
        app = config.make_wsgi_app()
    with serving(app) as server, Client(port_of(server)) as client:
        assert lines(client.get("/endless?key=K&transport=jsonlines"))[-1]["state"] == "waiting"
    assert app.registry["pushdemo.generators"].close(20) == 0
