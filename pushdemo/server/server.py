"""waitress, with responses that wait without a thread: the server, and the command that runs it.

Here are the listeners, the limits, the signals and the end. What becomes of a connection is parking.py's; loop.py waits
for all of them; workers.py has the threads. These alone know waitress.
"""

from __future__ import annotations

import errno
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from waitress import wasyncore
from waitress.adjustments import asbool
from waitress.server import BaseWSGIServer, create_server

from pushdemo.delivery.held import Acceptor
from pushdemo.delivery.hub import Hub
from pushdemo.delivery.poller import READ
from pushdemo.delivery.tcp import keep_alive
from pushdemo.forking import call_in_child
from pushdemo.server.bursts import bounded
from pushdemo.server.loop import Loop
from pushdemo.server.offer import Application, outermost
from pushdemo.server.parking import ParkingChannel
from pushdemo.server.reception import Accepted, End, Reception
from pushdemo.server.workers import Dispatcher, Workers

log = logging.getLogger("pushdemo")
queue_log = logging.getLogger("waitress.queue")

_PAUSE = 1.0  # seconds before the next connection is accepted, where the process may open no more files
_ACCEPTED = 256  # connections that are accepted between two looks at the others
_SERVED = 64  # of those, how many are read from
_OTHER_FILES = 200  # open files that are no connections: listening sockets, logs, what the application opens
_RESERVED = 100  # open files that are left to the application, whoever may come at once
_FEWEST = 100  # connections, however few files there may be: waitress's own limit
_CROWD = 0.9  # of the connections that there may be; from there on, those that wait for a request are closed
_IDLE = 1.0  # seconds without a byte after which a connection may be closed in a crowd
_AGAIN = 0.1  # seconds before connections are looked at again that could not be closed, or not be accepted
_PYTHONS = (700, 10, 10), (2000, 10, 10)  # thresholds of the garbage collector, by Python's version
_FULL = 100  # partial collections, ten times as many as Python's own, before a full one
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
        self._loop = Loop(self._dispatcher.together)
        self._workers = workers = Workers(self._dispatcher, max(1, self._adj.threads - 1))
        listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        accepted = Accepted()
        self._listeners = [
            Listener(each, Reception(each, self.hub, workers, self._loop, self._end, accepted)) for each in listeners
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
            for host, port in self.addresses:  # now that a signal ends it as it should
                where = port if host == "unix" else f"http://{f'[{host}]' if ':' in host else host}:{port}"
                log.info("Serving on %s", where)
            try:
                while (left := self._end.left()) > 0:
                    with self._dispatcher.together():
                        for listener in self._listeners:
                            self._loop.guarded(listener.look)
                    pause = min(listener.pause for listener in self._listeners)
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
        for listener in self._listeners:
            listener.close_arrived()
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
    """A listening socket of waitress's, in our loop. The loop's thread alone uses it.

    Thousands may come at once, after a restart say. All are accepted, since the kernel's queue is short, and a client
    that finds it full tries again after a second, then two, then four. Their first requests are read in the order in
    which they came, as long as few requests wait for a thread: there they would stand before each request of a
    connection that is here already (`Reception.arrived`).
    """

    def __init__(self, listener: BaseWSGIServer, reception: Reception) -> None:
        self._listener = listener
        self._reception = reception
        self._set_options(listener.socket)
        self._next = Acceptor(listener.socket)
        # Who came before the listening socket had its options is given them. Afterwards Linux hands them on.
        self._emptied = False  # nobody who came before can be left in the kernel's queue
        self._handed_on = False  # whoever is accepted has the options already
        self._files = _open_files() - _RESERVED
        self._paused = 0.0  # until when nothing is accepted, by the monotonic clock
        self._accepts = False
        self.pause = 0.0  # for how many seconds the loop may sleep
        self._full_until = 0.0  # nobody can be closed to make room; by the clock on the wall, as waitress counts
        self._cleanup = 0.0  # when connections that were idle for too long are closed next
        listener.next_channel_cleanup = float("inf")  # waitress's own counts on a look at each connection in each turn
        self.channels: dict[int, ParkingChannel] = listener.active_channels
        self.address: tuple[str, Any] = (listener.effective_host, listener.effective_port)

    def look(self) -> None:
        """Before each turn of the loop: accept connections or not, and close those that were idle for too long.

        Serve some of those that have arrived.
        """
        now = time.monotonic()
        if now >= self._cleanup:
            self._cleanup = now + self._listener.adj.cleanup_interval
            self._close_idle(time.time() - self._listener.adj.channel_timeout)
        self._make_room()
        accepts = self._has_room and now >= self._paused
        if accepts != self._accepts:
            self._accepts = accepts
            loop, fd = self._reception.loop, self._listener.socket.fileno()
            loop.watch(fd, READ, self) if accepts else loop.unwatch(fd, READ, self)
        self.pause = self._listener.adj.asyncore_loop_timeout if accepts else _AGAIN
        if self._reception.arrived:
            self._serve_arrived()

    def _serve_arrived(self) -> None:
        reception, arrived = self._reception, self._reception.arrived
        reception.held_back = True  # first: a worker that sees no crowd from here on wakes the loop
        for _ in range(min(_SERVED, len(arrived))):
            if reception.crowded:
                self.pause = min(self.pause, _AGAIN)  # not all that waits for a thread tells when it has had one
                return
            each = arrived.popleft()
            channel = each if isinstance(each, ParkingChannel) else self._channel(*each)
            channel.begin()
        reception.held_back = False
        if arrived:
            self.pause = 0.0

    def _channel(self, sock: socket.socket, address: Any) -> ParkingChannel:
        self._reception.accepted.number -= 1
        return ParkingChannel(self._reception, sock, self._listener.fix_addr(address))

    @property
    def _has_room(self) -> bool:
        """Whether there may be one connection more."""
        limit = self._listener.adj.connection_limit
        return bool(self._listener.readable() and self._reception.connections < limit)

    def _close_idle(self, since: float) -> None:
        for channel in list(self.channels.values()):
            if not channel.requests and not channel.queued and channel.last_activity < since:
                channel.handle_close()

    def _make_room(self) -> None:
        """In a crowd, close connections that wait for a request, those first that have done so for longest."""
        limit, known = self._listener.adj.connection_limit, self._reception.map
        crowd, now = self._reception.connections - int(_CROWD * limit), time.time()
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
        """Accept those who wait in the kernel's queue."""
        for _ in range(_ACCEPTED):
            self._make_room()
            if not self._has_room or not self._accept():
                return

    def _accept(self) -> bool:
        try:
            sock, address = self._next()
        except (BlockingIOError, ConnectionAbortedError) as error:  # there are no more, or the client has left
            self._emptied = self._emptied or isinstance(error, BlockingIOError)
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.error(
                    "%s: connections wait until others have gone (ulimit -n, pushdemo.max_clients)", error.strerror
                )
                self._paused = time.monotonic() + _PAUSE
            return False
        if not self._handed_on:
            self._handed_on = self._emptied and self._has_options(sock)
            self._set_options(sock)
        self._reception.arrived.append((sock, address))
        self._reception.accepted.number += 1
        if self._reception.crowded and sock.fileno() >= self._files:  # so many are open: numbers are given lowest first
            self._paused = time.monotonic() + _AGAIN
            return False
        return True

    def _has_options(self, sock: socket.socket) -> bool:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *self._listener.adj.socket_options]
        try:
            return all(sock.getsockopt(level, name) == value for level, name, value in options)
        except OSError:  # the client has left, or the socket is not TCP
            return False

    def _set_options(self, sock: socket.socket) -> None:
        keep_alive(sock)
        with suppress(OSError):  # the client has left
            self._listener.set_socket_options(sock)

    def close(self) -> None:
        """Refuse whoever comes from now on."""
        self._reception.loop.unwatch(self._listener.socket.fileno(), READ, self)
        wasyncore.dispatcher.close(self._listener)
        self.close_arrived()

    def close_arrived(self) -> None:
        """Close the connections that are accepted and no more."""
        for each in self._reception.arrived:
            if not isinstance(each, ParkingChannel):
                each[0].close()
        self._reception.arrived.clear()


def main(app: Application, global_conf: dict[str, str] | None = None, **settings: Any) -> int:
    """`[server:main] use = egg:pushdemo`: serve `app` with waitress's settings until told to stop."""
    _raise_open_files()
    _collect_less_often()
    Server(app, **settings).run()
    return 0


def _collect_less_often() -> None:
    """Have the garbage collector look at all objects less often, unless the application has thresholds of its own.

    Each client that waits has a few, and a full collection stops all threads for 0.1 s where 5,000 long polls wait.
    Python begins one after 70,000 new objects, and a burst of answers makes that many in a second. What lives as long
    as a client is seldom garbage; all else the partial collections find, which are as frequent as ever.
    """
    if (known := gc.get_threshold()) in _PYTHONS:
        gc.set_threshold(*known[:2], _FULL)


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
