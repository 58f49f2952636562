"""Our server on real sockets, in the test's process: what HTTP may ask of it while responses are parked."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from waitress.channel import ClientDisconnected

from pushdemo.delivery import sending, tcp
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.server import Server, parking
from pushdemo.server import server as server_module
from pushdemo.server.parking import ParkingChannel, ParkingRequest, ParkingTask
from pushdemo.topics.topic import Topic
from pushdemo.transports import sse
from tests.fixtureapps import newsroom
from tests.support import PATIENCE, SOON, Client, port_of, serving, wait_until

STREAMS = ("multipart", "sse", "jsonlines")


class Newsroom:
    """The application of fixtureapps/newsroom.py behind our server."""

    def __init__(self, app: Any, server: Server) -> None:
        self.app = app
        self.server = server
        self.news: Topic = app.registry["pushdemo.topics"]["news"]

    @property
    def port(self) -> int:
        return port_of(self.server)

    @property
    def held(self) -> tuple[int, int]:
        """Places taken, and clients of the topic: both are taken and given back once for each client."""
        return self.app.registry["pushdemo.clients"].all.taken, self.news.clients

    def client(self) -> Client:
        return Client(self.port)

    def last(self) -> str:
        """The id of the newest message."""
        return self.news.id_at(self.news.head)

    def poll(self, client: Client, *headers: str, version: str = "1.1") -> Client:
        """Ask for what comes next, and wait until the request is parked."""
        before = self.news.clients
        client.get(f"/push/news?transport=longpoll&last_event_id={self.last()}", *headers, version=version)
        wait_until(lambda: self.news.clients == before + 1)
        return client

    def stream(self, client: Client, transport: str = "jsonlines", **request: str) -> Client:
        """Open a stream, and read its headers and first bytes."""
        client.get(f"/push/news?transport={transport}&last_event_id={self.last()}", **request)
        client.head()
        client.until({"multipart": b"\r\n", "sse": b"retry: 3000\n", "jsonlines": b"}\n"}[transport])
        return client


@contextmanager
def newsroom_on(ini: dict[str, str] | None = None, **settings: Any) -> Iterator[Newsroom]:
    app = newsroom.main(**(ini or {}))
    with serving(app, **settings) as server:
        yield Newsroom(app, server)


@pytest.fixture
def site() -> Iterator[Newsroom]:
    with newsroom_on() as site:
        yield site


def messages(body: bytes) -> list[str]:
    return [message["content"] for message in json.loads(body)["messages"]]


def requests(*paths: str) -> bytes:
    """One packet with requests behind each other."""
    return "".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths).encode()


def reset(sock: socket.socket) -> None:
    """Close with a reset (RST) instead of a farewell."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def small_reader(site: Newsroom) -> Client:
    """A client whose socket takes little before it is full."""
    client = Client.__new__(Client)
    client.buffer = b""
    client.sock = socket.socket()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.sock.settimeout(PATIENCE)
    client.sock.connect(("127.0.0.1", site.port))
    return client


# -- a thread is not what a client costs


def test_more_clients_than_threads_hold_streams_and_polls_while_pages_answer(site: Newsroom) -> None:
    before = set(threading.enumerate())
    with ExitStack() as stack:
        streams = [site.stream(stack.enter_context(site.client()), STREAMS[n % 3]) for n in range(30)]
        polls = [site.poll(stack.enter_context(site.client())) for _ in range(30)]
        assert site.held == (60, 60)
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"pushdemo-hub"}
        with site.client() as client:
            assert client.get("/page").response()[2] == b"the page"
        site.news.publish("a")
        for stream in streams:
            stream.until(b"a")
        for poll in polls:
            assert messages(poll.response()[2]) == ["a"]
    wait_until(lambda: site.held == (0, 0))


def test_parked_sockets_leave_waitresss_map(site: Newsroom) -> None:
    before = len(site.server._map)
    with ExitStack() as stack:
        for _ in range(10):
            site.stream(stack.enter_context(site.client()))
            site.poll(stack.enter_context(site.client()))
        wait_until(lambda: len(site.server._map) == before)


def test_parked_clients_do_not_count_against_the_connection_limit() -> None:
    with newsroom_on(connection_limit=20) as site, ExitStack() as stack:
        for _ in range(40):
            site.stream(stack.enter_context(site.client()))
        with site.client() as client:
            assert client.get("/page").response()[2] == b"the page"


# -- versions, methods, addresses


@pytest.mark.parametrize("transport", STREAMS)
def test_http_1_1_gets_chunks_and_http_1_0_a_stream_that_ends_with_the_connection(
    site: Newsroom, transport: str
) -> None:
    with site.client() as new, site.client() as old:
        for client, version in ((new, "1.1"), (old, "1.0")):
            client.get(f"/push/news?transport={transport}", version=version)
        status, headers = new.head()
        assert (status, headers["transfer-encoding"], headers["connection"]) == (200, "chunked", "close")
        status, headers = old.head()
        assert (status, headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in headers
        site.news.publish("a")
        site.news.end()
        assert old.rest() == b"".join(iter(new.chunk, b""))
        assert new.rest() == b""
    wait_until(lambda: site.held == (0, 0))


@pytest.mark.parametrize("transport", [*STREAMS, "longpoll"])
def test_head_gets_the_headers_and_the_connection_goes_on(site: Newsroom, transport: str) -> None:
    with site.client() as client:
        client.get(f"/push/news?transport={transport}", method="HEAD")
        status, headers = client.head()
        assert status == 200
        assert "no-store" in headers["cache-control"]
        if headers.get("connection") != "close":
            assert client.get("/page").response()[2] == b"the page"
        else:
            assert client.rest() == b""
    assert site.held == (0, 0)


def test_a_poll_keeps_the_connection_as_its_request_asks(site: Newsroom) -> None:
    with site.client() as client:
        for text in ("a", "b", "c"):
            site.poll(client)
            site.news.publish(text)
            status, headers, body = client.response()
            assert (status, messages(body)) == (200, [text])
            assert "connection" not in headers
        site.poll(client, "Connection: close")
        site.news.publish("d")
        status, headers, body = client.response()
        assert (headers["connection"], messages(body)) == ("close", ["d"])
        assert client.rest() == b""
    with site.client() as client:
        site.poll(client, "Connection: keep-alive", version="1.0")
        site.news.publish("e")
        status, headers, body = client.response()
        assert (headers["connection"], messages(body)) == ("Keep-Alive", ["e"])
        site.poll(client, version="1.0")
        site.news.publish("f")
        status, headers, body = client.response()
        assert (headers["connection"], messages(body)) == ("close", ["f"])
        assert client.rest() == b""


def test_a_stream_and_a_poll_over_ipv6() -> None:
    with newsroom_on(listen="[::1]:0") as site, Client(site.port, "::1") as stream, Client(site.port, "::1") as poll:
        site.stream(stream)
        site.poll(poll)
        site.news.publish("a")
        assert b'"a"' in stream.until(b'a"}')
        assert messages(poll.response()[2]) == ["a"]


def test_a_stream_and_a_poll_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with newsroom_on(unix_socket=path) as site, ExitStack() as stack:
        clients = []
        for _ in range(2):
            client = Client.__new__(Client)
            client.buffer = b""
            client.sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.sock.settimeout(PATIENCE)
            client.sock.connect(path)
            clients.append(client)
        stream, poll = clients
        site.stream(stream)
        site.poll(poll)
        site.news.publish("a")
        assert b'"a"' in stream.until(b'a"}')
        assert messages(poll.response()[2]) == ["a"]
        assert poll.get("/page").response()[2] == b"the page"
        stream.sock.close()
        wait_until(lambda: site.held == (0, 0))


def test_below_a_url_prefix() -> None:
    with newsroom_on(url_prefix="/below") as site, site.client() as stream, site.client() as poll:
        assert poll.get("/below/where").response()[2] == b"/below|/where"
        stream.get("/below/push/news?transport=sse")
        assert stream.head()[0] == 200
        poll.get("/below/push/news?transport=longpoll")
        wait_until(lambda: site.held == (2, 2))
        site.news.publish("a")
        stream.until(b"data: a\n\n")
        assert messages(poll.response()[2]) == ["a"]


def test_on_several_addresses_at_once() -> None:
    with newsroom_on(listen="127.0.0.1:0 127.0.0.1:0 [::1]:0") as site, ExitStack() as stack:
        assert len(site.server.addresses) == 3
        streams, polls = [], []
        for host, port in site.server.addresses:
            streams.append(site.stream(stack.enter_context(Client(int(port), host))))
            polls.append(site.poll(stack.enter_context(Client(int(port), host))))
        site.news.publish("a")
        for stream in streams:
            stream.until(b'"a"}')
        for poll in polls:
            assert messages(poll.response()[2]) == ["a"]
            assert poll.get("/page").response()[2] == b"the page"


def test_an_upload_that_expects_100_continue_beside_streams(site: Newsroom) -> None:
    body = os.urandom(300_000)
    with ExitStack() as stack:
        streams = [site.stream(stack.enter_context(site.client())) for _ in range(10)]
        client = stack.enter_context(site.client())
        for _ in range(2):
            client.get("/echo", f"Content-Length: {len(body)}", "Expect: 100-continue", method="POST")
            assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            site.news.publish("a")
            client.sock.sendall(body)
            assert client.response()[2] == body
            for stream in streams:
                stream.until(b'"a"}')


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nonsense": "1"}, "Unknown adjustment 'nonsense'"),
        ({"asyncore_use_poll": "false"}, "must be true"),
        ({"threads": "many"}, "many"),
        ({"io_uring": "perhaps"}, "io_uring = perhaps: must be true or false"),
    ],
)
def test_a_wrong_setting_is_refused_and_leaves_no_open_file(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Server(newsroom.main(), listen="127.0.0.1:0", **settings)
    gc.collect()  # a socket left open is a warning here, which is an error


@pytest.mark.io_uring
@pytest.mark.parametrize("io_uring", ["true", "false"])
def test_a_ring_is_opened_unless_the_ini_says_no(monkeypatch: pytest.MonkeyPatch, io_uring: str) -> None:
    opened: list[Any] = []
    ring = sending.Ring

    def counted() -> Any:
        opened.append(ring())
        return opened[-1]

    monkeypatch.setattr(sending, "Ring", counted)
    with newsroom_on(io_uring=io_uring) as site, site.client() as client:
        site.stream(client)
        site.news.publish("a")
        client.until(b'"a"}')
        assert len(opened) == (io_uring == "true")


def test_what_clients_do_while_their_requests_wait_for_a_thread_does_not_keep_the_loop_busy() -> None:
    """They send more, or leave: both are seen to when it is their turn, and long answers are written meanwhile."""
    came, goes_on = threading.Semaphore(0), threading.Event()

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        came.release()
        assert goes_on.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "300000")])
        return [b"x" * 300_000]

    with serving(slow, threads=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(30)]
        for _ in range(2):  # in the second round the connections are known already
            goes_on.clear()
            for client in clients:
                client.sock.sendall(requests("/"))
            for _ in range(2):
                assert came.acquire(timeout=PATIENCE)
            for client in clients[:20]:
                client.sock.sendall(requests("/", "/")[:-1])
            spent = time.process_time()
            threading.Event().wait(0.3)
            assert time.process_time() - spent < 0.15
            goes_on.set()
            for client in clients[:20]:
                client.sock.sendall(b"\n")
            for number, client in enumerate(clients):
                for _ in range(3 if number < 20 else 1):
                    assert client.response()[2] == b"x" * 300_000
            for _ in range(28 + 40):
                assert came.acquire(timeout=PATIENCE)
        goes_on.clear()
        for client in clients:
            client.get("/")
        for _ in range(2):
            assert came.acquire(timeout=PATIENCE)
        for number, client in enumerate(clients):
            reset(client.sock) if number % 2 else client.sock.close()
        goes_on.set()
        wait_until(lambda: not any(listener.channels for listener in server._listeners))


@pytest.mark.parametrize("lookahead", [0, 1, 5])
def test_long_answers_to_requests_that_come_meanwhile(lookahead: int) -> None:
    """A worker that waits for its client needs the loop, also for a connection that has sent more requests since.

    Each client has a thread: here they read one after the other, and those who do not read yet hold theirs.
    """
    body = os.urandom(1_000_000)

    def much(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    with (
        serving(much, threads=10, channel_request_lookahead=lookahead, outbuf_high_watermark=100_000) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(port_of(server))) for _ in range(10)]
        for number in range(1, 5):
            for client in clients:
                client.sock.sendall(requests(*["/"] * number))
        for _ in range(1 + 2 + 3 + 4):
            for client in clients:
                assert client.response()[2] == body


# -- pipelining


@pytest.mark.heavy
def test_requests_pipelined_behind_a_poll_are_answered_after_it(site: Newsroom) -> None:
    """In the same packet and in a later one; many times, since two threads meet at each."""
    with site.client() as client:
        for number in range(100):
            poll = f"/push/news?transport=longpoll&last_event_id={site.last()}"
            client.sock.sendall(requests(poll, "/page", "/where"))
            wait_until(lambda: site.news.clients)
            client.sock.sendall(requests("/page?size=3"))
            site.news.publish(str(number))
            assert messages(client.response()[2]) == [str(number)]
            assert client.response()[2] == b"the page"
            assert client.response()[2] == b"|/where"
            assert client.response()[2] == b"xxx"


def test_polls_pipelined_behind_a_poll_wait_for_their_turn(site: Newsroom) -> None:
    poll = f"/push/news?transport=longpoll&last_event_id={site.news.epoch}-"
    with site.client() as client:
        client.sock.sendall(requests(*(f"{poll}{number}" for number in range(5))))
        for number in range(5):
            wait_until(lambda: site.news.clients)
            site.news.publish(str(number))
            assert messages(client.response()[2]) == [str(number)]


def test_a_response_that_is_still_under_way_does_not_wait_for_the_poll_behind_it(site: Newsroom) -> None:
    size = 3_000_000
    with small_reader(site) as client:
        client.sock.sendall(requests(f"/page?size={size}", "/push/news?transport=longpoll"))
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        wait_until(lambda: site.news.clients)
        assert client.exactly(size) == b"x" * size
        site.news.publish("a")
        assert messages(client.response()[2]) == ["a"]
        assert client.get("/page").response()[2] == b"the page"


@pytest.mark.filterwarnings("ignore:send_bytes")
@pytest.mark.parametrize("send_bytes", [1, 18_000])
def test_a_response_that_waitress_has_not_sent_yet_does_not_wait_for_the_poll_behind_it(send_bytes: int) -> None:
    with newsroom_on(send_bytes=send_bytes) as site, site.client() as client:
        client.sock.sendall(requests("/page", "/push/news?transport=longpoll"))
        wait_until(lambda: site.news.clients)
        assert client.response()[2] == b"the page"
        site.news.publish("a")
        assert messages(client.response()[2]) == ["a"]


def test_a_response_that_is_still_under_way_comes_before_the_stream_behind_it(site: Newsroom) -> None:
    size = 3_000_000
    with small_reader(site) as client:
        client.sock.sendall(requests(f"/page?size={size}", "/push/news?transport=sse"))
        wait_until(lambda: site.news.clients)
        site.news.publish("a")
        assert client.response()[2] == b"x" * size
        assert client.head()[0] == 200
        client.until(b"data: a\n\n")


def test_an_upload_pipelined_behind_a_poll_is_told_to_continue_after_it(site: Newsroom) -> None:
    body = b"y" * 1_000
    with site.client() as client:
        client.sock.sendall(
            requests("/push/news?transport=longpoll")
            + b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        )
        wait_until(lambda: site.news.clients)
        site.news.publish("a")
        assert messages(client.response()[2]) == ["a"]
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sock.sendall(body)
        assert client.response()[2] == body


def test_an_upload_pipelined_behind_a_page_is_told_to_continue_after_it(site: Newsroom) -> None:
    expecting = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    with site.client() as client:
        for number in range(3):
            client.sock.sendall(requests("/page", "/where") + expecting)
            assert client.response()[2] == b"the page"
            assert client.response()[2] == b"|/where"
            assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            body = b"%d" % number * 1_000
            client.sock.sendall(body)
            assert client.response()[2] == body


def test_a_client_that_has_left_before_it_is_told_to_continue_is_left_to_the_loop(
    site: Newsroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker tells it, while the loop may be reading from its socket."""
    closers, close = list[str](), ParkingChannel.handle_close

    def closing(channel: ParkingChannel) -> None:
        closers.append(threading.current_thread().name)
        close(channel)

    monkeypatch.setattr(ParkingChannel, "handle_close", closing)
    with site.client() as client:
        client.get("/page").response()
        ((_, channel),) = site.server._listeners[0].channels.items()
        busy, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            busy.set()
            assert go_on.wait(PATIENCE)

        site.server._loop.call_soon(wait)  # it does not see the client leave
        try:
            assert busy.wait(PATIENCE)
            reset(client.sock)
            wait_until(channel.has_left)
            channel.request = ParkingRequest(channel.adj)
            channel.request.received(
                b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            assert channel.request.expect_continue
            channel.send_continue()
            assert closers == []
            assert channel.socket is not None
        finally:
            go_on.set()
        wait_until(lambda: channel.socket is None, what="the end of the connection")
        assert set(closers) == {"test-server"}
        channel.send_continue()  # by a worker that has just found it connected
        wait_until(lambda: not site.server._listeners[0].channels)
    with site.client() as client:
        assert client.get("/page").response()[2] == b"the page"


def test_pages_that_come_behind_a_stream_in_one_packet_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is parked while the loop is still reading the packet."""
    app, go_on, received = newsroom.main(), threading.Event(), ParkingRequest.received
    served, streaming = list[str](), list[ParkingChannel]()

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        served.append(environ["QUERY_STRING"])
        assert environ["QUERY_STRING"] != "busy" or go_on.wait(PATIENCE)
        return app(environ, start_response)

    def slow(request: ParkingRequest, data: bytes) -> int:
        if data.startswith(b"GET /page?behind=0 "):
            go_on.set()  # the thread, which is awake, takes the stream
            wait_until(lambda: streaming[0].socket is None, what="the stream, parked")
            threading.Event().wait(0.3)
        return int(received(request, data))

    monkeypatch.setattr(ParkingRequest, "received", slow)
    with serving(noting, threads=1) as server:
        site = Newsroom(app, server)
        with site.client() as stream:
            stream.get("/page?first").response()
            streaming.extend(server._listeners[0].channels.values())
            with site.client() as other:
                other.get("/page?busy")
                wait_until(lambda: "busy" in served)
                stream.sock.sendall(requests("/push/news?transport=sse", *(f"/page?behind={n}" for n in range(5))))
                assert other.response()[2] == b"the page"
                assert stream.head()[0] == 200
                assert other.get("/page?late").response()[2] == b"the page"  # after all that the thread had to do
            assert served == ["first", "busy", "transport=sse", "late"]
            assert streaming[0].requests == []
            for text in (b"a", b"b"):
                site.news.publish(text.decode())
                stream.until(b"data: %s\n\n" % text)
            assert site.held == (1, 1)
        wait_until(lambda: site.held == (0, 0))
        gone = weakref.ref(streaming.pop())

        def collected() -> bool:
            gc.collect()  # Pyramid's requests refer to themselves
            return gone() is None

        wait_until(collected, what="the end of the stream's channel")
    assert len(served) == 4


def test_an_answer_that_nobody_reads_does_not_stop_the_server() -> None:
    """More than waitress means to buffer, with a request behind it, for which waitress waits until it has been read."""
    with (
        newsroom_on(outbuf_high_watermark=100_000) as site,
        small_reader(site) as client,
        site.client() as other,
    ):
        client.sock.sendall(requests("/push/news?transport=longpoll", "/page"))
        wait_until(lambda: site.news.clients)
        text = "x" * 5_000_000
        site.news.publish(text)
        wait_until(lambda: site.news.clients == 0)
        for _ in range(3):
            assert other.get("/page").response()[2] == b"the page"
        assert messages(client.response()[2]) == [text]
        assert client.response()[2] == b"the page"


def test_waitress_may_look_ahead_while_a_poll_waits() -> None:
    with newsroom_on(channel_request_lookahead=5) as site, site.client() as client, site.client() as leaver:
        site.poll(client)
        for _ in range(3):
            client.get("/page")
        site.news.publish("a")
        assert messages(client.response()[2]) == ["a"]
        for _ in range(3):
            assert client.response()[2] == b"the page"
        site.poll(leaver).sock.close()
        wait_until(lambda: site.held == (0, 0), timeout=SOON)


# -- clients that misbehave


@pytest.mark.parametrize("transport", [*STREAMS, "longpoll"])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_is_noticed_soon_without_a_message(
    site: Newsroom, transport: str, leave: Callable[[socket.socket], None]
) -> None:
    closed: list[None] = []
    give = site.app.registry["pushdemo.clients"].all.give

    def counted() -> None:
        closed.append(None)
        give()

    site.app.registry["pushdemo.clients"].all.give = counted
    client = site.client()
    if transport == "longpoll":
        site.poll(client)
    else:
        site.stream(client, transport)
    leave(client.sock)
    wait_until(lambda: site.held == (0, 0), timeout=SOON)
    site.news.publish("a")
    with site.client() as other:  # the hub has had time to make a mistake
        site.stream(other)
        site.news.publish("b")
        other.until(b'"b"}')
    wait_until(lambda: site.held == (0, 0))
    assert len(closed) == 2


def test_a_client_that_has_left_before_its_answer_gives_its_place_back(site: Newsroom) -> None:
    for number in range(200):
        client = site.client()
        transport = (*STREAMS, "longpoll")[number % 4]
        client.get(f"/push/news?transport={transport}")
        if number % 3:
            reset(client.sock)
        else:
            client.sock.close()
    wait_until(lambda: site.held == (0, 0))
    with site.client() as client:
        assert client.get("/page").response()[2] == b"the page"


@pytest.mark.parametrize("transport", STREAMS)
def test_bytes_that_a_client_sends_on_its_stream_do_no_harm_and_too_many_end_it(site: Newsroom, transport: str) -> None:
    with site.client() as client, site.client() as poll:
        client.sock.sendall(requests(f"/push/news?transport={transport}") + b"GET /page HTTP/1.1\r\n" * 9)
        client.head()
        site.poll(poll)
        for _ in range(3):
            client.sock.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nwhatever" * 10)
        site.news.publish("a")
        client.until(b"a")
        assert messages(poll.response()[2]) == ["a"]
        with suppress(ConnectionError):  # reset, since there is more than the server has read
            for _ in range(50):
                client.sock.sendall(bytes(1_000))
        wait_until(lambda: site.held == (0, 0))


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_bytes_that_a_client_sends_without_end_cost_the_others_nothing(site: Newsroom, size: int) -> None:
    """On a stream they end it; behind a poll they wait in the socket for its answer."""
    over = threading.Event()

    def send_on(client: Client) -> None:
        with suppress(OSError):
            while not over.is_set():
                client.sock.send(b"x" * size)

    with site.client() as stream, site.client() as poll, site.client() as other:
        senders = [
            threading.Thread(target=send_on, args=(client,)) for client in (site.stream(stream), site.poll(poll))
        ]
        for client in (stream, poll):
            client.sock.settimeout(0.5)
        for sender in senders:
            sender.start()
        site.stream(other)
        wait_until(lambda: site.news.clients == 2)
        site.news.publish("a")
        other.until(b'"a"}')
        poll.sock.settimeout(PATIENCE)
        assert messages(poll.response()[2]) == ["a"]
        over.set()
        for sender in senders:
            sender.join(PATIENCE)


def test_a_client_that_reads_one_byte_at_a_time_gets_an_uncorrupted_stream(site: Newsroom) -> None:
    texts = [f"{number}:" + chr(97 + number % 26) * 900 for number in range(20)]
    with small_reader(site) as client:
        client.get("/push/news?transport=sse")
        wait_until(lambda: site.news.clients)
        for text in texts:
            site.news.publish(text)
        site.news.end()
        raw = b""
        while data := client.sock.recv(1):
            raw += data
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    client.buffer = body
    stream = b"".join(iter(client.chunk, b"")).decode()
    assert client.buffer == b""
    assert [line[6:] for line in stream.splitlines() if line.startswith("data: ")][:-1] == texts  # and the end's


@pytest.mark.parametrize("parked", [False, True])
def test_a_late_report_of_a_socket_does_no_harm(site: Newsroom, parked: bool) -> None:
    """What is reported of a descriptor may be of one that is closed since, and whose number is another's by now."""
    with site.client() as client:
        client.get("/page").response()
        ((fd, channel),) = site.server._listeners[0].channels.items()
        if parked:
            site.poll(client)
        done = threading.Event()

        def report() -> None:
            for events in (1, 2, 3):
                channel.ready(fd, events)
                channel.ready(fd + 1, events)
            done.set()

        site.server._loop.call_soon(report)
        assert done.wait(PATIENCE)
        if parked:
            site.news.publish("a")
            assert messages(client.response()[2]) == ["a"]
        assert client.get("/page").response()[2] == b"the page"


# -- applications that misbehave


@pytest.mark.parametrize("transport", [*STREAMS, "longpoll"])
def test_a_stream_that_an_error_takes_the_place_of_gives_its_place_back(site: Newsroom, transport: str) -> None:
    with site.client() as client:
        client.get(f"/broken/news?transport={transport}")
        assert client.response()[0] == 500
    wait_until(lambda: site.held == (0, 0))


@pytest.mark.parametrize("kind", ["stream", "poll"])
def test_a_response_that_fails_on_its_way_gives_its_place_back(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Here since it was never started; as where the client leaves between the headers and the first bytes."""
    topic, released = Topic("news", content_type="text/plain"), list[None]()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        release = partial(released.append, None)
        if kind == "stream":
            return environ["pushdemo.park"](Subscription(topic, sse, Pace(), "", release))
        return iter(environ["pushdemo.park"](LongPoll(topic, Pace(), "", release)))

    with serving(app) as server, Client(port_of(server)) as client:
        if kind == "poll":
            topic.publish("a")
        assert client.get("/").response()[0] == 500
        wait_until(lambda: released)
    assert len(released) == 1
    assert topic.clients == 0


def test_a_stream_that_somebody_wraps_is_iterated_in_its_thread_and_pages_answer(
    site: Newsroom, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(site.client()).get("/wrapped/news?transport=sse") for _ in range(4)]
        for client in clients:
            assert client.head()[0] == 200
        turned_away = [client for client in clients if client.some().count(b"retry:") == 2]
        assert len(turned_away) == 1  # the last thread is for the pages
        assert "no thread is left" in caplog.text
        with site.client() as client:
            assert client.get("/page").response()[2] == b"the page"
        site.news.publish("a")
        for client in clients:
            if client not in turned_away:
                client.until(b"data: a\n\n")
        site.news.end()
    wait_until(lambda: site.held == (0, 0))


def test_a_poll_that_somebody_wraps_is_answered_from_its_thread(site: Newsroom) -> None:
    with site.client() as client:
        client.get("/wrapped/news?transport=longpoll")
        wait_until(lambda: site.news.clients)
        site.news.publish("a")
        assert client.head()[0] == 200
        assert messages(client.chunk()) == ["a"]
    wait_until(lambda: site.held == (0, 0))


def test_a_middleware_that_passes_the_body_on_does_not_hinder_parking() -> None:
    app = newsroom.main()

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        return app(environ, start_response)

    with serving(middleware) as server:
        site = Newsroom(app, server)
        with ExitStack() as stack:
            for _ in range(8):
                site.stream(stack.enter_context(site.client()))
            with site.client() as client:
                assert client.get("/page").response()[2] == b"the page"


def test_a_middleware_that_forgets_to_close_what_it_iterates_costs_no_place(site: Newsroom) -> None:
    def forgetful(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from site.app(environ, start_response)

    with serving(forgetful, threads=2) as server:
        for _ in range(3):  # each holds the only thread that a stream may, and gives it back
            with Client(port_of(server)) as poll, Client(port_of(server)) as stream:
                poll.get(f"/push/news?transport=longpoll&last_event_id={site.last()}")
                wait_until(lambda: site.news.clients == 1)
                site.news.publish("a")
                poll.head()
                assert messages(poll.chunk()) == ["a"]
                wait_until(lambda: site.held == (0, 0))
                stream.get(f"/push/news?transport=sse&last_event_id={site.last()}").head()
                assert stream.chunk() == b"retry: 3000\n"
                stream.sock.close()
            # A thread that iterates sees who has left when it writes.
            wait_until(lambda: site.news.publish("b") and site.held == (0, 0))


@pytest.mark.heavy
def test_without_a_file_left_connections_wait_and_are_served_when_there_is_one(
    site: Newsroom, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_PAUSE", 0.1)
    with site.client() as held, socket.socket() as late:
        assert held.get("/page").response()[0] == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
        try:
            late.settimeout(PATIENCE)
            late.connect(("127.0.0.1", site.port))
            wait_until(lambda: "connections wait until others have gone" in caplog.text)
            assert held.get("/page").response()[2] == b"the page"
            wait_until(lambda: len(caplog.records) >= 2)  # it tries again, now and then
            assert len(caplog.records) < 20
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client = Client.__new__(Client)
        client.sock, client.buffer = late, b""
        assert client.get("/page").response()[2] == b"the page"


@pytest.mark.filterwarnings("ignore:send_bytes")
def test_the_files_behind_waitresss_buffers_are_closed(site: Newsroom) -> None:
    """Those of a response under way when the stream behind it leaves waitress, and of connections at the stop."""
    files = len(os.listdir("/proc/self/fd"))
    with (
        newsroom_on(outbuf_overflow=1_000, inbuf_overflow=1_000) as other,
        small_reader(other) as stream,
        small_reader(other) as page,
    ):
        stream.sock.sendall(requests("/page?size=3000000", "/push/news?transport=sse"))
        wait_until(lambda: other.news.clients)
        page.sock.sendall(requests("/page?size=3000000", "/page?size=3000000"))
        assert page.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        other.server.stop()
        wait_until(lambda: not other.news.clients)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    gc.collect()  # a file left to the collector is a warning here, which is an error


def test_a_request_is_let_go_of_when_it_is_over() -> None:
    """And not by a garbage collection some time later: what the application hangs on its environ may be big."""

    class Big:
        pass

    kept: list[weakref.ref[Big]] = []
    topic = Topic("news", content_type="text/plain")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["big"] = big = Big()
        kept.append(weakref.ref(big))
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/page":
            return [b"the page"]
        return environ["pushdemo.park"](Subscription(topic, sse, Pace()))

    gc.disable()
    try:
        with serving(app) as server, Client(port_of(server)) as page, Client(port_of(server)) as stream:
            for _ in range(2):
                assert page.get("/page").until(b"the page")
            stream.get("/stream").head()
            wait_until(lambda: len(kept) == 3 and not any(ref() for ref in kept), what="the end of the requests")
    finally:
        gc.enable()


# -- the process


def test_the_handlers_of_signals_are_the_servers_while_it_runs_and_what_they_were_afterwards() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        server = Server(newsroom.main(), listen="127.0.0.1:0")
        during: list[Any] = []

        def note(during: list[Any] = during, number: int = number) -> None:
            during.extend(signal.getsignal(number) for number in numbers)
            os.kill(os.getpid(), number)

        server._loop.call_soon(note)
        server.run()
        assert all(handler not in before for handler in during)
        assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.heavy
def test_a_stop_does_not_wait_for_a_view_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    came, goes_on = threading.Semaphore(0), threading.Event()

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        came.release()
        goes_on.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"late"]

    with ExitStack() as stack:
        stack.callback(goes_on.set)
        with serving(slow, threads=1) as server:
            clients = [stack.enter_context(Client(port_of(server))).get("/") for _ in range(2)]
            assert came.acquire(timeout=PATIENCE)
            start = time.monotonic()
        assert 0.5 < time.monotonic() - start < 5.0
        for client in clients:
            with suppress(ConnectionResetError):
                assert client.rest() == b""
    assert not came.acquire(blocking=False), "the second one was cancelled"


def test_who_comes_during_the_stop_is_refused_at_once() -> None:
    """And goes to another node, instead of waiting for one that is about to end."""
    refused: list[bool] = []
    with newsroom_on() as site, site.client() as client:
        site.stream(client)
        stop, port = site.server.hub.stop, site.port

        def stop_hub() -> None:
            with socket.socket() as late:
                refused.append(late.connect_ex(("127.0.0.1", port)) != 0)
            stop()

        site.server.hub.stop = stop_hub  # type: ignore[method-assign]
        site.server.stop()
        client.rest()
    assert refused == [True]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": "127.0.0.1:0"}, r"Serving on http://127\.0\.0\.1:\d+"),
        ({"listen": "[::1]:0"}, r"Serving on http://\[::1\]:\d+"),
        ({"unix_socket": "socket"}, r"Serving on .*/socket"),
    ],
    ids=["ipv4", "ipv6", "unix"],
)
def test_main_opens_as_many_files_as_it_may_and_says_where_it_serves_when_a_signal_ends_it(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    if "unix_socket" in settings:
        settings = {"unix_socket": str(tmp_path / settings["unix_socket"])}
    code = (
        "import logging, os, resource, signal\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "import pushdemo.server as it\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))\n"
        "class Stop(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        if record.getMessage().startswith('Serving on '): os.kill(os.getpid(), signal.SIGTERM)\n"
        "logging.getLogger('pushdemo').addHandler(Stop())\n"
        f"assert it.main(lambda *_: [], {{}}, **{settings!r}) == 0\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(said, run.stderr.splitlines()[-1])


# -- the end


def test_a_stop_ends_streams_cleanly_and_answers_polls() -> None:
    with newsroom_on() as site, ExitStack() as stack:
        streams = {name: site.stream(stack.enter_context(site.client()), name) for name in STREAMS}
        old = site.stream(stack.enter_context(site.client()), "sse", version="1.0")
        poll = site.poll(stack.enter_context(site.client()))
        site.server.stop()
        ends = {name: client.rest() for name, client in streams.items()}
        assert all(end.endswith(b"\r\n0\r\n\r\n") for end in ends.values())
        assert b"X-Retry: " in ends["multipart"]
        assert b"retry: " in ends["sse"]
        assert b'"retry": ' in ends["jsonlines"]
        assert re.fullmatch(rb"retry: \d+\n", old.rest())
        answer = json.loads(poll.response()[2])
        assert answer["state"] == "waiting"
        assert answer["last_event_id"] == site.last()
        assert 0 < answer["retry"] < 10_000
        assert poll.rest() == b""
    assert site.held == (0, 0)


def test_a_server_can_be_stopped_twice_and_when_it_has_stopped() -> None:
    with newsroom_on() as site:
        site.server.stop()
        site.server.stop()
    site.server.stop()


def test_a_stopped_server_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    files = set(os.listdir("/proc/self/fd"))
    with newsroom_on() as site, site.client() as client:
        site.stream(client)
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert set(os.listdir("/proc/self/fd")) <= files
    site.news.publish("a")
    assert site.news._listeners == ()


@pytest.mark.heavy
def test_clients_that_are_gone_leave_nothing_behind() -> None:
    def left(*kinds: type) -> int:
        gc.collect()  # Pyramid's requests refer to themselves
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    before = left(ParkingTask, Subscription, LongPoll), left(ParkingChannel)  # of tests before this one
    with newsroom_on(threads=2) as site:
        with ExitStack() as stack:
            for transport in STREAMS * 3:
                site.stream(stack.enter_context(site.client()), transport)
            for _ in range(9):
                site.poll(stack.enter_context(site.client()))
            site.news.publish("a")
        wait_until(lambda: site.held == (0, 0))
        wait_until(lambda: left(ParkingTask, Subscription, LongPoll) <= before[0])
        assert left(ParkingChannel) <= before[1] + 2  # waitress's threads each remember the last


def test_nothing_is_logged_about_clients_that_come_and_go(site: Newsroom, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clients = [site.client() for _ in range(40)]
    for number, client in enumerate(clients):
        site.poll(client) if number % 2 else site.stream(client)
    for number, client in enumerate(clients):
        (reset if number % 4 < 2 else socket.socket.close)(client.sock)
    wait_until(lambda: site.held == (0, 0))
    site.news.publish("a")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "exception" not in caplog.text


# -- arriving


class Slow:
    """An application with the path /slow, which takes until `go_on` is set. `came` counts requests that are served."""

    def __init__(self) -> None:
        self.came, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.came.release()
        assert environ["PATH_INFO"] != "/slow" or self.go_on.wait(PATIENCE)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    def wait_for_one(self) -> None:
        assert self.came.acquire(timeout=PATIENCE)

    def served(self) -> int:
        """How many have come that nobody has waited for."""
        count = 0
        while self.came.acquire(blocking=False):
            count += 1
        return count


@pytest.mark.parametrize("sent", ["at once", "when all are connected"])
def test_a_page_on_a_kept_connection_does_not_wait_for_all_who_come(sent: str) -> None:
    """All are accepted, and few are read from."""
    slow = Slow()
    with serving(slow, threads=1, backlog=500) as server, ExitStack() as stack:
        stack.callback(slow.go_on.set)
        (reception,) = [listener._reception for listener in server._listeners]
        kept = stack.enter_context(Client(port_of(server)))
        assert kept.get("/kept").response()[2] == b"/kept"
        slow.wait_for_one()
        clients = []
        for _ in range(200):
            client = stack.enter_context(Client(port_of(server)))
            clients.append(client if sent == "when all are connected" else client.get("/slow"))
        if sent == "when all are connected":
            wait_until(lambda: len(server._map) > 200)
            for client in clients:
                client.get("/slow")
        slow.wait_for_one()
        wait_until(lambda: len(reception.arrived) > 140 and reception.connections > 200)
        assert reception.connections < 210, "nobody is counted twice"
        kept.get("/kept")
        slow.go_on.set()
        assert kept.response()[2] == b"/kept"
        assert slow.served() < 150, "all the others came first"
        for client in clients:
            assert client.response()[2] == b"/slow"
        wait_until(lambda: not reception.arrived)


def test_who_has_arrived_and_left_again_holds_nobody_up() -> None:
    slow = Slow()
    with serving(slow, threads=1, backlog=500) as server, ExitStack() as stack:
        stack.callback(slow.go_on.set)
        (reception,) = [listener._reception for listener in server._listeners]
        clients = [stack.enter_context(Client(port_of(server))).get("/slow") for _ in range(100)]
        wait_until(lambda: len(reception.arrived) > 60)
        for number, client in enumerate(clients[20:80]):
            (reset if number % 2 else socket.socket.close)(client.sock)
        slow.go_on.set()
        for client in clients[:20] + clients[80:]:
            assert client.response()[2] == b"/slow"
        wait_until(lambda: not reception.arrived and not reception.accepted.number)
        wait_until(lambda: len(server._map) <= 45)


def test_who_has_arrived_is_closed_when_the_server_stops() -> None:
    slow = Slow()
    with ExitStack() as stack:
        stack.callback(slow.go_on.set)
        with serving(slow, threads=1, backlog=500) as server:
            clients = [stack.enter_context(Client(port_of(server))).get("/slow") for _ in range(100)]
            (reception,) = [listener._reception for listener in server._listeners]
            wait_until(lambda: len(reception.arrived) > 60)
            threading.Timer(0.2, slow.go_on.set).start()
        for client in clients[50:]:
            with suppress(ConnectionError):
                assert client.sock.recv(100) == b""


@contextmanager
def crowded() -> Iterator[tuple[Server, threading.Event]]:
    """A server with one thread, for which so many wait that nobody new is read from, until the event is set."""
    slow = Slow()
    with serving(slow, threads=1, backlog=500) as server, ExitStack() as stack:
        stack.callback(slow.go_on.set)
        early = stack.enter_context(Client(port_of(server)))
        wait_until(lambda: server._listeners[0].channels)
        for _ in range(17):
            stack.enter_context(Client(port_of(server))).get("/slow")
        wait_until(lambda: server._listeners[0]._reception.crowded)
        early.get("/early")
        wait_until(lambda: server._listeners[0]._reception.arrived)
        yield server, slow.go_on
        slow.go_on.set()
        assert early.response()[2] == b"/early"


def test_who_waits_for_a_turn_is_not_taken_for_idle() -> None:
    with crowded() as (server, _):
        (listener,) = server._listeners
        listener._listener.adj.channel_timeout = listener._listener.adj.cleanup_interval = 0
        listener._cleanup = 0.0
        wait_until(lambda: listener._cleanup)


def test_a_limit_of_connections_is_one_for_all_listeners() -> None:
    with serving(lambda *_: [], listen="127.0.0.1:0 127.0.0.1:0", threads=1, connection_limit=30) as server:
        one, other = (listener._reception for listener in server._listeners)
        before = one.connections
        one.accepted.number += 5
        assert other.connections == before + 5
        one.accepted.number -= 5


def test_a_crowd_leaves_files_to_the_application() -> None:
    with crowded() as (server, go_on), ExitStack() as stack:
        (listener,) = server._listeners
        with socket.socket() as newest:
            listener._files = newest.fileno() + 40
        clients = [stack.enter_context(Client(port_of(server))).get("/new") for _ in range(60)]
        reception = listener._reception
        wait_until(lambda: listener._paused)
        highest = max(each[0].fileno() for each in reception.arrived if isinstance(each, tuple))
        assert highest < listener._files + 40, "few more at each attempt"
        go_on.set()
        for client in clients:
            assert client.response()[2] == b"/new"


def test_connections_that_waited_before_the_server_began_are_kept_alive_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, Client(listening.getsockname()[1]) as client:
        with serving(lambda *_: [], sockets=[listening]) as server:
            channels = server._listeners[0].channels
            wait_until(lambda: channels)
            (channel,) = channels.values()
            assert channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert client.sock.recv(10) == b""


def test_a_client_that_leaves_while_its_page_is_made_after_a_poll_is_no_error(
    site: Newsroom, caplog: pytest.LogCaptureFixture
) -> None:
    with site.client() as client:
        site.poll(client)
        site.news.publish("a")
        client.response()
        (channel,) = [each for each in site.server._map.values() if isinstance(each, ParkingChannel)]
        assert channel.gives_up
        task = ParkingTask(channel, ParkingRequest(channel.adj))
        sock, channel.socket = channel.socket, None
        channel.connected, task.complete = False, True
        with pytest.raises(ClientDisconnected):
            task.write(b"page")
        channel.socket = sock
    assert caplog.records == []


def test_a_connection_ends_when_its_client_has_vanished_though_nothing_is_sent() -> None:
    """The kernel asks: the options are those of the listening socket, or each connection's own."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"]

    with serving(app) as server, ExitStack() as stack:
        for _ in range(2):  # the first connection is given its options, the second has them from the listening socket
            client = stack.enter_context(Client(port_of(server)))
            assert client.get("/").response()[2] == b"page"
            *_, channel = [each for each in server._map.values() if isinstance(each, ParkingChannel)]
            assert channel.socket.getpeername() == client.sock.getsockname()
            assert channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            if sys.platform == "linux":
                assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == tcp.KEEP_ALIVE
            assert not channel.socket.get_inheritable()
        assert server._listeners[0]._handed_on == (sys.platform == "linux")


@pytest.mark.parametrize(
    ("found", "expected"),
    [((700, 10, 10), (700, 10, 100)), ((2000, 10, 10), (2000, 10, 100)), ((50_000, 10, 10), None), ((0, 0, 0), None)],
)
def test_full_collections_are_rarer_unless_the_application_has_its_own_thresholds(
    found: tuple[int, int, int], expected: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gc.get_threshold()
    monkeypatch.setattr(server_module.Server, "run", server_module.Server._close)
    gc.set_threshold(*found)
    try:
        server_module.main(lambda environ, start_response: [], listen="127.0.0.1:0", threads=1)
        assert gc.get_threshold() == (expected or found)
    finally:
        gc.set_threshold(*before)


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
def test_the_kernel_gives_up_on_a_poll_s_connection_until_it_brings_something_else(site: Newsroom) -> None:
    """A download after a long poll may be paused for as long as its reader likes."""
    with site.client() as client:
        site.poll(client)
        site.news.publish("a")
        assert messages(client.response()[2]) == ["a"]
        client.get("/page").response()
        (channel,) = [each for each in site.server._map.values() if isinstance(each, ParkingChannel)]
        timeout = partial(channel.socket.getsockopt, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert timeout() == 0
        site.poll(client)
        assert timeout() > 0
        site.news.publish("b")
        assert messages(client.response()[2]) == ["b"]
        client.get("/page").response()
        assert timeout() == 0


def test_a_response_is_one_packet_unless_it_is_long() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    with serving(app) as server, Client(port_of(server)) as client:
        for _ in range(20):
            data = client.get("/").sock.recv(65_536)
            assert data.endswith(b"\r\n\r\nhello"), "headers and body come together"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("connection", [None, "close", "keep-alive", "Keep-Alive"])
def test_headers_that_are_kept_are_those_of_the_response(version: str, connection: str | None) -> None:
    """Of many responses in one second, which differ in one thing each."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        _, status, own, size = environ["PATH_INFO"].split("/")
        start_response(f"{status} Said", [("X-Own", own), *([("Content-Length", size)] if size != "-" else [])])
        return [b"x" * int(size if size != "-" else 3)]

    more = [f"Connection: {connection}"] if connection else []
    with serving(app) as server:
        for _ in range(2):
            for path in ("/200/a/1", "/404/a/1", "/200/b/1", "/200/a/2", "/200/a/-", "/200/a/1"):
                with Client(port_of(server)) as client:
                    status, headers, body = client.get(path, *more, version=version).response()
                    _, said, own, size = path.split("/")
                    assert (status, headers["x-own"]) == (int(said), own)
                    assert len(body) == int(size if size != "-" else 3)
                    closes = connection == "close" or (version == "1.0" and (connection or "").lower() != "keep-alive")
                    assert (headers.get("connection") == "close") == closes
                    if not closes:
                        assert client.get(path, version="1.1").response()[0] == int(said)


def test_headers_that_are_lists_are_sent(caplog: pytest.LogCaptureFixture) -> None:
    """As by waitress, though a server may ask for tuples."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [["X-Own", environ["PATH_INFO"]], ("Content-Length", "2")])
        return [b"ok"]

    with serving(app) as server, Client(port_of(server)) as client:
        for path in ("/a", "/b", "/a"):
            status, headers, body = client.get(path).response()
            assert (status, headers.get("x-own"), body) == (200, path, b"ok")
            assert "connection" not in headers
    assert caplog.records == []


@pytest.mark.heavy
def test_headers_that_are_kept_have_a_date_of_their_second_and_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "_HEADERS", 10)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Own", environ["PATH_INFO"])])
        return [b"x"]

    dates = set()
    with serving(app) as server, Client(port_of(server)) as client:
        until = time.monotonic() + 1.2
        number = 0
        while time.monotonic() < until:
            number += 1
            dates.add(client.get(f"/{number}").response()[1]["date"])
        assert len(server._listeners[0]._reception._headers) <= 10
    assert 2 <= len(dates) <= 3


def test_a_client_of_a_poll_that_sends_on_does_not_keep_the_loop_busy(site: Newsroom) -> None:
    with site.client() as client:
        for text in ("a", "b"):  # the second time, the loop has watched the connection before
            site.poll(client)
            client.get("/page")
            spent = time.process_time()
            threading.Event().wait(0.2)
            assert time.process_time() - spent < 0.1
            site.news.publish(text)
            assert messages(client.response()[2]) == [text]
            assert client.response()[2] == b"the page"


def test_polls_that_are_left_while_they_are_parked_leave_nothing_in_the_loop(site: Newsroom) -> None:
    for _ in range(3):
        clients = [site.client() for _ in range(20)]
        for client in clients:
            assert client.get("/page").response()[2] == b"the page"  # the loop watches it from now on
            site.poll(client)
        for number, client in enumerate(clients):
            reset(client.sock) if number % 2 else client.sock.close()
        wait_until(lambda: site.held == (0, 0))
    wait_until(lambda: len(site.server._loop._known) <= 1)  # the listener
