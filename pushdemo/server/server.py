"""waitress, with responses that wait without a thread: the server, and the command that runs it.

Here are the listeners, the limits, the signals and the end. What becomes of a connection is parking.py's; loop.py waits
for all of them; workers.py has the threads. These alone know waitress.
"""

from __future__ import annotations

import errno
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from waitress import wasyncore
from waitress.adjustments import asbool
from waitress.server import BaseWSGIServer, create_server

from pushdemo.delivery.hub import Hub
from pushdemo.forking import call_in_child
from pushdemo.server.bursts import bounded
from pushdemo.server.loop import READ, Loop
from pushdemo.server.offer import Application, outermost
from pushdemo.server.parking import ParkingChannel
from pushdemo.server.reception import End, Reception
from pushdemo.server.workers import Dispatcher, Workers

log = logging.getLogger("pushdemo")
queue_log = logging.getLogger("waitress.queue")

_PAUSE = 1.0  # seconds before the next connection is accepted, where the process may open no more files
_ACCEPTED = 64  # connections that are accepted between two looks at the others
_OTHER_FILES = 200  # open files that are no connections: listening sockets, logs, what the application opens
_FEWEST = 100  # connections, however few files there may be: waitress's own limit
_CROWD = 0.9  # of the connections that there may be; from there on, those that wait for a request are closed
_IDLE = 1.0  # seconds without a byte after which a connection may be closed in a crowd
_AGAIN = 0.1  # seconds before connections are looked at again that could not be closed, or not be accepted
_TICK = 1.0  # seconds between two lines of the log about requests that wait


class Server:
    """A waitress server whose waiting responses are parked; `settings` are waitress's, and `io_uring`, true or false.

    `connection_limit` is how many connections there may be beside the parked ones: the limit of open files less 200,
    unless it is given. Raises ValueError for a setting that waitress does not know, and for asyncore_use_poll = false:
    select() sees no more than 1,024 sockets.
    """

    def __init__(self, app: Application, **settings: Any) -> None:
        if not asbool(settings.setdefault("asyncore_use_poll", True)):
            raise ValueError("asyncore_use_poll = false: must be true, since select() sees no more than 1024 sockets")
        settings.setdefault("connection_limit", max(_FEWEST, _open_files() - _OTHER_FILES))
        if (io_uring := str(settings.pop("io_uring", True)).lower()) not in ("true", "false"):
            raise ValueError(f"io_uring = {io_uring}: must be true or false")
        self._map: dict[int, Any] = {}  # by descriptor: listeners, their triggers, and connections that are not parked
        self._end = End()
        self._dispatcher = Dispatcher()
        self._adj = create_server(outermost(app), map=self._map, _dispatcher=self._dispatcher, **settings).adj
        self._dispatcher.set_thread_count(self._adj.threads)
        self.hub = Hub(io_uring=io_uring == "true")
        self._loop = Loop()
        self._workers = workers = Workers(self._dispatcher, max(1, self._adj.threads - 1))
        listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        self._listeners = [
            Listener(each, Reception(each, self.hub, workers, self._loop, self._end)) for each in listeners
        ]
        self._ticked = 0.0  # when `_tick` last looked at the queue; the loop's
        self._handlers: dict[int, Any] = {}  # those of signals that ours stand for, while it runs in the main thread
        call_in_child(self._end_in_child)

    @property
    def addresses(self) -> list[tuple[str, Any]]:
        """Where it listens: host and port, or "unix" and a path."""
        return [listener.address for listener in self._listeners]

    def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT (where this is the main thread), then end everything."""
        with self._signals(), bounded():
            try:
                while (left := self._end.left()) > 0:
                    for listener in self._listeners:
                        self._loop.guarded(listener.look)
                    accepts = all(listener.accepts for listener in self._listeners)
                    pause = self._adj.asyncore_loop_timeout if accepts else _AGAIN
                    self._loop.guarded(self._loop.turn, min(left, pause))
                    self._loop.guarded(self._tick, time.monotonic())
            finally:
                self._close()

    def _tick(self, now: float) -> None:
        self._workers.expire(now)
        self.hub.start_again()
        if now >= self._ticked + _TICK:
            self._ticked = now
            if (waiting := self._dispatcher.take_waiting()) > self._adj.threads:
                queue_log.warning(
                    "Task queue depth is %d at most in this second: so many requests wait for one of the %d threads "
                    "([server:main] threads)",
                    waiting,
                    self._adj.threads,
                )

    def stop(self, *_: object) -> None:
        """Make `run` end, after the application's `pushdemo.drain`, or at the second call at once.

        From any thread or a signal's handler.
        """
        self._end.begin()
        self._loop.wake()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers = {}

    def _end_in_child(self) -> None:
        """In a process that a view has forked: it has no server, and its signals are its own.

        Its copies of the sockets are closed. Otherwise the port would be taken, and connections stay open, for as long
        as it lives.
        """
        for number in self._handlers:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._handlers = {}
        self._loop.end_in_child()
        for entry in list(self._map.values()):
            if entry.socket is not None:
                entry.socket.close()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()  # who comes now is refused, and goes to another node
        self.hub.stop()
        self._dispatcher.shutdown(timeout=1)
        self._loop.do_calls()
        for listener in self._listeners:
            for channel in list(listener.channels.values()):
                channel.handle_close()  # with the files that waitress may have behind its buffers
        self._loop.close()
        wasyncore.close_all(self._map, ignore_all=True)


class Listener:
    """A listening socket of waitress's, in our loop. The loop's thread alone uses it."""

    def __init__(self, listener: BaseWSGIServer, reception: Reception) -> None:
        self._listener = listener
        self._reception = reception
        self._paused = 0.0  # until when nothing is accepted, by the monotonic clock
        self.accepts = False
        self._full_until = 0.0  # nobody can be closed to make room; by the clock on the wall, as waitress counts
        self._cleanup = 0.0  # when connections that were idle for too long are closed next
        listener.next_channel_cleanup = float("inf")  # waitress's own counts on a look at each connection in each turn
        self.channels: dict[int, ParkingChannel] = listener.active_channels
        self.address: tuple[str, Any] = (listener.effective_host, listener.effective_port)

    def look(self) -> None:
        """Before each turn of the loop: accept connections or not, and close those that were idle for too long."""
        now = time.monotonic()
        if now >= self._cleanup:
            self._cleanup = now + self._listener.adj.cleanup_interval
            self._close_idle(time.time() - self._listener.adj.channel_timeout)
        self._make_room()
        self._reception.held_back = True  # first: a worker that sees no crowd from here on wakes the loop
        crowded = self._reception.held_back = self._reception.crowded
        accepts = self._listener.readable() and now >= self._paused and not crowded
        if accepts != self.accepts:
            self.accepts = accepts
            loop, fd = self._reception.loop, self._listener.socket.fileno()
            loop.watch(fd, READ, self) if accepts else loop.unwatch(fd, READ, self)

    def _close_idle(self, since: float) -> None:
        for channel in list(self.channels.values()):
            if not channel.requests and channel.last_activity < since:
                channel.handle_close()

    def _make_room(self) -> None:
        """In a crowd, close connections that wait for a request, those first that have done so for longest."""
        limit, known = self._listener.adj.connection_limit, self._reception.map
        crowd, now = len(known) - int(_CROWD * limit), time.time()
        if crowd < 0 or now < self._full_until:
            return
        idle = [each for each in list(known.values()) if isinstance(each, ParkingChannel) and each.idle(now, _IDLE)]
        if not idle:
            self._full_until = now + _AGAIN  # to look at thousands for each that comes would take too long
        idle.sort(key=lambda channel: channel.last_activity)
        for channel in idle[: crowd + max(1, limit // 100)]:
            channel.handle_close()

    def owns(self, fd: int) -> bool:
        """Whether it listens there."""
        return bool(self._listener.socket.fileno() == fd)

    def ready(self, _fd: int, _events: int) -> None:
        """Accept those who wait, as long as few of those who were accepted wait for a thread.

        Thousands that come at once, after a restart say, wait in the kernel's queue. In ours they would stand before
        each request of a connection that is here already.
        """
        for _ in range(_ACCEPTED):
            self._make_room()
            if self._reception.crowded or not self._listener.readable() or not self._accept():
                return

    def _accept(self) -> bool:
        try:
            accepted = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.error(
                    "%s: connections wait until others have gone (ulimit -n, pushdemo.max_clients)", error.strerror
                )
                self._paused = time.monotonic() + _PAUSE
            return False
        if accepted is None:
            return False
        sock, address = accepted
        with suppress(OSError):  # the client has left
            self._listener.set_socket_options(sock)
        ParkingChannel(self._reception, sock, self._listener.fix_addr(address)).begin()
        return True

    def close(self) -> None:
        """Refuse whoever comes from now on."""
        self._reception.loop.unwatch(self._listener.socket.fileno(), READ, self)
        wasyncore.dispatcher.close(self._listener)


def main(app: Application, global_conf: dict[str, str] | None = None, **settings: Any) -> int:
    """`[server:main] use = egg:pushdemo`: serve `app` with waitress's settings until told to stop."""
    _raise_open_files()
    server = Server(app, **settings)
    for host, port in server.addresses:
        log.info("Serving on %s", port if host == "unix" else f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run()
    return 0


def _open_files() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


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
