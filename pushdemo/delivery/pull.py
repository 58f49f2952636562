"""Parked clients that are given the next bytes only when they have taken the last: a generator's, which waits for them.

What makes the bytes may take long and is the application's code, so a worker thread runs it; while the client reads, it
holds no thread. Only the hub's thread calls a `Pull`; `Pulled.pull` and `Pulled.close` run in workers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from pushdemo.delivery.connection import READ, WRITE, Holder, has_left
from pushdemo.delivery.metrics import Tally
from pushdemo.delivery.sending import FAILED, offer
from pushdemo.delivery.subscription import Pace, retry_hint
from pushdemo.transports import StreamTransport
from pushdemo.transports.framing import Frame, ending


class Pulled(Protocol):
    """The body of such a response. One thread at a time calls it."""

    pace: Pace
    tally: Tally
    transport: StreamTransport

    def open(self) -> bytes:
        """The first bytes."""

    def pull(self) -> bytes | None:
        """The next bytes, however long they take; None when there are no more."""

    def close(self) -> None:
        """The client is gone."""

    def __iter__(self) -> Iterator[bytes]:
        """All of it, made in the thread that iterates."""


class Pull:
    """One such client in the hub. `run` has a function run by a worker thread, soon."""

    __slots__ = ("body", "busy", "ending", "frame", "gone", "hub", "progress", "rest", "run", "sock")

    def __init__(
        self,
        hub: Holder,
        sock: socket.socket,
        body: Pulled,
        frame: Frame,
        run: Callable[[Callable[[], None]], None],
    ) -> None:
        self.hub = hub
        self.sock = sock
        self.body = body
        self.frame = frame
        self.run = run
        self.rest = memoryview(b"")  # what the socket has not taken yet
        self.busy = False  # a worker is making the next bytes
        self.ending = False  # nothing follows `rest`
        self.gone = False
        self.progress = hub.clock()  # when something was last written

    def start(self, unsent: bytes) -> None:
        """Send what is still unsent of the response so far, and go on."""
        self.hub.selector.register(self.sock, READ, self)
        self._send(unsent)

    def ready(self, events: int) -> None:
        """The socket can be written, or the client has left or sends what nobody asked for."""
        if self.gone:
            return
        if events & WRITE:
            self._send(self.rest)
        elif has_left(self.sock):
            self.drop()

    def sweep(self, now: float) -> None:
        """Drop a client that does not read; keep the connection alive while the generator takes its time."""
        pace = self.body.pace
        if self.gone:
            return
        if self.rest and now - self.progress >= pace.stall_timeout:
            self.body.tally.closed_stalled()
            self.drop()
        elif self.busy and not self.rest and now - self.progress >= pace.heartbeat:
            self._send(self.frame(self.body.transport.notice("heartbeat")))

    def finish(self) -> None:
        """The server stops."""
        if not self.rest and not self.gone:
            with suppress(OSError):
                self.sock.send(ending(self.frame, self.body.transport.retry(retry_hint())))
        self.drop()

    def drop(self) -> None:
        """The client is gone, or is to go. Its body is closed when it does not run any more."""
        if self.gone:
            return
        self.gone = True
        self.rest = memoryview(b"")
        self.hub.selector.unregister(self.sock)
        self.sock.close()
        self.hub.emptied(self)
        if not self.busy:
            self.run(self.body.close)

    def _send(self, data: bytes | memoryview) -> None:
        waited = bool(self.rest)
        sent = offer(self.sock, data) if data else 0
        if sent == FAILED:
            self.drop()
            return
        if sent:
            self.progress = self.hub.clock()
        self.rest = memoryview(data)[sent:]
        if bool(self.rest) != waited:
            self.hub.selector.modify(self.sock, READ | WRITE if self.rest else READ, self)
        if self.rest or self.busy:
            return
        if self.ending:
            self.drop()
        else:
            self.busy = True
            self.run(self._work)

    def _work(self) -> None:
        """In a worker: the next bytes."""
        data: bytes | None = None
        try:
            data = self.body.pull()
        finally:
            self.hub.call(lambda: self._pulled(data))

    def _pulled(self, data: bytes | None) -> None:
        self.busy = False
        if self.gone:
            self.run(self.body.close)
            return
        self.ending = data is None
        framed = ending(self.frame) if data is None else self.frame(data)
        if self.rest:  # a heartbeat has filled the socket
            self.rest = memoryview(b"".join((self.rest, framed)))
        else:
            self._send(framed)
