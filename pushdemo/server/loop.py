"""The server's loop: one thread that waits for the sockets of connections, and calls what others leave for it.

Knows sockets and what handles their events, no waitress. Any thread may call `watch`, `unwatch`, `call_soon` and
`wake`: epoll takes changes while its thread waits in it. An event may be reported late, when its socket is closed
already and another has its number: a handler must take each report as a hint.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

from pushdemo.delivery.held import send
from pushdemo.delivery.poller import READ, WRITE, Poller

log = logging.getLogger("pushdemo")

ALL = READ | WRITE

_TOGETHER = 64  # sockets that a turn sees to; then those have a thread that were read from


class Handler(Protocol):
    """Whose socket it is."""

    def owns(self, fd: int) -> bool:
        """Whether its socket has this number, and is open. Asked under the loop's lock, by any thread."""

    def ready(self, fd: int, events: int) -> None:
        """The socket with this number is said to be ready for `events`. In the loop's thread."""


class Loop:
    """A poller, a queue of calls, and a bell that wakes the thread for them.

    All that a turn does is done in the context that `together` makes: what it adds to somebody's queue is one burst.
    """

    def __init__(self, together: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._together = together
        self._poller = Poller(_TOGETHER)
        self._lock = threading.RLock()  # held over a change of what is watched, here and in the poller
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends, the loop takes
        self._closed = False  # under the lock
        self._rung = False  # any thread; true only while something is in the bell's socket, or about to be
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._poller.watch(self._ear.fileno(), READ)
        self._known: dict[int | None, tuple[Handler, int]] = {}  # changed under the lock, read by any thread

    def end_in_child(self) -> None:
        """In a forked process: nothing is watched. The poller, which it shares with the parent, is not touched."""
        self._lock = threading.RLock()
        self._closed = True
        self._known.clear()
        self._ear.close()
        self._bell.close()

    # -- any thread

    def watched(self, fd: int | None, handler: Handler) -> int:
        """The events of a handler's socket that are reported."""
        known = self._known.get(fd)
        return known[1] if known and known[0] is handler else 0

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Report these events of a socket too, unless it is closed meanwhile: its number may be another's by now."""
        if events & ~self.watched(fd, handler):
            with self._lock:
                if handler.owns(fd):
                    self._set(fd, self.watched(fd, handler) | events, handler)

    def unwatch(self, fd: int, events: int, handler: Handler) -> None:
        """Report these events of a socket no more. Before it is closed, do so with all of them.

        Whoever may have called `watch` meanwhile, and found the event watched, has to be asked afterwards.
        """
        if events & self.watched(fd, handler):
            with self._lock:
                if events & (watched := self.watched(fd, handler)):  # its number may be another's by now
                    self._set(fd, watched & ~events, handler)

    def _set(self, fd: int, events: int, handler: Handler) -> None:
        # Under the lock: the record here and the kernel's are two. A number may still be that of a socket which was
        # closed without a word; the kernel knows nothing of it any more.
        if self._closed:
            return
        if not events:
            self._known.pop(fd, None)
            self._poller.unwatch(fd)
            return
        self._known[fd] = handler, events  # first: the loop may have the event, and unwatch it, before `watch` ends
        try:
            self._poller.watch(fd, events)
        except OSError:  # closed meanwhile
            self._known.pop(fd, None)
            self._poller.unwatch(fd)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call `function`."""
        self._calls.append(function)
        self.wake()

    def wake(self) -> None:
        """End the loop's wait. Also for a signal's handler."""
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # full: it rings already; closed: nobody is there any more
                send(self._bell, b"!")

    # -- the loop's own thread

    def turn(self, timeout: float) -> None:
        """Wait for events up to `timeout` seconds, and see to them and to the calls."""
        ready = self._poller.wait(0 if self._calls else timeout)
        with self._together():
            for fd, events in ready:
                known = self._known.get(fd)
                if known is not None:
                    self.guarded(known[0].ready, fd, events)
                elif fd == self._ear.fileno():
                    with suppress(BlockingIOError):
                        self._ear.recv(4096)
                    self._rung = False  # before the queue is read: what is put there from now on rings again
            self.do_calls()

    def do_calls(self) -> None:
        """Call what is in the queue, and not what comes meanwhile: connections must not wait for that."""
        for _ in range(len(self._calls)):
            self.guarded(self._calls.popleft())

    def guarded(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function`; whatever it raises is logged, and the loop goes on."""
        try:
            function(*args)
        except BaseException:
            log.exception("the server met an error and goes on")

    def close(self) -> None:
        """The end: the loop's own sockets are closed, and what is watched is not watched any more."""
        with self._lock:
            self._closed = True
            self._poller.close()
        self._ear.close()
        self._bell.close()
