"""What server.py, parking.py and workers.py expect of waitress's inside: one test for each, on waitress alone.

A version of waitress that breaks one of these must not be allowed by setup.py before they have been seen to.
"""

from __future__ import annotations

import inspect
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from waitress import channel, task, wasyncore
from waitress.adjustments import Adjustments, asbool
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, Task, ThreadedTaskDispatcher, WSGITask

from tests.support import PATIENCE, wait_until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Leave(BaseException):
    pass


class Served:
    """A channel of a real waitress server at the end of a real connection; the test is its loop and its worker."""

    def __init__(self, app: Any, task_class: type[WSGITask], **settings: Any) -> None:
        class Channel(HTTPChannel):
            pass

        Channel.task_class = task_class
        self.map: dict[int, Any] = {}
        self.tasks: list[Any] = []
        self.server = create_server(app, map=self.map, _dispatcher=self, listen="127.0.0.1:0", **settings)
        self.server.channel_class = Channel
        self.client = socket.create_connection((self.server.effective_host, int(self.server.effective_port)))
        self.client.settimeout(PATIENCE)
        self.turn()
        (self.channel,) = self.server.active_channels.values()

    def add_task(self, task: Any) -> None:
        """As the dispatcher, without threads."""
        self.tasks.append(task)

    def turn(self, timeout: float = PATIENCE) -> None:
        wasyncore.poll2(timeout, self.map)

    def send(self, data: bytes) -> None:
        self.client.sendall(data)
        self.turn()

    def close(self) -> None:
        self.client.close()
        self.channel.handle_close()
        wasyncore.close_all(self.map)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@contextmanager
def served(app: Any = app, task_class: type[WSGITask] = WSGITask, **settings: Any) -> Iterator[Served]:
    served = Served(app, task_class, **settings)
    try:
        yield served
    finally:
        served.close()


class Leaving(WSGITask):
    def finish(self) -> None:
        raise Leave(self)


class Idle(WSGITask):
    def service(self) -> None:
        pass


# -- names and signatures


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (create_server, ["application", "map", "_start", "_sock", "_dispatcher", "kw"]),
        (wasyncore.poll2, ["timeout", "map"]),
        (wasyncore.close_all, ["map", "ignore_all"]),
        (wasyncore.dispatcher.close, ["self"]),
        (wasyncore.dispatcher.set_socket, ["self", "sock", "map"]),
        (HTTPChannel.__init__, ["self", "server", "sock", "addr", "adj", "map"]),
        (HTTPChannel.service, ["self"]),
        (HTTPChannel.del_channel, ["self", "map"]),
        (HTTPChannel.add_channel, ["self", "map"]),
        (HTTPChannel.send_continue, ["self"]),
        (HTTPChannel._flush_some, ["self", "do_close"]),
        (Task.__init__, ["self", "channel", "request"]),
        (Task.service, ["self"]),
        (Task.write, ["self", "data"]),
        (Task.finish, ["self"]),
        (Task.build_response_header, ["self"]),
        (WSGITask.execute, ["self"]),
        (WSGITask.get_environment, ["self"]),
        (HTTPRequestParser.close, ["self"]),
        (OverflowableBuffer.append, ["self", "s"]),
        (OverflowableBuffer.get, ["self", "numbytes", "skip"]),
        (OverflowableBuffer.close, ["self"]),
        (ThreadedTaskDispatcher.add_task, ["self", "task"]),
        (ThreadedTaskDispatcher.shutdown, ["self", "cancel_pending", "timeout"]),
        (BaseWSGIServer.add_task, ["self", "task"]),
        (BaseWSGIServer.pull_trigger, ["self"]),
        (BaseWSGIServer.fix_addr, ["self", "addr"]),
        (BaseWSGIServer.set_socket_options, ["self", "conn"]),
        (BaseWSGIServer.readable, ["self"]),
        (asbool, ["s"]),
    ],
)
def test_a_function_takes_what_it_took(function: Callable[..., Any], parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_there_are_hooks_for_the_channel_and_the_task() -> None:
    assert BaseWSGIServer.channel_class is HTTPChannel
    assert HTTPChannel.task_class is WSGITask


def test_a_task_takes_the_same_steps_as_ever() -> None:
    assert WSGITask.service is Task.service
    assert WSGITask.finish is Task.finish
    assert issubclass(ErrorTask, Task)
    assert not issubclass(ErrorTask, WSGITask)


def test_the_settings_that_are_read_are_there() -> None:
    settings = Adjustments(listen="127.0.0.1:0")
    assert settings.threads == 4
    assert settings.connection_limit == 100
    assert settings.asyncore_loop_timeout == 1
    assert settings.asyncore_use_poll is False
    assert settings.outbuf_high_watermark == 16_777_216
    assert settings.channel_request_lookahead == 0
    assert settings.recv_bytes == 8192


def test_an_unknown_setting_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Unknown adjustment"):
        Adjustments(nonsense=1)


def test_poll_knows_no_limit_of_sockets() -> None:
    assert "select.poll()" in inspect.getsource(wasyncore.poll2)


# -- the server


def test_each_address_is_a_server_in_the_map_with_its_own_trigger() -> None:
    map: dict[int, Any] = {}
    server = create_server(app, map=map, listen="127.0.0.1:0 127.0.0.1:0", threads=3)
    listeners = [entry for entry in map.values() if isinstance(entry, BaseWSGIServer)]
    try:
        assert len(listeners) == 2
        assert len(map) == 4
        assert server.adj.threads == 3
        for listener in listeners:
            assert listener.effective_host == "127.0.0.1"
            assert int(listener.effective_port) > 0
            assert listener.task_dispatcher is server.task_dispatcher
    finally:
        server.task_dispatcher.shutdown()
        wasyncore.close_all(map)


def test_the_application_is_looked_up_for_each_request_with_its_proxy_headers_seen_to() -> None:
    seen: list[str] = []

    def inner(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["REMOTE_ADDR"])
        return app(environ, start_response)

    with served(inner, trusted_proxy="127.0.0.1", trusted_proxy_headers="x-forwarded-for") as running:
        application = running.server.application
        running.server.application = lambda *args: [seen.append("outermost"), application(*args)][1]  # type: ignore[func-returns-value]
        running.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 10.1.2.3\r\n\r\n")
        running.tasks.pop().service()
        assert seen == ["outermost", "10.1.2.3"]


def test_a_listener_accepts_as_its_socket_does() -> None:
    with served() as running, socket.create_connection(running.client.getpeername()) as client:
        sock, address = running.server.socket.accept()
        with sock:
            assert running.server.fix_addr(sock.getpeername()) == address == client.getsockname()
            running.server.set_socket_options(sock)
            running.server.set_socket_options(running.server.socket)  # which hands them on, on Linux
            options = running.server.adj.socket_options
            assert [sock.getsockopt(level, name) for level, name, _ in options] == [value for _, _, value in options]
            channel = HTTPChannel(running.server, sock, address, running.server.adj, map=running.map)
            assert channel.addr == address
            assert not sock.getblocking()
            channel.handle_close()


def test_a_thread_looks_into_the_queue_before_it_waits_and_takes_tasks_as_they_came() -> None:
    """Those that were put there without a word, too, once it is told of any."""
    dispatcher, done = ThreadedTaskDispatcher(), list[int]()
    over = threading.Event()

    class Noted:
        def __init__(self, number: int) -> None:
            self.number = number

        def service(self) -> None:
            done.append(self.number)
            if self.number == 3:
                over.set()

    dispatcher.set_thread_count(1)
    wait_until(lambda: dispatcher.active_count == 0)
    for number in (1, 2, 3):
        dispatcher.queue.append(Noted(number))
    with dispatcher.lock:
        dispatcher.queue_cv.notify(1)
    assert over.wait(PATIENCE)
    assert done == [1, 2, 3]
    dispatcher.shutdown()


def test_a_pulled_trigger_wakes_the_loop_from_any_thread() -> None:
    with served() as running:
        threading.Thread(target=running.server.pull_trigger).start()
        start = time.monotonic()
        running.turn(PATIENCE)
        assert time.monotonic() - start < PATIENCE / 2


def test_a_listener_that_does_not_accept_is_not_polled() -> None:
    with served() as running:
        running.server.accepting = False
        assert not running.server.readable()
        assert not running.server.writable()


def test_a_listener_closes_without_its_trigger() -> None:
    with served() as running:
        files = len(running.map)
        wasyncore.dispatcher.close(running.server)
        assert len(running.map) == files - 1
        running.server.pull_trigger()
        running.turn()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((running.server.effective_host, int(running.server.effective_port)))


def test_a_closed_map_is_empty_and_its_sockets_are_closed() -> None:
    with served() as running:
        sockets = [running.server.socket, running.channel.socket]
        wasyncore.close_all(running.map, ignore_all=True)
        assert not running.map
        assert [sock.fileno() for sock in sockets] == [-1, -1]


# -- the dispatcher


def test_a_worker_serves_any_object_and_outlives_what_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(1)
    served = threading.Event()

    class Failing:
        def service(self) -> None:
            raise Leave

    class Serving:
        def service(self) -> None:
            served.set()

    dispatcher.add_task(Failing())
    dispatcher.add_task(Serving())
    assert served.wait(PATIENCE)
    assert dispatcher.shutdown(timeout=1)


def test_a_task_that_nobody_comes_to_any_more_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = ThreadedTaskDispatcher()
    cancelled: list[None] = []

    class Waiting:
        def cancel(self) -> None:
            cancelled.append(None)

    dispatcher.add_task(Waiting())
    dispatcher.shutdown(timeout=1)
    assert len(cancelled) == 1


# -- the task


def test_the_headers_wait_for_the_first_bytes() -> None:
    order: list[str] = []

    class Noting(WSGITask):
        def build_response_header(self) -> bytes:
            order.append("headers")
            return super().build_response_header()

    def slow(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b""
        order.append("first bytes")
        yield b"x"

    with served(slow, Noting) as running:
        running.send(GET)
        running.tasks.pop().service()
        assert order == ["first bytes", "headers"]


def test_the_body_is_closed_before_the_task_finishes() -> None:
    order: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter((b"x",))

        def close(self) -> None:
            order.append("closed")

    class Noting(WSGITask):
        def finish(self) -> None:
            order.append("finished")
            super().finish()

    def streaming(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", [])
        return Body()

    with served(streaming, Noting) as running:
        running.send(GET)
        running.tasks.pop().service()
        assert order == ["closed", "finished"]


def test_a_body_of_unknown_length_is_chunked_and_ends_the_connection() -> None:
    def streaming(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return iter((b"one", b"two"))

    with served(streaming, Leaving) as running:
        running.send(GET)
        with pytest.raises(Leave) as left:
            running.tasks.pop().service()
        task = left.value.args[0]
        assert task.chunked_response
        assert task.close_on_finish
        head, _, body = running.client.recv(65_536).partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert b"Connection: close" in head
        assert body == b"3\r\none\r\n3\r\ntwo\r\n"


def test_the_environ_is_kept_only_as_an_attribute() -> None:
    with served() as running:
        running.send(GET)
        task = WSGITask(running.channel, running.channel.requests[0])
        assert task.get_environment() is task.environ


@pytest.mark.parametrize(
    ("request_line", "connection", "closes"),
    [
        ("GET / HTTP/1.1\r\n", None, False),
        ("GET / HTTP/1.1\r\nConnection: close\r\n", "close", True),
        ("GET / HTTP/1.0\r\n", "close", True),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n", "Keep-Alive", False),
    ],
)
def test_headers_for_a_known_length_can_be_made_later(request_line: str, connection: str | None, closes: bool) -> None:
    """Of a task that has executed, without a byte written: status and headers are the application's."""

    def empty(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-Mine", "1")])
        return iter(())

    with served(empty, Leaving) as running:
        running.send(f"{request_line}Host: localhost\r\n\r\n".encode())
        with pytest.raises(Leave) as left:
            running.tasks.pop().service()
        task = left.value.args[0]
        assert not task.wrote_header
        assert running.channel.total_outbufs_len == 0
        task.content_length = 5
        lines = task.build_response_header().decode().split("\r\n")
        assert lines[0].endswith(" 200 OK")
        assert "X-Mine: 1" in lines
        assert "Content-Length: 5" in lines
        assert [line for line in lines if line.startswith("Connection")] == (
            [f"Connection: {connection}"] if connection else []
        )
        assert task.close_on_finish is closes
        assert lines[-2:] == ["", ""]


# -- the channel


def test_what_is_no_exception_leaves_service_with_the_request_unfinished() -> None:
    with served(task_class=Leaving) as running:
        running.send(GET)
        (request,) = running.channel.requests
        with pytest.raises(Leave):
            running.tasks.pop().service()
        assert running.channel.requests == [request]
        assert not running.channel.close_when_flushed
        assert not running.channel.will_close
        assert running.channel.connected


def test_nothing_is_read_while_a_request_runs() -> None:
    with served(task_class=Leaving) as running:
        assert running.channel.readable()
        running.send(GET)
        assert not running.channel.readable()
        with pytest.raises(Leave):
            running.tasks.pop().service()
        running.channel.outbufs[-1].get(1_000, skip=True)
        running.channel.total_outbufs_len = 0
        assert not running.channel.readable()


def test_a_worker_that_ends_a_request_or_waits_for_the_client_wakes_the_loop() -> None:
    """What is not polled while its request waits for a worker is polled again when the worker wakes the loop."""

    def much(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x" * 1_000
        woken.append("in between")
        yield b"x" * 1_000

    woken: list[str] = []
    with served(much) as running:
        running.send(GET)
        running.channel._flush_some = lambda do_close=True: False  # the client takes nothing
        running.server.pull_trigger = lambda: woken.append("woken")
        running.tasks.pop().service()
        del running.channel._flush_some
    before, after = woken[: woken.index("in between")], woken[woken.index("in between") + 1 :]
    assert before[0] == "woken"
    assert len(after) >= 2  # the write, and the end


def test_a_request_is_handed_to_a_worker_within_handle_read() -> None:
    with served() as running:
        running.client.sendall(GET)
        wait_until(lambda: running.client.send(b"") == 0)
        running.channel.handle_read()
        assert running.tasks == [running.channel]
        assert len(running.channel.requests) == 1


def test_a_channel_that_leaves_the_map_is_not_polled_and_is_no_longer_active() -> None:
    with served() as running:
        sock = running.channel.socket
        running.channel.del_channel()
        assert running.channel not in running.map.values()
        assert not running.server.active_channels
        assert running.channel.socket is sock
        running.client.sendall(GET)
        running.turn(0)
        assert not running.tasks
        running.channel.set_socket(sock)
        assert running.map[sock.fileno()] is running.channel
        assert list(running.server.active_channels.values()) == [running.channel]
        running.turn()
        assert running.tasks == [running.channel]


def test_what_the_socket_does_not_take_is_in_the_outbufs_and_can_be_taken_over() -> None:
    def long(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 3_000_000]

    with served(long, Leaving) as running:
        running.channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        running.send(GET)
        with pytest.raises(Leave):
            running.tasks.pop().service()
        assert running.channel.total_outbufs_len == sum(map(len, running.channel.outbufs)) > 0
        unsent = b"".join(outbuf.get(len(outbuf), skip=True) for outbuf in running.channel.outbufs)
        assert len(unsent) == running.channel.total_outbufs_len
        assert sum(map(len, running.channel.outbufs)) == 0
        running.channel.total_outbufs_len = 0
        running.channel.socket.shutdown(socket.SHUT_WR)
        sent = b"".join(iter(lambda: running.client.recv(1_000_000), b""))
        assert (sent + unsent).partition(b"\r\n\r\n")[2] == b"x" * 3_000_000


def test_what_is_put_into_the_last_outbuf_is_sent() -> None:
    with served() as running:
        running.channel.outbufs[-1].append(b"hello")
        running.channel.total_outbufs_len += 5
        assert running.channel.writable()
        running.turn()
        assert running.client.recv(100) == b"hello"


def test_service_ends_a_request_whose_task_has_nothing_left_to_do() -> None:
    with served(task_class=Idle) as running:
        running.send(GET + GET)
        first, second = running.channel.requests
        asked: list[Any] = []

        def task_class(channel: HTTPChannel, request: HTTPRequestParser) -> WSGITask:
            asked.append(request)
            return Idle(channel, request)

        running.channel.task_class = task_class  # of this channel, for this time
        running.tasks.pop().service()
        assert asked == [first]
        assert running.channel.requests == [second]
        assert running.tasks == [running.channel]


def test_service_closes_the_connection_of_a_task_that_says_so() -> None:
    class Closing(Idle):
        close_on_finish = True

    with served(task_class=Closing) as running:
        running.send(GET)
        running.tasks.pop().service()
        assert running.channel.requests == []
        assert running.channel.close_when_flushed
        running.turn()
        wait_until(lambda: running.channel.socket is None or running.turn(0.1))
        assert running.client.recv(100) == b""


def test_service_waits_for_the_client_only_above_the_high_watermark() -> None:
    with served(task_class=Idle, outbuf_high_watermark=100) as running:
        running.send(GET + GET)
        running.channel.connected = True
        running.channel.outbufs[-1].append(b"x" * 100)
        running.channel.total_outbufs_len += 100
        running.tasks.pop().service()  # it would wait for ever: nobody turns the loop
        assert len(running.channel.requests) == 1


def test_a_client_that_has_left_shows_in_the_channel() -> None:
    with served() as running:
        running.client.close()
        running.turn()
        assert not running.channel.connected
        assert running.channel.socket is None


def test_a_channel_that_is_closed_closes_the_files_behind_its_buffers() -> None:
    with served(outbuf_overflow=10) as running:
        running.channel.outbufs[-1].append(b"x" * 10_000)
        file = running.channel.outbufs[-1].getfile()
        running.channel.handle_close()
        assert file.closed
        assert running.channel.socket is None
        assert not running.server.active_channels


def test_a_request_can_be_closed_and_knows_its_method() -> None:
    with served() as running:
        running.send(GET.replace(b"GET", b"HEAD"))
        (request,) = running.channel.requests
        assert request.command == "HEAD"
        assert request.version == "1.1"
        request.close()


def test_a_file_behind_an_outbuf_can_be_closed() -> None:
    buffer = OverflowableBuffer(10)
    buffer.append(b"x" * 10_000)
    file = buffer.getfile()
    assert len(buffer) == 10_000
    buffer.close()
    assert file.closed


def test_requests_of_one_packet_are_added_under_one_lock() -> None:
    """Whoever takes the lock meanwhile finds all of them afterwards."""
    order: list[str] = []

    class Requests(list[Any]):
        def append(self, request: Any) -> None:
            order.append("added")
            super().append(request)

    class Lock:
        def __enter__(self) -> None:
            order.append("taken")

        def __exit__(self, *exc: object) -> None:
            order.append("given")

    with served() as running:
        running.channel.requests, running.channel.requests_lock = Requests(), Lock()
        running.send(GET + GET + GET)
        assert order == ["taken", "added", "added", "added", "given"]
        assert running.tasks == [running.channel]


def test_continue_is_sent_by_flush_some_under_the_lock_of_the_outbufs() -> None:
    """By `received`, or by the end of a request. The lock may be held by its thread already."""
    found: list[bool] = []

    with served() as running:
        flush = running.channel._flush_some

        def noting(*args: Any, **more: Any) -> bool:
            assert not args
            assert not more
            taken = list[bool]()
            other = threading.Thread(target=lambda: taken.append(running.channel.outbuf_lock.acquire(blocking=False)))
            other.start()
            other.join(PATIENCE)
            found.extend(taken)
            return bool(flush())

        expecting = GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        running.channel._flush_some = noting
        running.send(expecting)
        assert found == [False]
        assert running.client.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        del running.channel._flush_some
        running.send(b"hello" + expecting)
        sent = list[None]()
        send = running.channel.send_continue
        running.channel.send_continue = lambda: sent.append(send())
        with running.channel.outbuf_lock:
            running.tasks.pop().service()
        assert len(sent) == 1
        answer = b""
        while not answer.endswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            answer += running.client.recv(1_000)


def test_flush_some_closes_the_connection_of_a_client_that_has_left_unless_told_not_to() -> None:
    assert inspect.signature(HTTPChannel._flush_some).parameters["do_close"].default is True
    with served() as running:
        running.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        running.client.close()
        wait_until(lambda: running.channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        running.channel.outbufs[-1].append(b"hello")
        running.channel.total_outbufs_len += 5
        for _ in range(2):
            assert not running.channel._flush_some(do_close=False)
            assert running.channel.socket is not None
        assert not running.channel._flush_some()
        assert running.channel.socket is None


# -- what stands in for waitress's own


def test_channels_and_tasks_ask_their_server_for_what_our_reception_has() -> None:
    asked = set()
    for module in (channel, task):
        asked |= set(re.findall(r"\bserver\.(\w+)", inspect.getsource(module)))
    assert asked == {
        "active_channels",
        "add_task",
        "adj",
        "application",
        "effective_port",
        "pull_trigger",
        "server_name",
    }


def test_there_is_a_hook_for_requests() -> None:
    assert HTTPChannel.parser_class is HTTPRequestParser


def test_headers_and_body_are_written_one_after_the_other_by_the_channel() -> None:
    written: list[bytes] = []
    with served() as it:
        it.send(GET)
        it.channel.write_soon = lambda data: written.append(bytes(data)) or len(data)
        it.tasks.pop().service()
    header, body = written
    assert header.endswith(b"\r\n\r\n")
    assert body == b"hello"


def test_headers_are_made_from_what_our_key_has() -> None:
    """Version, status, Connection, length, whether it is the last, headers; the second, and the server."""
    source = inspect.getsource(Task.build_response_header) + inspect.getsource(Task.set_close_on_finish)
    used = set(re.findall(r"self\.([\w.]+)", source))
    assert used == {
        "version",
        "request.headers.get",  # of CONNECTION alone
        "response_headers",
        "response_headers.append",
        "has_body",  # of the status
        "content_length",
        "set_close_on_finish",
        "chunked_response",
        "close_on_finish",
        "channel.server.adj.ident",
        "start_time",
        "status",
        "wrote_header",
    }
    assert source.count("self.request.headers.get") == source.count('self.request.headers.get("CONNECTION"') == 1


def test_a_request_that_is_the_last_one_says_so_before_it_is_over() -> None:
    """Between the two the loop must find the channel unreadable."""
    source = inspect.getsource(HTTPChannel.service)
    assert source.index("self.close_when_flushed = True") < source.index("self.requests = []")


def test_a_channel_may_be_closed_by_the_thread_that_has_it() -> None:
    with served() as it:
        closing = threading.Thread(target=it.channel.handle_close)
        closing.start()
        closing.join(PATIENCE)
        assert it.client.recv(100) == b""
        assert it.channel.socket is None
        assert not it.server.active_channels


def test_a_dispatcher_of_our_own_has_the_queue_and_knows_who_is_free() -> None:
    dispatcher = ThreadedTaskDispatcher()
    server = create_server(app, map={}, _dispatcher=dispatcher, listen="127.0.0.1:0")
    try:
        assert server.task_dispatcher is dispatcher
        assert not dispatcher.threads
        dispatcher.set_thread_count(2)
        wait_until(lambda: dispatcher.active_count == 0)
        assert (len(dispatcher.threads), dispatcher.stop_count, len(dispatcher.queue)) == (2, 0, 0)
        with dispatcher.lock:
            dispatcher.queue_cv.notify()
    finally:
        dispatcher.shutdown()
        server.close()


def test_a_listener_counts_what_is_in_the_map_against_its_limit() -> None:
    with served(connection_limit=4) as it:  # the listener, its trigger, a channel
        it.server.next_channel_cleanup = float("inf")
        assert it.server.readable()
        it.map[-1] = it.channel
        assert not it.server.readable()
        del it.map[-1]
        assert it.server.readable()
        assert it.server.accept() is None


def test_a_server_that_never_cleans_up_looks_at_no_channel() -> None:
    with served(channel_timeout=0) as it:
        it.channel.last_activity = 0
        it.server.next_channel_cleanup = float("inf")
        it.server.readable()
        assert not it.channel.will_close
        it.server.next_channel_cleanup = 0
        it.server.readable()
        assert it.channel.will_close
