"""What a client that means harm, or a fault, may take from others: nothing. On real sockets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pushdemo import demo
from pushdemo.server import Server
from pushdemo.web.json_yield import json_yield
from tests.support import PATIENCE, Client, port_of, serving, wait_until


class Site(NamedTuple):
    """An application with a page and a generator whose steps take until the test lets them go on."""

    server: Server
    registry: Any
    stepping: threading.Semaphore  # released by each step that begins
    go_on: threading.Event
    tweens: list[str]  # the paths of the requests that they have seen

    def client(self) -> Client:
        return Client(port_of(self.server))


def noting(handler: Callable[[Request], Response], registry: Any) -> Callable[[Request], Response]:
    """A tween that notes what it sees."""

    def note(request: Request) -> Response:
        registry["seen"].append(request.path_qs)
        return handler(request)

    return note


@contextmanager
def slow_steps(ini: dict[str, str] | None = None, **settings: Any) -> Iterator[Site]:
    stepping, go_on, tweens = threading.Semaphore(0), threading.Event(), list[str]()

    @json_yield
    def steps(request: Request) -> Iterator[int]:
        for number in range(3):
            stepping.release()
            assert go_on.wait(PATIENCE)
            yield number

    with Configurator(settings=ini or {}) as config:
        config.include("pushdemo")
        config.registry["seen"] = tweens
        config.add_tween(f"{__name__}.noting")
        config.add_route("steps", "/steps")
        config.add_view(steps, route_name="steps")
        config.add_route("page", "/page")
        config.add_view(lambda request: Response("the page"), route_name="page")
        app = config.make_wsgi_app()
    with serving(app, **settings) as server:
        try:
            yield Site(server, app.registry, stepping, go_on, tweens)
        finally:
            go_on.set()


# -- threads


def test_small_requests_for_long_work_leave_a_thread_to_the_pages() -> None:
    app = demo.main(**{"pushdemo.longpoll.timeout": "1"})
    with serving(app, threads=4) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(12)]
        for number, client in enumerate(clients):
            client.get(f"/job/run?key={number}&max=1000")
        with Client(port_of(server)) as page:
            for path in ("/health/live", "/", "/job"):
                began = time.monotonic()
                assert page.get(path).response()[0] == 200
                assert time.monotonic() - began < 1.0
        answers = [client.response() for client in clients]
    statuses = [status for status, _, _ in answers]
    assert statuses.count(200) >= 3
    assert set(statuses) <= {200, 503}
    for status, headers, body in answers:
        assert json.loads(body)["state"] == ("ready" if status == 200 else "error")
        assert ("retry-after" in headers) == (status == 503)


def test_a_poll_without_a_turn_waits_unstarted_and_runs_from_the_beginning() -> None:
    with slow_steps(threads=3) as site, ExitStack() as stack:
        clients = [stack.enter_context(site.client()) for _ in range(6)]
        for number, client in enumerate(clients):
            client.get(f"/steps?key={number}")
            wait_until(lambda number=number: len(site.tweens) == number + 1)
        for _ in range(2):
            assert site.stepping.acquire(timeout=PATIENCE)
        with site.client() as page:
            assert page.get("/page").response()[2] == b"the page"
        assert not site.stepping.acquire(blocking=False), "the others wait unstarted"
        site.go_on.set()
        for client in clients:
            status, _, body = client.response()
            assert (status, json.loads(body)["content"]) == (200, 0)
        assert sorted(site.tweens) == sorted(
            [*(f"/steps?key={n}" for n in range(6)), *(f"/steps?key={n}" for n in range(2, 6)), "/page"]
        )
        for client in clients:  # the connections go on, and the turns are all there again
            assert json.loads(client.get(f"/steps?key={clients.index(client)}").response()[2])["content"] == 1


def test_a_poll_for_which_no_turn_comes_in_time_is_refused() -> None:
    with slow_steps({"pushdemo.longpoll.timeout": "0.3"}, threads=2) as site, site.client() as first:
        first.get("/steps?key=1")
        assert site.stepping.acquire(timeout=PATIENCE)
        with site.client() as client:
            began = time.monotonic()
            status, headers, body = client.get("/steps?key=2").response()
            assert 0.3 <= time.monotonic() - began < 3.0
            assert status == 503
            assert 5 <= int(headers["retry-after"]) <= 15
            assert json.loads(body)["reason"] == "all threads that generators may have are taken"
            assert client.get("/page").response()[2] == b"the page"
        assert site.registry["pushdemo.clients"].counters.refusals() == {("generator", 503): 1}
        site.go_on.set()
        assert first.response()[0] == 200
        with site.client() as client:
            assert client.get("/steps?key=2").response()[0] == 200


def test_nothing_is_run_for_a_client_that_left_while_it_waited() -> None:
    with slow_steps(threads=2) as site, site.client() as first:
        first.get("/steps?key=1")
        assert site.stepping.acquire(timeout=PATIENCE)
        leavers = [site.client().get(f"/steps?key=left{number}") for number in range(5)]
        wait_until(lambda: len(site.tweens) == 6)
        for leaver in leavers:
            leaver.sock.close()
        with site.client() as last:
            last.get("/steps?key=2")
            wait_until(lambda: len(site.tweens) == 7)
            site.go_on.set()
            assert last.response()[0] == first.response()[0] == 200
        assert len(site.tweens) == 8
        wait_until(lambda: sum(len(listener.channels) for listener in site.server._listeners) == 1)


def test_requests_behind_one_that_waits_for_its_turn_wait_for_it() -> None:
    with slow_steps(threads=2) as site, site.client() as first, site.client() as client:
        first.get("/steps?key=1")
        assert site.stepping.acquire(timeout=PATIENCE)
        for path in ("/steps?key=2", "/page", "/steps?key=2"):
            client.get(path)
        wait_until(lambda: len(site.tweens) == 2)
        site.go_on.set()
        assert json.loads(client.response()[2])["content"] == 0
        assert client.response()[2] == b"the page"
        assert json.loads(client.response()[2])["content"] == 1


def test_streams_of_generators_share_the_turns_with_polls() -> None:
    with slow_steps(threads=3) as site, ExitStack() as stack:
        streams = [stack.enter_context(site.client()) for _ in range(6)]
        for number, stream in enumerate(streams):
            stream.get(f"/steps?key={number}&transport=jsonlines")
        for _ in range(2):
            assert site.stepping.acquire(timeout=PATIENCE)
        with site.client() as page, site.client() as poll:
            poll.get("/steps?key=poll")
            assert page.get("/page").response()[2] == b"the page"
            assert not site.stepping.acquire(blocking=False)
            site.go_on.set()
            assert poll.response()[0] == 200
        for stream in streams:
            assert stream.head()[0] == 200
            stream.until(b'"done"')


@pytest.mark.parametrize("transport", ["sse", "longpoll"])
def test_responses_that_a_middleware_iterates_leave_a_thread_to_the_pages(transport: str) -> None:
    app = demo.main()

    def wrapping(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from app(environ, start_response)

    with serving(wrapping, threads=3) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(6)]
        for client in clients:
            client.get(f"/server/index?transport={transport}&last_event_id=none-1")
        with Client(port_of(server)) as page:
            assert page.get("/health/live").head()[0] == 200
