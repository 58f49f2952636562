"""What a client that means harm, or a fault, may take from others: nothing. On real sockets."""

from __future__ import annotations

import configparser
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pushdemo import demo
from pushdemo.server import server as server_module
from pushdemo.server.server import Listener, Server
from pushdemo.web.json_yield import json_yield
from tests.readers import unchunked
from tests.support import PATIENCE, ROOT, Client, in_child, port_of, pserve_command, serving, wait_until


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


@pytest.mark.heavy
def test_small_requests_for_long_work_leave_a_thread_to_the_pages() -> None:
    app = demo.main(**{"pushdemo.longpoll.timeout": "6"})
    with serving(app, threads=4) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(12)]
        for number, client in enumerate(clients):
            client.get(f"/job/run?key={number}&max=1000")
        with Client(port_of(server)) as page:
            for path in ("/health/live", "/", "/job"):
                assert page.get(path).response()[0] == 200
        assert not select.select([client.sock for client in clients], [], [], 0)[0], "they are all still at work"
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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


# -- one client's fault


def app_with(*views: tuple[str, Callable[[Request], Any]], tween: str = "", **ini: str) -> Any:
    """An application with the topic `news` at /news, a page, and these views."""
    with Configurator(settings={f"pushdemo.{key}": value for key, value in ini.items()}) as config:
        config.include("pushdemo")
        config.add_topic("news", content_type="text/plain")
        if tween:
            config.add_tween(f"{__name__}.{tween}")
        known = {"/news": lambda request: request.push("news"), "/page": lambda request: Response("the page")}
        for number, (pattern, view) in enumerate({**known, **dict(views)}.items()):
            config.add_route(f"route{number}", pattern)
            config.add_view(view, route_name=f"route{number}")
        config.add_route("live", "/health/live")
        config.add_view("pushdemo.web.health.live", route_name="live", renderer="json")
        return config.make_wsgi_app()


def naming(handler: Callable[[Request], Response], _registry: Any) -> Callable[[Request], Response]:
    """A tween that puts into a header what Latin-1 cannot carry, for whoever asks so."""

    def name(request: Request) -> Response:
        response = handler(request)
        if "named" in request.GET:
            response.headers["X-User"] = "Žižek"
        return response

    return name


@pytest.mark.parametrize("transport", ["longpoll", "sse", "multipart", "jsonlines"])
def test_a_header_that_cannot_be_sent_is_an_error_of_that_request_alone(transport: str) -> None:
    app = app_with(tween="naming")
    topic, clients = app.registry["pushdemo.topics"]["news"], app.registry["pushdemo.clients"].all
    with serving(app) as server, ExitStack() as stack:
        first = stack.enter_context(Client(port_of(server))).get("/news?transport=longpoll")
        wait_until(lambda: topic.clients == 1)
        with Client(port_of(server)) as named:
            assert named.get(f"/news?transport={transport}&named").response()[0] == 500
        second = stack.enter_context(Client(port_of(server))).get("/news?transport=longpoll")
        stream = stack.enter_context(Client(port_of(server))).get("/news?transport=sse")
        wait_until(lambda: (topic.clients, clients.taken) == (3, 3))
        topic.publish("the news")
        for poll in (first, second):
            assert json.loads(poll.response()[2])["messages"][0]["content"] == "the news"
        stream.until(b"the news")
        server.stop()
        assert b"retry: " in stream.rest()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_view_that_exits_is_answered_500(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def leave(_request: Request) -> Any:
        raise error

    with serving(app_with(("/leave", leave)), threads=1) as server, Client(port_of(server)) as client:
        assert client.get("/leave").response()[0] == 500
        with Client(port_of(server)) as other:
            assert other.get("/page").response()[2] == b"the page"
    assert error.__name__ in caplog.text


def test_a_generator_that_exits_ends_its_own_stream_alone() -> None:
    @json_yield
    def leaving(_request: Request) -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    with serving(app_with(("/leaving", leaving)), threads=2) as server, Client(port_of(server)) as client:
        client.get("/leaving?key=a&transport=jsonlines").head()
        client.rest()
        with Client(port_of(server)) as poll:
            assert poll.get("/leaving?key=b").response()[0] == 200
            assert poll.get("/leaving?key=b").response()[0] == 500
        with Client(port_of(server)) as other:
            assert other.get("/page").response()[2] == b"the page"


# -- what the system refuses


@pytest.mark.heavy
def test_a_server_without_threads_says_so_and_serves_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_with()
    start = threading.Thread.start
    missing = [10**6]

    def start_unless(thread: threading.Thread) -> None:
        if thread.name == "pushdemo-hub" and missing[0] > 0:
            missing[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless)
    with serving(app) as server, Client(port_of(server)) as stream, Client(port_of(server)) as poll:
        with Client(port_of(server)) as page:
            assert page.get("/health/live").response()[0] == 200
            stream.get("/news?transport=sse")
            poll.get("/news?transport=longpoll")
            wait_until(lambda: server.hub.trouble)
            status, _, body = page.get("/health/live").response()
            assert (status, json.loads(body)["live"]) == (503, False)
            assert "cannot be started" in json.loads(body)["reason"]
            assert page.get("/page").response()[2] == b"the page"
            missing[0] = 0
            wait_until(lambda: not server.hub.trouble)
            assert page.get("/health/live").response()[0] == 200
        assert stream.head()[0] == 200
        app.registry["pushdemo.topics"]["news"].publish("the news")
        stream.until(b"the news")
        assert json.loads(poll.response()[2])["messages"][0]["content"] == "the news"


@pytest.mark.parametrize("step", ["look", "_make_room", "_accept"])
@pytest.mark.parametrize("error", [ValueError("on purpose"), SystemExit(3)], ids=["error", "exit"])
def test_a_fault_in_the_servers_loop_is_logged_and_it_goes_on(
    step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken, real = [0], getattr(Listener, step)

    def once(self: Listener, *args: Any) -> Any:
        taken[0] += 1
        if taken[0] == 2:
            raise error
        return real(self, *args)

    monkeypatch.setattr(Listener, step, once)
    with serving(app_with()) as server:
        for _ in range(3):
            with Client(port_of(server)) as client, Client(port_of(server)) as stream:
                assert client.get("/page").response()[2] == b"the page"
                assert stream.get("/news?transport=sse").head()[0] == 200
                assert client.get("/health/live").response()[0] == 200
    assert "the server met an error and goes on" in caplog.text


# -- connections


def test_idle_connections_make_room_for_new_ones_the_longest_idle_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_IDLE", 0.0)
    with serving(app_with(), connection_limit=50) as server, ExitStack() as stack:
        clients = []
        for _ in range(150):
            client = stack.enter_context(Client(port_of(server)))
            assert client.get("/page").response()[2] == b"the page"
            clients.append(client)
            threading.Event().wait(0.005)
        assert len(server._map) <= 50
        assert [client.get("/page").response()[2] for client in clients[-20:]] == [b"the page"] * 20
        for client in clients[:50]:
            with pytest.raises((EOFError, ConnectionError)):
                client.get("/page").response()


def test_connections_in_use_are_not_closed_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_IDLE", 0.0)
    go_on = threading.Event()

    def slow(_request: Request) -> Response:
        assert go_on.wait(PATIENCE)
        return Response("slow")

    with serving(app_with(("/slow", slow)), connection_limit=40, threads=2) as server, ExitStack() as stack:
        busy = [stack.enter_context(Client(port_of(server))).get("/slow") for _ in range(10)]
        begun = stack.enter_context(Client(port_of(server)))
        begun.sock.sendall(b"GET /page HTTP/1.1\r\nHost:")
        polls = [stack.enter_context(Client(port_of(server))) for _ in range(100)]
        go_on.set()
        for client in busy:
            assert client.response()[2] == b"slow"
        for poll in polls:
            poll.get("/news?transport=longpoll")
            threading.Event().wait(0.005)
        for _ in range(60):
            with Client(port_of(server)) as client:
                assert client.get("/page").response()[2] == b"the page"
        begun.sock.sendall(b" localhost\r\n\r\n")
        assert begun.response()[2] == b"the page"


def test_the_limit_of_connections_follows_that_of_open_files(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pushdemo.server import Server\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))\n"
        "server = Server(lambda *_: [], listen='127.0.0.1:0', **dict(arg.split('=') for arg in sys.argv[2:]))\n"
        "print(server._adj.connection_limit)\n"
    )

    def limit(*arguments: str) -> int:
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    assert limit("1024") == 824
    assert limit("250") == 100
    assert limit("1024", "connection_limit=30") == 30


def test_a_full_server_says_so_in_the_production_log(tmp_path: Path) -> None:
    """Once, however often a connection comes and goes."""
    ini = configparser.RawConfigParser(delimiters="=")
    ini.read(ROOT / "production.ini", encoding="utf-8")
    ini["app:main"]["use"] = "call:tests.fixtureapps.newsroom:main"
    ini["server:main"].update(listen="127.0.0.1:0", connection_limit="6")
    ini["logger_pushdemo"]["level"] = "INFO"
    path = tmp_path / "production.ini"
    with path.open("w", encoding="utf-8") as file:
        ini.write(file)
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(**pserve_command(path), stdout=output, stderr=output) as process:
        try:
            port = int(wait_until(lambda: re.search(r"Serving on http://127\.0\.0\.1:(\d+)", log.read_text()))[1])
            clients = [Client(port) for _ in range(10)]
            for client in clients[:2]:
                client.get("/page").response()
            wait_until(lambda: "reached the connection limit" in log.read_text())
            for client in clients:
                client.sock.close()
        finally:
            process.terminate()
            process.wait(PATIENCE)
    assert log.read_text().count("reached the connection limit") == 1


# -- the log


@pytest.mark.heavy
def test_a_burst_of_requests_is_one_line_of_log_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """With the highest figure, and what it means."""

    def slow(_request: Request) -> Response:
        threading.Event().wait(0.01)
        return Response("slow")

    app = app_with(("/slow", slow))
    began = time.monotonic()
    with serving(app, threads=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(150)]
        for client in clients:
            assert client.get("/page").response()[2] == b"the page"
        for client in clients:
            client.get("/slow")
        for client in clients:
            assert client.response()[2] == b"slow"
        wait_until(lambda: caplog.records)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) <= 2 + time.monotonic() - began
    figures = [int(re.search(r"Task queue depth is (\d+)", line)[1]) for line in lines]  # type: ignore[index]
    assert 100 < max(figures) <= 150
    assert "wait for one of the 2 threads ([server:main] threads)" in lines[0]


def test_a_view_that_fails_in_a_burst_is_one_traceback_a_second(caplog: pytest.LogCaptureFixture) -> None:
    def failing(_request: Request) -> Response:
        raise ValueError("on purpose")

    with serving(app_with(("/failing/{name}", failing))) as server:
        began = time.monotonic()
        for number in range(100):
            with Client(port_of(server)) as client:
                assert client.get(f"/failing/{number}").response()[0] == 500
        taken = time.monotonic() - began
    assert 1 <= len([record for record in caplog.records if record.exc_info]) <= 1 + taken


# -- the end


STOPPING = """
import os, signal, sys, threading
from pushdemo.server import Server
from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import sse
topic, pace = Topic("a", content_type="text/plain"), Pace()
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return environ["pushdemo.park"](Subscription(topic, sse, pace))
server = Server(app, listen="127.0.0.1:0", io_uring=sys.argv[2])
print(server.addresses[0][1], flush=True)
def burst():
    sys.stdin.read(1)
    for number in range(int(sys.argv[1])):
        topic.publish(str(number))
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=burst, daemon=True).start()
server.run()
"""


@pytest.mark.parametrize("io_uring", ["true", "false"])
@pytest.mark.parametrize(("count", "burst"), [(200, 300), pytest.param(5_000, 100, marks=pytest.mark.heavy)])
def test_a_stop_in_a_burst_tells_everyone_and_is_over_in_two_seconds(count: int, burst: int, io_uring: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < count + 300:
        pytest.skip(f"needs {count + 300} open files")
    command = [sys.executable, "-W", "ignore", "-c", STOPPING, str(burst), io_uring]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout
        assert process.stdin
        port = int(process.stdout.readline())
        clients = [stack.enter_context(Client(port)).get("/") for _ in range(count)]
        for client in clients:
            assert client.head()[0] == 200
            client.chunk()
        process.stdin.write(b"!")
        process.stdin.flush()
        began = time.monotonic()
        process.wait(PATIENCE)
        taken = time.monotonic() - began
        told = [b"retry: " in client.rest() for client in clients]
        assert told.count(True) == count
        assert taken < 2.5  # it was told to stop some time after `began`
        assert process.returncode == 0


# -- forks


FORKING = """
import multiprocessing, os, signal, sys, time
from pushdemo.server import Server
from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import sse
topic, pace = Topic("a", content_type="text/plain"), Pace()
fork = multiprocessing.get_context("fork")
def report(pipe):
    pipe.send([str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)])
    topic.publish("from the child")  # which nobody hears
    time.sleep(60)
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/stream":
        return environ["pushdemo.park"](Subscription(topic, sse, pace))
    if environ["PATH_INFO"] == "/publish":
        topic.publish("the news")
        return [b"published"]
    ours, theirs = fork.Pipe()
    child = fork.Process(target=report, args=(theirs,), daemon=environ["PATH_INFO"] != "/orphan")
    child.start()
    handlers = ours.recv()
    if environ["PATH_INFO"] != "/terminated":
        return [f"{child.pid} {handlers}".encode()]
    child.terminate()
    child.join(3)
    return [f"{child.exitcode} {handlers}".encode()]
server = Server(app, listen="127.0.0.1:0")
print(server.addresses[0][1], flush=True)
server.run()
"""


@contextmanager
def forking() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = [sys.executable, "-W", "ignore", "-c", FORKING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_process_that_a_view_forks_has_its_own_signals() -> None:
    with forking() as (_process, port), Client(port) as client:
        body = client.get("/terminated").response()[2].decode()
    assert body.startswith("-15 ")
    assert body.count("stop") == 0
    assert f"'{signal.SIG_DFL.value}'" in body
    assert "default_int_handler" in body


def test_a_daemonic_child_does_not_keep_the_server_from_stopping() -> None:
    with forking() as (process, port):
        with Client(port) as client:
            child = int(client.get("/daemonic").response()[2].split()[0])
        process.terminate()
        assert process.wait(10) == 0
        wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_a_child_that_outlives_the_server_keeps_neither_its_port_nor_its_clients() -> None:
    with forking() as (process, port), Client(port) as stream, Client(port) as idle:
        assert stream.get("/stream").head()[0] == 200
        stream.chunk()
        child = int(idle.get("/orphan").response()[2].split()[0])
        try:
            assert idle.get("/publish").response()[2] == b"published"
            heard = stream.until(b"the news")
            assert b"from the child" not in heard
            process.send_signal(signal.SIGTERM)
            assert b"retry: " in stream.rest()
            assert idle.rest() == b""
            with socket.create_server(("127.0.0.1", port)):
                pass
            assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.heavy
def test_forks_while_publishing_lose_and_repeat_nothing() -> None:
    app = app_with(history="100000")
    topic = app.registry["pushdemo.topics"]["news"]
    over = threading.Event()

    def publish() -> None:
        number = 0
        while not over.is_set():
            topic.publish(f"({number})")
            number += 1
            over.wait(0.0005)
        topic.publish("(last)")

    with serving(app) as server, ExitStack() as stack:
        streams = [stack.enter_context(Client(port_of(server))).get("/news?transport=sse") for _ in range(5)]
        for stream in streams:
            assert stream.head()[0] == 200
            stream.chunk()
        publisher = threading.Thread(target=publish)
        publisher.start()
        for _ in range(30):
            assert in_child(lambda: topic.publish("(child)").body) == b"(child)"
        over.set()
        publisher.join(PATIENCE)
        said = [stream.until(b"(last)") for stream in streams]
    for each in said:
        numbers = [int(number) for number in re.findall(rb"\((\d+)\)", each)]
        assert numbers == list(range(len(numbers)))
        assert b"(child)" not in each


# -- what a query may say

ODD = ("%ff", "%00", "%c0%af", "\xff", "%", "%zz", "a=%ff&b", "width=%ff", "room=%ff", "key=%ff", "topic=%ff", "&&==")
PATHS = (
    "/",
    "/server/index",
    "/load",
    "/load/index",
    "/load/chart",
    "/primes",
    "/prime",
    "/document",
    "/document/lines",
    "/job",
    "/job/run",
    "/status",
    "/status/stream",
    "/metrics",
    "/health/live",
    "/health/ready",
    "/static/push.js",
    "/nowhere",
    "/%ff",
    "/static/%ff",
)


def test_no_query_and_no_path_is_an_error_of_the_servers() -> None:
    app = demo.main()
    with serving(app) as server:
        for path in PATHS:
            for odd in ("", *ODD):
                with Client(port_of(server)) as client:
                    client.sock.sendall(f"HEAD {path}?{odd} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
                    status, _ = client.head()
                    assert status < 500, (path, odd)
                with Client(port_of(server)) as client:
                    client.sock.sendall(f"GET {path}?{odd} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
                    status, headers = client.head()
                    assert status < 500, (path, odd)
                    if status >= 400 and headers.get("x-content-type-options") != "nosniff":
                        body = client.exactly(int(headers["content-length"]))
                        assert b"(generated by waitress)" in body, (path, odd)  # the application has not seen it


# -- clients that come and go


@pytest.mark.parametrize("io_uring", ["true", "false"])
@pytest.mark.parametrize("cycles", [150, pytest.param(3_000, marks=pytest.mark.heavy)])
def test_clients_that_come_and_go_change_nothing_for_those_who_stay(io_uring: str, cycles: int) -> None:
    """Each chunk that these get is checked: descriptors are used again at once, and many sends share a system call."""
    app = app_with(history="100000")  # who reads slowly on a busy machine falls behind, and is not reset
    topic, places = app.registry["pushdemo.topics"]["news"], app.registry["pushdemo.clients"].all
    over = threading.Event()
    heard: dict[int, bytearray] = {}

    def publish() -> None:
        number = 0
        while not over.is_set():
            topic.publish(f"({number})" + "x" * (number % 7) * 50)
            number += 1
            over.wait(0.002)
        topic.publish("(end)")

    def stay(clients: list[Client]) -> None:
        left = dict(enumerate(clients))
        while left:
            for number, client in list(left.items()):
                data = heard.setdefault(number, bytearray())
                data += client.some()
                if b"(end)" in data[-1_000:]:
                    del left[number]

    def come_and_go(port: int, times: int) -> None:
        for number in range(times):
            with Client(port) as client:
                client.get(f"/news?transport={('sse', 'jsonlines', 'multipart', 'longpoll')[number % 4]}").head()
                client.some()
                if number % 3 == 0:
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(app, io_uring=io_uring) as server, ExitStack() as stack:
        port = port_of(server)
        staying = [stack.enter_context(Client(port)).get("/news?transport=sse") for _ in range(80)]
        for client in staying:
            assert client.head()[0] == 200
            client.chunk()
        threads = [threading.Thread(target=publish), threading.Thread(target=stay, args=(staying,))]
        goers = [threading.Thread(target=come_and_go, args=(port, cycles // 3)) for _ in range(3)]
        for thread in [*threads, *goers]:
            thread.start()
        for thread in goers:
            thread.join()
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
        wait_until(lambda: places.taken == 80)
    for data in heard.values():
        body, _ = unchunked(bytes(data))
        numbers = [int(number) for number in re.findall(rb"^data: \((\d+)\)", body, re.M)]
        missing = [after for before, after in pairwise(numbers) if after != before + 1]
        assert missing == []
        for number, filling in re.findall(rb"^data: \((\d+)\)(x*)$", body, re.M):
            assert len(filling) == int(number) % 7 * 50
