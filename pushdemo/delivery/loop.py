"""The loop: one thread that watches the sockets of all parked clients. It knows no topics.

Threads: `call` and `wake` are for any thread; everything else is the loop's own thread's. Another thread hands work
over by a queue (`_calls` here, what a subclass adds), and then wakes the loop by a byte in a socket pair. `_awake`
bounds that to one byte a turn, however many messages a burst has: it is set before the byte is written and unset
before the queues are read, so that what is queued while they are read wakes the loop again. While the loop naps, which
is for milliseconds, it is set as well: the loop will look by itself.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pushdemo.delivery.held import send
from pushdemo.delivery.poller import READ, Poller
from pushdemo.delivery.sending import Sender
from pushdemo.forking import call_in_child

log = logging.getLogger("pushdemo")

_LAST = 0.25  # seconds for what is still to be sent when the server stops, before the farewells
_QUIET = 1.0  # seconds between two lines of the log about errors: thousands of clients may meet the same


class Watched(Protocol):
    """What has a socket that the loop watches."""

    sock: socket.socket

    def ready(self, events: int) -> None:
        """The socket is ready for these events."""

    def fail(self) -> None:
        """`ready` has raised an error, which is logged."""


class Loop:
    """A thread that starts with the first call. `clock` counts seconds.

    A subclass says what a turn does beside that (`turn`), how long the loop may sleep (`timeout`), and how it ends
    (`finish`). `io_uring`: whether many sends may share a system call, where the kernel can.
    """

    sender: Sender  # the thread opens and closes it

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, *, io_uring: bool = True) -> None:
        self.clock = clock
        self._name = name
        self._io_uring = io_uring
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends; once it has finished, any thread takes
        self._awake = False  # any thread; true while the loop will look into the queues without being woken
        self._lock = threading.Lock()  # held to change the two below; any thread reads them
        self._thread: threading.Thread | None = None
        self._finished = False
        self._lacking = False  # the log knows that a thread cannot be started; under the lock
        self._stop_by = 0.0  # when the thread has to end what it does, once it is told to stop
        self._failed = -1.0  # when the log was last told of an error, and how many it was not told of since
        self._untold = 0
        self.stopping = False  # any thread sets it, once
        self._poller = Poller()
        self._watched: dict[int, Watched] = {}  # by descriptor
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._poller.watch(self._ear.fileno(), READ)
        call_in_child(self._end_in_child)

    def _end_in_child(self) -> None:
        """In a forked process: the clients and the ring are the parent's, and so is the thread.

        The child closes its copies of the sockets, so that a client's connection ends when the parent ends it, and
        touches neither the poller nor the ring, which it shares with the parent.
        """
        self._lock = threading.Lock()
        if self._finished:
            return
        self._finished = self.stopping = True
        self._calls.clear()
        for watched in list(self._watched.values()):
            watched.sock.close()
        self._ear.close()
        self._bell.close()

    # -- any thread

    def call(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call `function`; once there is none any more, call it here.

        No lock is taken where the thread runs: all workers hand clients over, and would stand in line for it.
        """
        self._calls.append(function)
        if self._finished:  # the thread may not look into the queue again
            self._do_calls()
            return
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                self._start()
        self.wake()

    @property
    def trouble(self) -> str:
        """Why clients wait for a thread that there is not; empty as long as all is well."""
        if self._finished or (self._thread is not None and self._thread.is_alive()):
            return ""
        if self._thread is not None:
            return f"the thread {self._name} has died"
        return f"the thread {self._name} cannot be started" if self._calls else ""

    def start_again(self) -> None:
        """Begin a thread if one is wanted and there is none; whoever has the loop calls this now and then."""
        if self.trouble:
            with self._lock:
                self._start()

    def _start(self) -> None:
        # Under the lock. What waits in the queue stays there until a thread can be started.
        if self._finished or (self._thread is not None and self._thread.is_alive()):
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._lacking:
                log.error("the thread %s cannot be started (%s): it is tried again", self._name, error)
            self._lacking = True
        else:
            self._thread, self._lacking = thread, False

    def wake(self) -> None:
        """Have the loop make a turn."""
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # full: it is awake already; closed: there is nobody to wake
                send(self._bell, b"!")

    def stop(self, timeout: float = 1.5) -> None:
        """Have the thread end everything, and wait for it for at most `timeout` seconds."""
        self._stop_by = time.monotonic() + _LAST
        self.stopping = True
        self.call(lambda: None)  # starts the thread where there is none, so that `finish` is called
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(timeout)
        elif not self._finished:
            self._run()  # no thread can be had: this one ends everything

    # -- the loop's own thread from here on

    def watch(self, watched: Watched, events: int) -> None:
        """Report these events of a socket. Raises OSError or ValueError where it is closed."""
        fd = watched.sock.fileno()
        self._watched[fd] = watched  # first, so that nothing is reported of which nobody knows whose it is
        self._poller.watch(fd, events)

    def unwatch(self, sock: socket.socket) -> None:
        """Report nothing of a socket any more, if anything was reported. To be called before it is closed."""
        fd = sock.fileno()
        self._watched.pop(fd, None)
        self._poller.unwatch(fd)

    def turn(self) -> None:
        """What is done after the sockets' reports and the calls."""
        raise NotImplementedError

    def timeout(self) -> float | None:
        """How many seconds the loop may sleep; None: until something happens."""
        raise NotImplementedError

    def nap(self) -> float:
        """How many seconds the loop sleeps whatever is queued meanwhile."""
        return 0.0

    def finish(self) -> None:
        """The loop stops."""
        raise NotImplementedError

    @property
    def out_of_time(self) -> bool:
        """Whether the server stops, and what is not sent yet has to be left unsent: the farewells must be in time."""
        return self.stopping and time.monotonic() > self._stop_by

    def guarded(self, function: Callable[..., None], *args: object, fail: Callable[[], None] = lambda: None) -> None:
        """Call `function`; its error is logged, `fail` undoes what it has left, and the loop goes on.

        Whatever it raises: what runs here is not the process's main program.
        """
        try:
            function(*args)
        except BaseException:
            self.tell_failure()
            try:
                fail()
            except BaseException:
                self.tell_failure()

    def tell_failure(self) -> None:
        """Log the error that is being handled, unless the log was told of another just now."""
        now = time.monotonic()
        if now < self._failed + _QUIET:
            self._untold += 1
            return
        more = f" ({self._untold} more since the last of these lines)" if self._untold else ""
        self._failed, self._untold = now, 0
        log.exception("%s met an error and goes on%s", self._name, more)

    def _run(self) -> None:
        self.sender = Sender(self._io_uring)
        while not self.stopping:
            self.guarded(self._wait)
            self._do_calls()
            self.guarded(self.turn)
        self._do_calls()
        self.guarded(self.finish)
        with self._lock:
            self._finished = True
        self._do_calls()
        self._poller.close()
        self.sender.close()
        self._ear.close()
        self._bell.close()

    def _wait(self) -> None:
        """Sleep until something happens, and tell the connections of what has happened to their sockets."""
        timeout = self.timeout()
        if nap := self.nap():
            self._awake = True
            timeout = nap
        for fd, events in self._poller.wait(timeout):
            watched = self._watched.get(fd)
            if watched is not None:
                self.guarded(watched.ready, events, fail=watched.fail)
            elif fd == self._ear.fileno():
                self._ear.recv(4096)
        self._awake = False

    def _do_calls(self) -> None:
        with suppress(IndexError):  # it is empty
            while True:
                self.guarded(self._calls.popleft())
