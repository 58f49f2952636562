"""The loop: one thread and one selector that watch the sockets of all parked clients. It knows no topics.

Threads: `call` and `wake` are for any thread; everything else is the loop's own thread's. Another thread hands work
over by a queue (`_calls` here, what a subclass adds), and then wakes the loop by a byte in a socket pair. `_awake`
bounds that to one byte a turn, however many messages a burst has: it is set before the byte is written and unset
before the queues are read, so that what is queued while they are read wakes the loop again.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from pushdemo.delivery.sending import Sender, send

log = logging.getLogger("pushdemo")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


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
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends
        self._awake = False  # any thread; true only while a byte is in `_ear`, or about to be
        self._lock = threading.Lock()  # guards the two below
        self._thread: threading.Thread | None = None
        self._finished = False
        self.stopping = False  # any thread sets it, once
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self.selector.register(self._ear, READ, None)

    # -- any thread

    def call(self, function: Callable[[], None]) -> None:
        """Have the loop's thread call `function`; once there is none any more, call it here."""
        with self._lock:
            if not self._finished:
                self._calls.append(function)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()
                self.wake()
                return
        function()

    def wake(self) -> None:
        """Have the loop make a turn."""
        if not self._awake:
            self._awake = True
            with suppress(OSError):  # full: it is awake already; closed: there is nobody to wake
                send(self._bell, b"!")

    def stop(self, timeout: float = 1.5) -> None:
        """Have the thread end everything, and wait for it for at most `timeout` seconds."""
        self.stopping = True
        self.call(lambda: None)  # starts the thread where there is none, so that `finish` is called
        thread = self._thread
        if thread:
            thread.join(timeout)

    # -- the loop's own thread from here on

    def turn(self) -> None:
        """What is done after the sockets' reports and the calls."""
        raise NotImplementedError

    def timeout(self) -> float | None:
        """How many seconds the loop may sleep; None: until something happens."""
        raise NotImplementedError

    def finish(self) -> None:
        """The loop stops."""
        raise NotImplementedError

    def _run(self) -> None:
        self.sender = Sender(self._io_uring)
        while not self.stopping:
            try:
                self._wait()
                self._do_calls()
                self.turn()
            except Exception:
                log.exception("the hub met an error and goes on")
        self._do_calls()
        self.finish()
        with self._lock:
            self._finished = True
        self._do_calls()
        self.selector.close()
        self.sender.close()
        self._ear.close()
        self._bell.close()

    def _wait(self) -> None:
        """Sleep until something happens, and tell the connections of what has happened to their sockets."""
        for key, events in self.selector.select(self.timeout()):
            if key.data is None:
                self._ear.recv(4096)
                self._awake = False
            else:
                key.data.ready(events)

    def _do_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()
