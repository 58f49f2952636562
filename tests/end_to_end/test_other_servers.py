"""The same responses where nobody parks them: plain waitress, gunicorn, and wsgiref with its validator between."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

import pytest
import waitress.server

from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import jsonlines
from tests.fixtureapps import newsroom
from tests.support import PATIENCE, ROOT, Client, wait_until

STREAMS = ("multipart", "sse", "jsonlines")
THREADS = 4
MAX_THREADS = THREADS - 1
INI = {"pushdemo.max_threads": str(MAX_THREADS), "pushdemo.heartbeat": "0.03", "pushdemo.longpoll.timeout": "0.3"}


class Threaded(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    failures: list[BaseException | None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.failures.append(sys.exception())


class Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def on_wsgiref(tmp_path: Path) -> Iterator[int]:
    """wsgiref with a thread for each request; its validator raises for whatever WSGI does not allow."""
    app = newsroom.main(**INI)
    server = make_server("127.0.0.1", 0, validator(app), server_class=Threaded, handler_class=Silent)
    server.failures = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        for topic in app.registry["pushdemo.topics"].values():
            topic.close()
        server.shutdown()
        thread.join()
        server.server_close()
    assert server.failures == []


@contextmanager
def on_waitress(tmp_path: Path) -> Iterator[int]:
    """waitress as it comes."""
    app = newsroom.main(**INI)
    map: dict[int, Any] = {}
    server = waitress.server.create_server(app, map=map, listen="127.0.0.1:0", threads=THREADS)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        for topic in app.registry["pushdemo.topics"].values():
            topic.close()
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(lambda: [dispatcher.close() for dispatcher in list(map.values())])
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def on_gunicorn(tmp_path: Path) -> Iterator[int]:
    """gunicorn with threads, in a process of its own."""
    pytest.importorskip("gunicorn", reason="gunicorn is missing: pip install gunicorn")
    path = tmp_path / "gunicorn.log"
    (tmp_path / "held.py").write_text(
        f"from tests.fixtureapps import newsroom\napplication = newsroom.main(**{INI!r})\n", encoding="utf-8"
    )
    options = [
        "--worker-class=gthread",
        f"--threads={THREADS}",
        "--bind=127.0.0.1:0",
        f"--pythonpath={tmp_path},{ROOT}",
    ]
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *options, "held"]
    with path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path) as process:

        def address() -> re.Match[str] | None:
            assert process.poll() is None, path.read_text()
            return re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", path.read_text())

        try:
            port = int(wait_until(address, what="gunicorn's address")[1])
            wait_until(lambda: "cannot park responses" in path.read_text(), what="the warning, before any request")
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE)
    failed = re.findall(r"Error handling request (?:GET )?(\S+)", path.read_text())
    assert [target for target in failed if not target.startswith("/broken/")] == []


SERVERS = {"wsgiref": on_wsgiref, "waitress": on_waitress, "gunicorn": on_gunicorn}


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with SERVERS[request.param](tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture(autouse=True)
def _nobody_is_held(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the server as it was: a client that left is noticed at the next heartbeat."""
    yield
    if "port" in request.fixturenames:
        port = request.getfixturevalue("port")
        wait_until(lambda: held(port)["news"] == 0, what="the end of the last client")


def fetch(port: int, path: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body, PATIENCE) as response:
        return bytes(response.read())


def held(port: int) -> dict[str, int]:
    return dict(json.loads(fetch(port, "/held")))


def publish(port: int, text: str) -> str:
    return fetch(port, "/publish/news", text.encode()).decode()


class Stream:
    """A client that reads a stream, chunked or not."""

    def __init__(self, port: int, transport: str, *headers: str) -> None:
        self.client = Client(port).get(f"/push/news?transport={transport}", *headers)
        self.status, self.headers = self.client.head()
        self.body = b""

    def until(self, mark: str) -> str:
        while mark.encode() not in self.body:
            chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
            data = self.client.chunk() if chunked else self.client.some()
            assert data, self.body
            self.body += data
        found, _, self.body = self.body.partition(mark.encode())
        return (found + mark.encode()).decode()

    def close(self) -> None:
        self.client.sock.close()


@contextmanager
def streams(port: int, *transports: str) -> Iterator[list[Stream]]:
    with ExitStack() as stack:
        opened = []
        for transport in transports:
            opened.append(Stream(port, transport))
            stack.callback(opened[-1].close)
        yield opened


@pytest.mark.parametrize("transport", STREAMS)
def test_a_stream_brings_each_message_when_it_is_published(port: int, transport: str) -> None:
    with streams(port, transport) as (stream,):
        assert stream.status == 200
        for text in ("first", "second"):
            id = publish(port, text)
            assert id in stream.until(text)


def test_a_quiet_stream_is_kept_alive(port: int) -> None:
    with streams(port, "sse") as (stream,):
        stream.until(": heartbeat\n")
        stream.until(": heartbeat\n")


def test_a_client_that_comes_back_gets_what_it_missed(port: int) -> None:
    ids = [publish(port, text) for text in ("one", "two", "three")]
    stream = Stream(port, "sse", f"Last-Event-ID: {ids[0]}")
    assert re.findall("data: (.*)", stream.until("data: three\n\n")) == ["two", "three"]
    stream.close()
    stream = Stream(port, "sse", "Last-Event-ID: elsewhere-7")
    assert "event: reset" in stream.until("data: three\n\n")
    stream.close()


def test_a_long_poll_waits_for_the_next_message_or_its_time(port: int) -> None:
    id = publish(port, "before")
    waited = json.loads(fetch(port, f"/push/news?transport=longpoll&last_event_id={id}"))
    assert waited == {"state": "waiting", "messages": [], "last_event_id": id}
    with Client(port) as client:
        client.get(f"/push/news?transport=longpoll&last_event_id={id}")
        after = publish(port, "after")
        status, _, body = client.response()
        assert status == 200
        assert json.loads(body)["messages"] == [{"id": after, "content": "after"}]


def test_head_gets_the_headers(port: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/push/news?transport=sse", method="HEAD")
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.headers["Content-Type"] == "text/event-stream;charset=utf-8"
        assert response.read() == b""


def test_the_last_thread_is_for_the_pages(port: int) -> None:
    with streams(port, *["sse"] * MAX_THREADS):
        with Client(port) as client:
            status, headers, body = client.get("/push/news?transport=sse").response()
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert b"threads that may hold a client are taken" in body
        assert fetch(port, "/page") == b"the page"


@pytest.mark.parametrize("leave", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_RDWR)])
def test_a_client_that_leaves_is_noticed_at_the_next_heartbeat(
    port: int, leave: Callable[[socket.socket], None]
) -> None:
    with streams(port, "sse", "jsonlines") as (first, second):
        assert held(port)["news"] == 2
        leave(first.client.sock)
        wait_until(lambda: held(port)["news"] == 1)
        publish(port, "still here")
        second.until("still here")


def test_a_stream_that_an_error_takes_the_place_of_leaves_no_client_behind(port: int) -> None:
    for transport in (*STREAMS, "longpoll"):
        with Client(port) as client:
            assert client.get(f"/broken/news?transport={transport}").head()[0] == 500
    with streams(port, *["sse"] * MAX_THREADS) as opened:
        assert [stream.status for stream in opened] == [200] * MAX_THREADS


class LastWord(Topic):
    """A topic whose publisher says its last word, and ends it, right behind a look that has found nothing new."""

    due = False

    def following(self, position: int) -> tuple[Message | None, bool]:
        found = super().following(position)
        if found[0] is None and self.due and not self.ended:
            self.publish("last")
            self.end()
        return found


def test_a_message_right_before_the_end_is_not_lost() -> None:
    topic = LastWord("news", content_type="text/plain")
    stream = iter(Subscription(topic, jsonlines, Pace()))
    next(stream)
    topic.due = True
    lines = map(json.loads, b"".join(stream).splitlines())
    assert [line.get("content") or line["state"] for line in lines] == ["last", "done"]
