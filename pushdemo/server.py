"""waitress, with responses that wait without a thread. The only module that knows waitress.

An application that finds `pushdemo.park` in its environ may return `environ["pushdemo.park"](client)` as its body, as
it may with `wsgi.file_wrapper`: a stream or a long poll of delivery/subscription.py. Where nothing has wrapped it on
the way out, the worker thread leaves the request unfinished and the socket goes to the hub; else it is iterated in the
thread.

Which thread runs what: `ParkingTask` and `Offer` a waitress worker; `_hand_over` and `_take_back` waitress's loop,
since only it may change its socket map; `PolledChannel.response`, `done`, `gone` the hub's. A channel is one thread's
at a time: it goes from the worker to the loop to the hub and back, each step through a queue.

The loop takes from its queue between two polls, and not in a function given to waitress's trigger, which would run in
the midst of what one poll has reported: the hub might close the socket, and the next connection get both its number and
the report of its end.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.adjustments import asbool
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask

from pushdemo.delivery.hub import Hub
from pushdemo.delivery.pull import Pulled
from pushdemo.delivery.subscription import LongPoll, Subscription, retry_hint

log = logging.getLogger("pushdemo")

Application = Callable[..., Any]
Waiting = Subscription | LongPoll | Pulled

_CALLS = 1_000  # made between two polls at most: neither pages nor the pipe of the trigger wait for thousands of them
_PAUSE = 1.0  # seconds before the next connection is accepted, where the process may open no more files
_CONNECTION_LIMIT = 1_000  # connections between two requests; waitress's own 100 are soon those of a few open pages


class Parked(BaseException):
    """Leaves `HTTPChannel.service` with the task, without ending the request: no handler of Exception stops it."""


class Offer:
    """A body that may be parked: it is where the server itself receives it, and is not where a middleware does."""

    def __init__(self, task: ParkingTask, client: Waiting) -> None:
        self.client = client
        self.accepted = False
        self._task = task

    def __iter__(self) -> Iterator[bytes]:
        if not self.accepted:
            return self._in_thread()
        self._task.parked = self.client
        return iter(()) if isinstance(self.client, LongPoll) else iter((self.client.open(),))

    def _in_thread(self) -> Iterator[bytes]:
        if isinstance(self.client, LongPoll):
            try:
                yield self.client.wait()
            finally:
                self.client.close()  # there is middleware that forgets to close what it has iterated
            return
        if self._task.channel.server.spare_threads.acquire(blocking=False):
            try:
                yield from self.client
            finally:
                self._task.channel.server.spare_threads.release()
        else:
            log.warning("a middleware iterates the stream instead of passing it on, and no thread is left to hold it")
            yield self.client.open() + self.client.transport.retry(retry_hint())

    def close(self) -> None:
        """The end of the response, unless it goes on elsewhere."""
        if self._task.parked is None:
            self.client.close()


class ParkingTask(WSGITask):
    """A request whose response may outlive its thread."""

    parked: Waiting | None = None
    answered = False

    def service(self) -> None:
        """As in waitress, but nothing is left to do for a long poll that the hub has answered."""
        if self.answered:
            return
        handed_over = False
        try:
            super().service()
        except Parked:
            handed_over = True
            raise
        finally:
            if self.parked is not None and not handed_over:  # its client left before the first bytes
                self.parked.close()

    def get_environment(self) -> dict[str, Any]:
        """waitress's environ, with the offer to park."""
        environ: dict[str, Any] = super().get_environment()
        self.environ = None  # the offer below refers to the task: a cycle would keep every request until a collection
        environ["pushdemo.park"] = lambda client: Offer(self, client)
        return environ

    def finish(self) -> None:
        """The application has had its say: leave, if its response waits."""
        if self.parked is not None:
            raise Parked(self)
        if self.request.command == "HEAD":
            self.write(b"")  # the headers
            self.chunked_response = False  # waitress would send the last chunk of a body that must not be there
        super().finish()


class ParkingChannel(HTTPChannel):
    """A connection that can leave waitress's socket map, for good (a stream) or until it is answered (a long poll)."""

    socket: Any  # a socket; None once it is another's
    task_class: Callable[[HTTPChannel, HTTPRequestParser], ParkingTask] = ParkingTask

    def add_channel(self, map: dict[int, Any] | None = None) -> None:
        """Join waitress's socket map, and those that are polled."""
        super().add_channel(map)
        self.server.polled[self._fileno] = self

    def del_channel(self, map: dict[int, Any] | None = None) -> None:
        """Leave both."""
        self.server.polled.pop(self._fileno, None)
        super().del_channel(map)

    def handle_read(self) -> None:
        """Read; a connection whose request waits for a thread is not polled: thousands would make each poll slow."""
        idle = not self.requests
        super().handle_read()
        if idle and self.requests and not (self.readable() or self.writable()):
            self.server.polled.pop(self._fileno, None)

    def service(self) -> None:
        """Serve one request; park what waits."""
        self.server.calls.append(self._poll_again)  # waitress wakes the loop when it is needed, and at the end
        try:
            super().service()
        except Parked as parked:
            (task,) = parked.args
            self.server.call_soon(partial(self._hand_over, task))

    def _poll_again(self) -> None:
        if self._fileno is not None:
            self.server.polled[self._fileno] = self

    def finish(self, task: ParkingTask) -> None:
        """End the request of a task that has been answered, as waitress ends any: by its own `service`."""
        self.task_class = partial(_known, task)
        try:
            super().service()
        finally:
            del self.task_class

    def _hand_over(self, task: ParkingTask) -> None:
        client = task.parked
        sock = self.socket
        assert client is not None
        if sock is None or not self.connected or self.will_close:
            client.close()
            self.forget()
            return
        self.del_channel()
        unsent = b"".join(outbuf.get(len(outbuf), skip=True) for outbuf in self.outbufs)
        self.total_outbufs_len = 0
        if isinstance(client, LongPoll):
            self.server.hub.poll(sock, client, PolledChannel(self, task), unsent=unsent)
        else:
            self.socket = None
            self.forget()
            chunked = task.chunked_response
            if isinstance(client, Subscription):
                self.server.hub.stream(sock, client, chunked=chunked, unsent=unsent)
            else:
                self.server.hub.pull(sock, client, chunked=chunked, unsent=unsent, run=self.server.workers.run)

    def forget(self) -> None:
        """Nothing is read or written here any more: close the files that waitress may have behind its buffers."""
        while self.requests:
            self.requests.pop().close()
        for outbuf in self.outbufs:
            outbuf.close()


def _known(task: ParkingTask, channel: HTTPChannel, request: HTTPRequestParser) -> ParkingTask:
    # Before `finish` is over, a worker may have begun with the request behind this one.
    return task if request is task.request else ParkingTask(channel, request)


class PolledChannel:
    """A channel whose request waits for the answer to a long poll: the hub's side of it."""

    __slots__ = ("_channel", "_task")

    def __init__(self, channel: ParkingChannel, task: ParkingTask) -> None:
        self._channel = channel
        self._task = task

    def response(self, body: bytes) -> bytes:
        """Headers, as waitress writes them for a body of this length, and the body."""
        self._task.content_length = len(body)
        header: bytes = self._task.build_response_header()
        return header + body

    def done(self, rest: bytes) -> None:
        """The connection goes back to waitress, which ends the request as it ends any other."""
        self._channel.server.call_soon(partial(self._take_back, rest))

    def gone(self) -> None:
        """The socket is closed: nobody is left to serve."""
        channel = self._channel
        channel.connected = False
        channel.socket = None
        channel.forget()

    def _take_back(self, rest: bytes) -> None:
        channel, task = self._channel, self._task
        channel.set_socket(channel.socket)
        if rest:
            channel.outbufs[-1].append(rest)
            channel.total_outbufs_len += len(rest)
        task.answered = True
        if len(rest) > channel.adj.outbuf_high_watermark:  # it waits for the client to read, which the loop cannot do
            channel.server.add_task(Work(partial(channel.finish, task)))
        else:
            channel.finish(task)


class Work:
    """A function as a task of waitress's threads."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def service(self) -> None:
        """Run it; waitress calls this in one of its threads, and logs what it raises."""
        self._function()

    def cancel(self) -> None:
        """The server stops before it came to it."""


class Workers:
    """Lends waitress's threads to functions that take their time, but never the last one: pages go on answering."""

    def __init__(self, dispatcher: ThreadedTaskDispatcher, limit: int) -> None:
        self._dispatcher = dispatcher
        self._lock = threading.Lock()  # guards what follows
        self._free = limit
        self._queue: deque[Callable[[], None]] = deque()

    def run(self, function: Callable[[], None]) -> None:
        """Have a thread call `function` as soon as one is free. Any thread may ask."""
        with self._lock:
            if not self._free:
                self._queue.append(function)
                return
            self._free -= 1
        self._dispatcher.add_task(Work(partial(self._serve, function)))

    def _serve(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            with self._lock:
                following = self._queue.popleft() if self._queue else None
                self._free += following is None
            if following:
                self._dispatcher.add_task(Work(partial(self._serve, following)))


class Server:
    """A waitress server whose waiting responses are parked; `settings` are waitress's, and `io_uring`, true or false.

    Raises ValueError for a setting that waitress does not know, and for `asyncore_use_poll = false`: select() sees no
    more than 1,024 sockets.
    """

    def __init__(self, app: Application, **settings: Any) -> None:
        if not asbool(settings.setdefault("asyncore_use_poll", True)):
            raise ValueError("asyncore_use_poll = false: must be true, since select() sees no more than 1024 sockets")
        settings.setdefault("connection_limit", _CONNECTION_LIMIT)
        if (io_uring := str(settings.pop("io_uring", True)).lower()) not in ("true", "false"):
            raise ValueError(f"io_uring = {io_uring}: must be true or false")
        self._map: dict[int, Any] = {}
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends, the loop takes
        self._woken = False  # any thread; true only while the trigger has been pulled, or is about to be
        self._stopping = False  # any thread sets it, once
        self._closed = False
        self._waking = threading.RLock()  # held over a look at the above; a signal may come meanwhile
        self._paused: float | None = None  # until when nothing is accepted; the loop's
        self._server = create_server(app, map=self._map, **settings)
        self.hub = Hub(io_uring=io_uring == "true")
        self._adj = self._server.adj
        self._listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        spare_threads = threading.BoundedSemaphore(max(1, self._adj.threads - 1))
        workers = Workers(self._server.task_dispatcher, max(1, self._adj.threads - 1))
        # Those of the map that poll() is asked about; the loop's.
        self._polled = self._map.copy()
        for listener in self._listeners:
            listener.channel_class = ParkingChannel
            listener.polled = self._polled
            listener.calls = self._calls
            listener.application = _outermost(listener.application)
            listener.accept = partial(self._accept, listener)
            listener.hub = self.hub
            listener.call_soon = self.call_soon
            listener.spare_threads = spare_threads
            listener.workers = workers

    @property
    def addresses(self) -> list[tuple[str, Any]]:
        """Where it listens: host and port, or "unix" and a path."""
        return [(listener.effective_host, listener.effective_port) for listener in self._listeners]

    def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT (where this is the main thread), then end everything."""
        with self._signals():
            try:
                while self._map and not self._stopping:
                    wasyncore.poll2(0 if self._calls else self._adj.asyncore_loop_timeout, self._polled)
                    self._do_calls(_CALLS)
                    if self._paused and time.monotonic() >= self._paused:
                        self._pause(None)
            finally:
                self._close()

    def stop(self, *_: object) -> None:
        """Make `run` end; from any thread or a signal's handler."""
        self._stopping = True
        self._wake()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call `function`; from any thread."""
        self._calls.append(function)
        if not self._woken:
            self._woken = True
            self._wake()

    def _wake(self) -> None:
        with self._waking:
            if not self._closed:  # another file may have the trigger's number by now
                self._listeners[0].pull_trigger()

    def _do_calls(self, most: int) -> None:
        self._woken = False  # before the queue is read: what is put there from now on wakes again
        for _ in range(min(len(self._calls), most)):
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("the server met an error and goes on")

    def _accept(self, listener: BaseWSGIServer) -> Any:
        """As in waitress, which would try again at once, and log it, for as long as there is no file left."""
        try:
            return type(listener).accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            log.error("%s: connections wait until others have gone (ulimit -n, pushdemo.max_clients)", error.strerror)
            self._pause(time.monotonic() + _PAUSE)
            return None

    def _pause(self, until: float | None) -> None:
        self._paused = until
        for listener in self._listeners:
            listener.accepting = until is None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        # A handler that raises could do so in a function that the trigger runs, and waitress would swallow it.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _close(self) -> None:
        for listener in self._listeners:
            wasyncore.dispatcher.close(listener)  # who comes now is refused, and goes to another node
        self.hub.stop()
        self._server.task_dispatcher.shutdown(timeout=1)
        self._do_calls(len(self._calls))
        with self._waking:
            self._closed = True
        for listener in self._listeners:
            for channel in list(listener.active_channels.values()):
                channel.handle_close()  # with the files that waitress may have behind its buffers
        wasyncore.close_all(self._map, ignore_all=True)


def _outermost(application: Application) -> Application:
    """The application, seen from outside all middleware: an offer that arrives here is accepted."""

    def outermost(environ: dict[str, Any], start_response: Any) -> Any:
        body = application(environ, start_response)
        if type(body) is Offer:
            body.accepted = True
        return body

    return outermost


def main(app: Application, global_conf: dict[str, str] | None = None, **settings: Any) -> int:
    """`[server:main] use = egg:pushdemo`: serve `app` with waitress's settings until told to stop."""
    _raise_open_files()
    server = Server(app, **settings)
    for host, port in server.addresses:
        log.info("Serving on %s", port if host == "unix" else f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run()
    return 0


def _raise_open_files() -> None:
    """As many open files as this process may have: each client is one."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
