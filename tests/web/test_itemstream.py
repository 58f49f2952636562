"""A generator's items as a stream, through the real server: in order, resumed, and only as fast as the client reads."""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import sseclient
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from pushdemo import json_yield, memorize
from pushdemo.transports import sse
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
        self.given += 1
        yield from range(1, int(request.GET.get("items", 1)) + 1)
        raise RuntimeError("a secret of the inside")

    def summing(self, request: Any) -> Generator[int, None, dict[str, str]]:
        yield from (1, 2)
        return {"sum": "3\n"}

    def empty(self, request: Any) -> Iterator[int]:
        yield from ()

    def memorized(self, request: Any) -> Iterator[int]:
        try:
            yield rate()
            yield rate()
        finally:
            rate()
            self.closed.set()

    def slow(self, request: Any) -> Iterator[str]:
        yield "first"
        self.go_on.wait(20)
        yield "second"


@memorize
def rate() -> int:
    return 1


@pytest.fixture
def views() -> Generators:
    return Generators()


@pytest.fixture
def app(views: Generators, request: pytest.FixtureRequest) -> Router:
    settings = {"pushdemo.generators.timeout": "1", "pushdemo.heartbeat": "0.2", **getattr(request, "param", {})}
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        for name in ("three", "endless", "failing", "slow", "empty", "memorized", "summing"):
            config.add_route(name, f"/{name}")
            config.add_view(json_yield(getattr(type(views), name).__get__(views)), route_name=name)
        config.add_route("page", "/page")
        config.add_view(lambda request: Response("a page"), route_name="page")
        return config.make_wsgi_app()


@pytest.fixture
def port(app: Router) -> Iterator[int]:
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


def test_streams_of_items_are_counted_while_they_last(app: Router, port: int, views: Generators) -> None:
    def figures() -> Any:
        return app.registry["pushdemo.clients"].counters.tally("", "sse").figures()

    with Client(port) as client, Client(port) as other:
        client.get("/slow?key=a&transport=sse").until(b"first")
        assert figures().clients == 1
        views.go_on.set()
        other.get("/three?key=b&transport=sse").head()
        client.until(b"\r\n0\r\n\r\n")
        stream(other)
        wait_until(lambda: figures().clients == 0)
    assert figures().messages == 5


def test_events_bear_their_count_and_end(port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream")
        assert client.head()[1]["content-type"] == "text/event-stream;charset=utf-8"
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
    assert lines[-1] == {"state": "done", "last_event_id": "3"}


@pytest.mark.parametrize(
    ("accept", "data"),
    [
        ("text/event-stream", lambda body: json.loads(events(body)[-1].data)),
        ("application/jsonl", lambda body: json.loads(body.splitlines()[-1])),
    ],
)
def test_what_the_generator_returns_comes_with_the_end(port: int, accept: str, data: Any) -> None:
    with Client(port) as client:
        client.get("/summing?key=a", f"Accept: {accept}").head()
        assert data(stream(client))["content"] == {"sum": "3\n"}
    with Client(port) as client:
        client.get("/three?key=a", f"Accept: {accept}").head()
        assert "content" not in data(stream(client))


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


def test_what_was_on_its_way_when_the_connection_broke_comes_again(app: Router, port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream").until(b'"one"')
        wait_until(lambda: app.registry["pushdemo.generators"].info()["ended"] == 1, what="the generator's end")
    for seen in (1, 0, 2):
        with Client(port) as client:
            client.get("/three?key=a", "Accept: text/event-stream", f"Last-Event-ID: {seen}").head()
            assert [event.id for event in events(stream(client))] == ["1", "2", "3", "3"][seen:]


@pytest.mark.parametrize("app", [{"pushdemo.history": "2"}], indirect=True)
def test_no_more_than_the_history_is_kept_for_who_comes_back(port: int) -> None:
    with Client(port) as client:
        client.get("/three?key=a", "Accept: text/event-stream").head()
        stream(client)
    for seen, status in ((1, 200), (0, 410)):
        with Client(port) as client:
            client.get("/three?key=a", "Accept: text/event-stream", f"Last-Event-ID: {seen}")
            assert client.head()[0] == status


@pytest.mark.parametrize(
    ("path", "header"),
    [("/three?key=a&last_event_id=1", "Accept: */*"), ("/three?key=a&last_event_id=0", "Last-Event-ID: 1")],
)
def test_the_last_id_may_stand_in_the_query_and_the_header_wins(port: int, path: str, header: str) -> None:
    with Client(port) as client:
        client.get("/three?key=a").response()
    with Client(port) as client:
        client.get(f"{path}&transport=jsonlines", header).head()
        lines = [json.loads(line) for line in stream(client).splitlines()]
    assert [line["content"] for line in lines if "content" in line] == ["two\nlines", "three"]


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID"])
def test_a_stream_goes_on_behind_the_id_by_whatever_name(port: int, views: Generators, name: str) -> None:
    with Client(port) as client:
        client.get(f"/three?key=named-{name}&transport=jsonlines&{name}=0").head()
        items = [json.loads(line) for line in stream(client).splitlines()]
    assert [item["id"] for item in items if "id" in item] == ["1", "2", "3"]
    with Client(port) as client:
        client.get(f"/three?key=named-{name}&transport=jsonlines&{name}=2").head()
        items = [json.loads(line) for line in stream(client).splitlines()]
    assert [item["id"] for item in items if "id" in item] == ["3"]


@pytest.mark.heavy
def test_memorized_functions_use_the_applications_values_in_whatever_thread(
    app: Router, port: int, views: Generators
) -> None:
    with Client(port) as client:
        client.get("/memorized?key=streamed", "Accept: text/event-stream").head()
        *items, end = events(stream(client))
        assert [event.data for event in items] == ["1", "1"]
        assert end.event == "end"
        views.closed.clear()
    with Client(port) as client:
        client.get("/memorized?key=abandoned").response()
    assert views.closed.wait(20)
    info = app.registry["pushdemo.caches"].info()[rate.name]
    assert (info.misses, info.hits) == (1, 4), "each call, also those in `finally`"


@pytest.mark.heavy
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


@pytest.mark.parametrize("items", [0, 1])
def test_who_comes_back_to_a_failure_is_answered_500_and_begins_no_other(
    port: int, views: Generators, items: int
) -> None:
    with Client(port) as client:
        client.get(f"/failing?key=a&items={items}", "Accept: text/event-stream").head()
        end = events(stream(client))[-1]
    assert (end.event, end.id) == ("end", str(items))
    with Client(port) as client:
        client.get(f"/failing?key=a&items={items}", "Accept: text/event-stream", f"Last-Event-ID: {end.id}")
        status, _, body = client.response()
    assert status == 500  # an EventSource stays away
    answer = json.loads(body)
    assert (answer["state"], answer["count"], answer["reason"]) == ("error", items, "the generator failed")
    assert views.given == 1


def test_who_comes_back_to_the_end_of_nothing_begins_no_other(port: int) -> None:
    with Client(port) as client:
        client.get("/empty?key=a", "Accept: text/event-stream").head()
        (end,) = events(stream(client))
    with Client(port) as client:
        client.get("/empty?key=a", "Accept: text/event-stream", f"Last-Event-ID: {end.id}")
        assert client.head()[0] == 204


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


@pytest.mark.parametrize(
    ("query", "header", "parameter"),
    [
        ("after=x", "", "after"),
        ("last_event_id=x", "", "last_event_id"),
        ("after=1", "Last-Event-ID: x", "last_event_id"),
    ],
)
def test_the_parameter_that_is_wrong_is_named(port: int, query: str, header: str, parameter: str) -> None:
    with Client(port) as client:
        client.get(f"/three?key=a&{query}", "Accept: text/event-stream", *filter(None, [header]))
        status, _, body = client.response()
    answer = json.loads(body)
    assert (status, answer["parameter"]) == (400, parameter)
    assert answer["reason"].startswith(f"{parameter}=x: ")


@pytest.mark.parametrize("app", [{"pushdemo.max_clients": "1"}], indirect=True)
def test_a_stream_takes_one_of_the_places(port: int, views: Generators) -> None:
    with Client(port) as first:
        first.get("/slow?key=a", "Accept: text/event-stream").until(b'"first"')
        with Client(port) as second:
            status, headers = second.get("/slow?key=b", "Accept: text/event-stream").head()
            assert (status, "retry-after" in headers) == (503, True)
    views.go_on.set()
    wait_until(lambda: admitted(port), what="the place of the client that left")


@pytest.mark.parametrize("parked", [True, False])
def test_a_stream_is_counted_as_a_client_from_its_first_bytes_to_its_end(
    app: Router, port: int, views: Generators, parked: bool
) -> None:
    def figures() -> Any:
        return app.registry["pushdemo.clients"].counters.figures()["", "sse"]

    if parked:
        with Client(port) as client:
            client.get("/slow?key=a", "Accept: text/event-stream").head()
            body = client.chunk()
            assert figures().clients == 1
            views.go_on.set()
            body += stream(client)
    else:
        views.go_on.set()
        response = Request.blank("/slow?key=a&transport=sse").get_response(app)
        chunks = iter(response.app_iter)
        body = next(chunks)
        assert figures().clients == 1
        body += b"".join(chunks)
    wait_until(lambda: figures().clients == 0, what="the client to be counted no more")
    assert figures().messages == 2
    assert len(body) >= figures().bytes > len(b'"first""second"')


def test_a_client_that_leaves_is_counted_no_more_and_one_that_was_never_sent_anything_never_was(
    app: Router, port: int, views: Generators
) -> None:
    figures = app.registry["pushdemo.clients"].counters.figures
    Request.blank("/slow?key=b&transport=sse").get_response(app).app_iter.close()
    assert figures()["", "sse"].clients == 0
    with Client(port) as client:
        client.get("/slow?key=a", "Accept: text/event-stream").until(b'"first"')
        assert figures()["", "sse"].clients == 1
    views.go_on.set()
    wait_until(lambda: figures()["", "sse"].clients == 0, what="the client to be counted no more")


def test_who_waits_for_the_end_of_a_stream_is_told_and_the_place_is_given_back(app: Router) -> None:
    clients, told = app.registry["pushdemo.clients"], list[str]()
    body = Request.blank("/slow?key=b&transport=sse").get_response(app).app_iter
    body.closing(lambda: told.append("first"))
    body.closing(lambda: told.append("second"))
    assert clients.threads.taken == 1
    for _ in range(2):
        body.close()
    assert (clients.threads.taken, told) == (0, ["first", "second"])
    body.closing(lambda: told.append("late"))
    body.close()
    assert told[-1] == "late"


@pytest.mark.heavy
def test_a_stream_that_nobody_iterates_gives_its_place_back(app: Router) -> None:
    clients = app.registry["pushdemo.clients"]
    response = Request.blank("/slow?key=b&transport=sse").get_response(app)
    assert clients.threads.taken == 1
    del response
    gc.collect()
    assert clients.threads.taken == 0


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


def test_a_session_that_is_closed_before_its_first_item_does_not_begin_anew(app: Router, views: Generators) -> None:
    response = Request.blank("/endless?key=K&transport=sse").get_response(app)
    stream = iter(response.app_iter)
    assert next(stream) == b"retry: 3000\n"
    assert Request.blank("/endless?key=K", method="DELETE").get_response(app).status_int == 204
    assert b"".join(stream) == sse.notice("end", "0")
    assert views.given == 0
