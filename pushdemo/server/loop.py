"""The server's loop: one thread that waits for the sockets of connections, and calls what others leave for it.

Knows sockets and what handles their events, no waitress. Any thread may call `watch`, `unwatch`, `call_soon` and
`wake`: a selector takes changes while its thread waits in it. An event may be reported late, when its socket is closed
already and another has its number: a handler must take each report as a hint.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

log = logging.getLogger("pushdemo")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
ALL = READ | WRITE


class Handler(Protocol):
    """Whose socket it is."""

    def owns(self, fd: int) -> bool:
        """Whether its socket has this number, and is open. Asked under the loop's lock, by any thread."""

    def ready(self, fd: int, events: int) -> None:
        """The socket with this number is said to be ready for `events`. In the loop's thread."""


class Loop:
    """A selector, a queue of calls, and a bell that wakes the thread for them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.RLock()  # held over a change of the selector: its own record and the kernel's are two
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends, the loop takes
        self._closed = False  # under the lock
        self._rung = False  # any thread; true only while something is in the bell's socket, or about to be
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._selector.register(self._ear, READ)
        self._known: dict[int | None, tuple[Handler, int]] = {}  # changed under the lock, read by any thread

    def end_in_child(self) -> None:
        """In a forked process: nothing is watched. The selector, which it shares with the parent, is not touched."""
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
        if fd in self._known:
            del self._known[fd]
            with suppress(KeyError, OSError):
                self._selector.unregister(fd)
        if events:
            self._known[fd] = (
                handler,
                events,
            )  # first: the loop may have the event, and unwatch it, before `register` ends
            try:
                self._selector.register(fd, events, handler)
            except OSError:  # closed meanwhile
                del self._known[fd]

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call `function`."""
        self._calls.append(function)
        self.wake()

    def wake(self) -> None:
        """End the loop's wait. Also for a signal's handler."""
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # full: it rings already; closed: nobody is there any more
                self._bell.send(b"!")

    # -- the loop's own thread

    def turn(self, timeout: float) -> None:
        """Wait for events up to `timeout` seconds, and see to them and to the calls."""
        for key, events in self._selector.select(0 if self._calls else timeout):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._ear.recv(4096)
                self._rung = False  # before the queue is read: what is put there from now on rings again
            else:
                self.guarded(key.data.ready, key.fd, events)
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
            self._selector.close()
        self._ear.close()
        self._bell.close()
