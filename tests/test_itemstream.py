"""A generator's items as a stream, through the real server: in order, resumed, and only as fast as the client reads."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sseclient
from pyramid.config import Configurator
from pyramid.response import Response

from pushdemo import json_yield
from tests.support import Client, port_of, serving, wait_until

BIG = "x" * 65_536


class Generators:
    """Views that note how far their generators are."""

    def __init__(self) -> None:
        self.given = 0
        self.closed = threading.Event()
        self.go_on = threading.Event()

    def three(self, request: Any) -> Iterator[str]:
        yield from ("one", "two\nlines", "three")

    def endless(self, request: Any) -> Iterator[str]:
        try:
            while True:
                self.given += 1
                yield BIG
        finally:
            self.closed.set()

    def failing(self, request: Any) -> Iterator[int]:
        yield 1
        raise RuntimeError("a secret of the inside")

    def slow(self, request: Any) -> Iterator[str]:
        yield "first"
        self.go_on.wait(20)
        yield "second"


@pytest.fixture
def views() -> Generators:
    return Generators()


@pytest.fixture
def port(views: Generators, request: pytest.FixtureRequest) -> Iterator[int]:
    settings = {"pushdemo.generators.timeout": "1", "pushdemo.heartbeat": "0.2", **getattr(request, "param", {})}
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        for name in ("three", "endless", "failing", "slow"):
            config.add_route(name, f"/{name}")
            config.add_view(json_yield(getattr(type(views), name).__get__(views)), route_name=name)
        config.add_route("page", "/page")
        config.add_view(lambda request: Response("a page"), route_name="page")
        app = config.make_wsgi_app()
    with serving(app, threads=2) as server:
        yield port_of(server)
    app.registry["pushdemo.generators"].close()


def stream(client: Client) -> bytes:
    """The body of a chunked response up to its end."""
    chunks = []
    while chunk := client.chunk():
        chunks.append(chunk)
    return b"".join(chunks)


def events(body: bytes) -> list[Any]:
    """The events in `body`, as a decoder of others sees them."""
    return list(sseclient.SSEClient(iter([body])).events())


def test_events_bear_their_count_and_end(port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream")
        assert client.head()[1]["content-type"] == "text/event-stream"
        *items, end = events(stream(client))
    assert [(event.id, json.loads(event.data)) for event in items] == [
        ("1", "one"),
        ("2", "two\nlines"),
        ("3", "three"),
    ]
    assert end.event == "end"


def test_lines(port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a", "Accept: application/jsonl")
        client.head()
        lines = [json.loads(line) for line in stream(client).splitlines()]
    assert [line["content"] for line in lines if "content" in line] == ["one", "two\nlines", "three"]
    assert lines[-1] == {"state": "done"}


def test_a_poll_is_what_a_poll_was(port: int) -> None:
    for number, accept in enumerate(("application/json", "*/*", "text/html,*/*;q=0.8", "text/plain")):
        with Client(port) as client:
            status, _, body = client.get(f"/three?key={number}", f"Accept: {accept}").response()
        assert (status, json.loads(body)["content"]) == (200, "one")


def test_a_client_that_comes_back_goes_on_where_it_was(port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a").response()
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream", "Last-Event-ID: 1")
        client.head()
        *items, end = events(stream(client))
    assert ([event.id for event in items], end.event) == (["2", "3"], "end")
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream", "Last-Event-ID: 3")
        assert client.head()[0] == 204  # an EventSource stays away


def test_the_generator_runs_only_as_fast_as_the_client_reads(port: int, views: Generators) -> None:
    with Client(port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.get("/endless?key=a", "Accept: text/event-stream")
        client.head()
        # It stops when the kernel's buffers are full; a page is still answered, and asks for nothing more.
        settled = wait_until(lambda: settled_at(views), what="the end of the generator's run")
        with Client(port) as page:
            assert page.get("/page").response()[2] == b"a page"
        assert views.given == settled
        while views.given < settled + 5:
            client.chunk()
    assert views.closed.wait(20), "an abandoned session is closed"


def settled_at(views: Generators) -> int:
    before = views.given
    threading.Event().wait(0.3)
    return before if before == views.given and before else 0


def test_a_heartbeat_while_the_generator_takes_its_time(port: int, views: Generators) -> None:
    with Client(port) as client:
        client.get("/slow?key=a", "Accept: text/event-stream")
        client.until(b'"first"')
        client.until(b": heartbeat")
        views.go_on.set()
        client.until(b'"second"')


def test_a_failure_is_told_and_logged_once(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), Client(port) as client:
        client.get("/failing?key=a", "Accept: text/event-stream")
        client.head()
        body = stream(client)
    assert [event.event for event in events(body)] == ["message", "failing", "end"]
    assert b"secret" not in body
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_two_streams_of_one_thread_each_leave_the_last_for_pages(port: int, views: Generators) -> None:
    """Two generators that take their time, two threads: one waits for the other, and the page is answered."""
    with Client(port) as first, Client(port) as second, Client(port) as page:
        first.get("/slow?key=a", "Accept: text/event-stream").until(b'"first"')
        second.get("/slow?key=b", "Accept: text/event-stream")
        assert page.get("/page").response()[2] == b"a page"
        views.go_on.set()
        first.until(b'"second"')
        second.until(b'"second"')


def test_what_is_wrong_is_said_before_the_stream_begins(port: int) -> None:
    for path, status in (("/three", 400), ("/three?key=a&after=x", 400), ("/three?key=a&transport=smoke", 400)):
        with Client(port) as client:
            assert client.get(path, "Accept: text/event-stream").head()[0] == status


@pytest.mark.parametrize("port", [{"pushdemo.max_clients": "1"}], indirect=True)
def test_a_stream_takes_one_of_the_places(port: int, views: Generators) -> None:
    with Client(port) as first:
        first.get("/slow?key=a", "Accept: text/event-stream").until(b'"first"')
        with Client(port) as second:
            status, headers = second.get("/slow?key=b", "Accept: text/event-stream").head()
            assert (status, "retry-after" in headers) == (503, True)
    views.go_on.set()
    wait_until(lambda: admitted(port), what="the place of the client that left")


def admitted(port: int) -> bool:
    with Client(port) as client:
        return client.get("/three?key=c", "Accept: text/event-stream").head()[0] == 200


def test_the_server_stops_in_the_middle_of_a_stream(views: Generators) -> None:
    with Configurator() as config:
        config.include("pushdemo")
        config.add_route("endless", "/endless")
        config.add_view(json_yield(Generators.endless.__get__(views)), route_name="endless")
        app = config.make_wsgi_app()
    with serving(app) as server:
        client = Client(port_of(server)).get("/endless?key=a", "Accept: text/event-stream")
        client.until(BIG.encode())
    client.sock.close()
    assert app.registry["pushdemo.generators"].close() == 0
    assert views.closed.is_set()
