"""Bodies that middleware wraps: what is parked all the same, what holds a thread, and that every client is let go."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from pushdemo import json_yield
from pushdemo.delivery.subscription import Pace, Subscription, retry_when_refused
from pushdemo.server.offer import Park
from pushdemo.server.workers import Dispatcher, Workers
from pushdemo.topics.topic import Topic
from pushdemo.transports import sse
from tests.support import Client, port_of, pserve, serving, wait_until

THREADS = 4
PATHS = ["/news?transport=sse", "/news?transport=multipart", "/news?transport=longpoll", "/items?key=k&transport=sse"]


def items(request: Request) -> Iterator[int]:
    """A generator whose stream goes on."""
    yield 1
    request.registry["test.go_on"].wait(20)
    yield 2


class Site(NamedTuple):
    """A running application with the topic `news` and a stream of `items`."""

    app: Router
    port: int

    @property
    def news(self) -> Topic:
        topic: Topic = self.app.registry["pushdemo.topics"]["news"]
        return topic

    @property
    def taken(self) -> int:
        return int(self.app.registry["pushdemo.clients"].all.taken)


@contextmanager
def site(
    change: Callable[[Response, Request], Response] = lambda response, request: response,
    wrap: Callable[[Any], Any] = lambda app: app,
    **ini: str,
) -> Iterator[Site]:
    """The application with a tween that may `change` each response, and with middleware around it."""

    def tween(handler: Callable[[Request], Response], registry: Any) -> Callable[[Request], Response]:
        return lambda request: change(handler(request), request)

    with Configurator(settings={"pushdemo.longpoll.timeout": "20", "pushdemo.heartbeat": "0.2", **ini}) as config:
        config.include("pushdemo")
        config.registry["test.tween"] = tween
        config.registry["test.go_on"] = threading.Event()
        config.add_topic("news", content_type="text/plain")
        config.add_tween("tests.server.test_offer.changing")
        config.add_route("news", "/news")
        config.add_view(lambda request: request.push("news"), route_name="news")
        config.add_route("items", "/items")
        config.add_view(json_yield(items), route_name="items")
        config.add_route("page", "/page")
        config.add_view(lambda request: Response("a page"), route_name="page")
        app = config.make_wsgi_app()
    with serving(wrap(app), threads=THREADS) as server:
        yield Site(app, port_of(server))
    app.registry["pushdemo.topics"].close()
    app.registry["test.go_on"].set()
    app.registry["pushdemo.generators"].close()


def changing(handler: Any, registry: Any) -> Any:
    return registry["test.tween"](handler, registry)


# -- nobody is forgotten, whatever becomes of a body


class Dropping:
    """Takes what there is first, drops the iterator, and closes nothing."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.me = self  # a garbage collection would be needed to end what it refers to

    def __iter__(self) -> Iterator[bytes]:
        self.iterator = iter(self.body)
        yield next(self.iterator)


class Ignoring(Dropping):
    """Does not even begin, but keeps the iterator."""

    def __iter__(self) -> Iterator[bytes]:
        self.iterator = iter(self.body)
        yield b"instead"


def compressed(response: Response, request: Request) -> Response:
    response.encode_content("gzip", lazy=True)
    return response


def decoded(response: Response, request: Request) -> Response:
    response.content_encoding = "identity"
    response.decode_content()
    return response


def conditional(response: Response, request: Request) -> Response:
    response.conditional_response = True
    response.content_length = 1_000_000
    response.etag = "tag"
    return response


def ranged(response: Response, request: Request) -> Response:
    response.app_iter = response.app_iter_range(0, 10)
    return response


def filed(response: Response, request: Request) -> Response:
    from webob.response import EmptyResponse

    response.app_iter = EmptyResponse(response.app_iter)
    return response


def wrapped_in(wrapper: Callable[[Any], Any]) -> Callable[[Response, Request], Response]:
    def change(response: Response, request: Request) -> Response:
        response.app_iter = wrapper(response.app_iter)
        return response

    return change


def replaced(response: Response, request: Request) -> Response:
    return Response("another")


def failing(response: Response, request: Request) -> Response:
    raise RuntimeError("after the stream was made")


CHANGES = [
    compressed,
    decoded,
    conditional,
    ranged,
    filed,
    wrapped_in(Dropping),
    wrapped_in(Ignoring),
    wrapped_in(lambda body: (data for data in body)),
    wrapped_in(lambda body: iter(body)),
    replaced,
    failing,
]


@pytest.mark.heavy
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("change", CHANGES)
def test_no_place_is_lost_whatever_becomes_of_the_body(
    change: Callable[[Response, Request], Response], path: str
) -> None:
    with site(change) as running:
        for header in ("Range: bytes=0-5", "If-None-Match: tag", *["Accept-Encoding: gzip"] * (THREADS - 1)):
            with Client(running.port, timeout=0.05) as client, suppress(TimeoutError, EOFError):
                client.get(path, header).until(b"never")
        running.app.registry["test.go_on"].set()
        running.news.publish("x" * 200_000)  # what a compressor keeps is soon too much for it
        wait_until(lambda: not running.taken, what="the end of the last client")
        wait_until(lambda: not running.news.clients)


def test_a_body_that_is_dropped_in_its_midst_gives_its_turn_back_in_a_thread_of_its_own() -> None:
    """The garbage collector finds it, and whoever it runs in may hold the locks that the end takes."""
    ended = list[tuple[str, int]]()

    def note(what: str) -> None:
        ended.append((what, threading.get_ident()))

    class Noting(Workers):
        def give(self) -> None:
            super().give()
            note("turn")

    topic, workers = Topic("news", content_type="text/plain"), Noting(Dispatcher(), 1)
    server: Any = SimpleNamespace(workers=workers, turned_away=0, warn_once=lambda *_: None)
    park = Park(server, lambda: False)
    body = iter(Dropping(park(Subscription(topic, sse, Pace(), "", lambda: note("place")))))
    assert b"retry" in next(body)
    assert topic.clients == 1
    assert not workers.take(), "the body has the only turn"
    del body, park
    gc.collect()
    wait_until(lambda: len(ended) == 2, what="the end of the body")
    assert {what for what, _ in ended} == {"turn", "place"}
    assert threading.get_ident() not in {thread for _, thread in ended}
    wait_until(lambda: not topic.clients)
    assert workers.take()


# -- looked through


class Watching:
    """A wrapper that only needs to be told about the end."""

    closed = 0

    def __init__(self, body: Any) -> None:
        self.pushdemo_body = body

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pushdemo_body

    def close(self) -> None:
        type(self).closed += 1
        if hasattr(self.pushdemo_body, "close"):
            self.pushdemo_body.close()


@pytest.mark.parametrize("path", PATHS)
def test_a_wrapper_that_exposes_its_body_is_parked_and_closed_once_at_the_end(path: str) -> None:
    watching = type("Watching", (Watching,), {})

    def wrap(app: Any) -> Any:
        return lambda environ, start_response: watching(watching(app(environ, start_response)))

    with site(wrap=wrap) as running, ExitStack() as stack:
        clients = [stack.enter_context(Client(running.port)) for _ in range(2 * THREADS)]
        for number, client in enumerate(clients):
            client.get(path.replace("key=k", f"key={number}"))
        wait_until(lambda: running.taken == len(clients), what="all clients, without a thread each")
        assert watching.closed == 0
        with Client(running.port) as client:
            assert client.get("/page").response()[2] == b"a page"
        wait_until(lambda: watching.closed == 2, what="the end of the page, of which only the text has to have come")
        clients.pop().sock.close()
        if "items" not in path:  # whose close waits for the generator's step
            wait_until(lambda: watching.closed == 4)
        running.news.publish("a")
        running.news.end()
        running.app.registry["test.go_on"].set()
        wait_until(lambda: watching.closed == 2 * (2 * THREADS + 1))
        wait_until(lambda: not running.taken)


def test_a_wrapper_whose_end_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Watching):
        def close(self) -> None:
            raise RuntimeError("on purpose")

    with (
        site(wrap=lambda app: lambda *args: Failing(app(*args))) as running,
        Client(running.port) as first,
        Client(running.port) as second,
    ):
        for client in (first, second):
            client.get("/news?transport=sse").head()
            client.until(b"retry: 3000\n")
        first.sock.close()
        wait_until(lambda: running.taken == 1)
        running.news.publish("a")
        second.until(b"data: a\n\n")
    wait_until(lambda: not running.taken)


# -- what is not


def generator(app: Any) -> Any:
    """Middleware that is a generator around each body."""

    def middleware(environ: Any, start_response: Any) -> Any:
        body = app(environ, start_response)

        def around() -> Iterator[bytes]:
            try:
                yield from body
            finally:
                body.close()

        return around()

    return middleware


def test_a_wrapper_that_ends_parking_is_named_once_and_who_is_turned_away_is_told_to_wait_longer_and_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with site(wrap=generator) as running, ExitStack() as stack:
        retries = []
        for _ in range(15):
            client = stack.enter_context(Client(running.port)).get("/news?transport=sse")
            assert client.head()[0] == 200
            ordinary, *later = re.findall(rb"retry: (\d+)\n", client.chunk())
            assert ordinary == b"3000"
            retries += map(int, later)
        assert len(retries) == 15 - (THREADS - 1)
        assert retries[0] <= 3_000
        assert min(retries[-3:]) > 20_000
        warnings = [record.getMessage() for record in caplog.records if "pushdemo_body" in record.getMessage()]
        assert len(warnings) == 1
        assert "tests.server.test_offer.generator.<locals>.middleware.<locals>.around" in warnings[0]
        with Client(running.port) as client:
            assert client.get("/page").response()[2] == b"a page"
        running.news.end()
        wait_until(lambda: not running.taken)


def test_refusals_are_for_longer_the_more_there_are_and_spread() -> None:
    first, many, most = ([retry_when_refused(n) for _ in range(100)] for n in (1, 5, 1_000))
    assert max(first) <= 3_000 < min(many)
    assert 30_000 <= min(most) < max(most) <= 60_000
    assert len(set(first)) > 20


def test_a_stream_that_was_compressed_although_it_forbids_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with site(compressed) as running:
        for _ in range(3):
            with Client(running.port) as client:
                client.get("/news?transport=sse").head()
        wait_until(lambda: "no-transform" in caplog.text)
        running.news.end()
        wait_until(lambda: not running.taken)
    assert caplog.text.count("Content-Encoding: gzip") == 1


# -- what others wrap bodies in


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("monitor", "parked"),
    [
        ("sentry", True),
        ("sentry_wsgi", True),
        ("telemetry", True),
        ("telemetry_wsgi", False),
        ("proxy_fix", True),
        ("toolbar", True),
    ],
)
def test_streams_of_a_site_that_is_watched(tmp_path: Path, monitor: str, parked: bool) -> None:
    pytest.importorskip({"s": "sentry_sdk", "t": "opentelemetry", "p": "werkzeug"}.get(monitor[0], "sentry_sdk"))
    use = {"use": f"call:tests.fixtureapps.monitored:{monitor}"}
    with pserve(tmp_path, use, {"threads": THREADS}) as process, ExitStack() as stack:
        clients = [
            stack.enter_context(Client(process.port)).get("/push/news?transport=sse") for _ in range(3 * THREADS)
        ]
        for client in clients:
            assert client.head()[0] == 200
        firsts = [client.chunk() for client in clients]
        held = [
            client
            for client, first in zip(clients, firsts, strict=True)
            if re.fullmatch(rb"retry: 3000\n(id: \S+\n\n)?", first)
        ]
        assert len(held) == (len(clients) if parked else THREADS - 1)
        with Client(process.port) as page:
            assert page.get("/page").response()[2] == b"the page"
        with Client(process.port) as publisher:
            publisher.sock.sendall(b"POST /publish/news HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\na")
            assert publisher.response()[0] == 200
        for client in held:
            client.until(b"data: a\n\n")
        for client in clients:
            client.sock.close()
        wait_until(lambda: places(process.port) == 0, what="the end of the last client")
        assert process.log.count("pushdemo_body") == (not parked)
        assert "Traceback" not in process.log


def places(port: int) -> int:
    with Client(port) as client:
        return int(json.loads(client.get("/held").response()[2])["places"])
