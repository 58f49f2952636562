"""Parked clients that are given the next bytes only when they have taken the last: a generator's, which waits for them.

What makes the bytes may take long and is the application's code, so a worker thread runs it; while the client reads, it
holds no thread. Only the hub's thread calls a `Pull`; `Pulled.pull` and `Pulled.close` run in workers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Protocol

from pushdemo.delivery.connection import Connection
from pushdemo.delivery.loop import Loop
from pushdemo.delivery.metrics import Tally
from pushdemo.delivery.subscription import Pace, retry_hint
from pushdemo.delivery.tcp import give_up_after, keep_late_here
from pushdemo.transports import Format, StreamTransport

Run = Callable[[Callable[[], None]], None]  # has a worker thread call a function, soon


_LATE = 0.5  # seconds until the next sweep, which may be too late


class Pulled(Protocol):
    """The body of such a response. One thread at a time calls it."""

    pace: Pace
    tally: Tally
    transport: StreamTransport
    ends: float  # when the client's right to listen ends, in the loop's time

    @property
    def ordered(self) -> bool:
        """Whether somebody has ordered the end of this client."""

    def open(self) -> bytes:
        """The first bytes."""

    def pull(self) -> bytes | None:
        """The next bytes, however long they take; None when there are no more."""

    def close(self) -> None:
        """The client is gone."""

    def closing(self, function: Callable[[], object]) -> None:
        """Have `close` call `function` too."""

    def __iter__(self) -> Iterator[bytes]:
        """All of it, made in the thread that iterates."""


class Pull(Connection):
    """One such client in the hub. `everyone` is where it stands as long as it is open."""

    __slots__ = ("body", "busy", "everyone", "format", "last", "run")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        body: Pulled,
        format: Format,
        unsent: bytes,
        run: Run,
        everyone: set[Pull],
    ) -> None:
        give_up_after(sock, body.pace.heartbeat, body.pace.stall_timeout)
        keep_late_here(sock)
        super().__init__(loop, sock, body.tally, unsent)
        self.body = body
        self.format = format
        self.run = run
        self.everyone = everyone
        self.busy = False  # a worker is making the next bytes
        self.last = False  # nothing follows the rest

    def start(self) -> None:
        """Send what is still unsent of the response so far, and go on."""
        self.everyone.add(self)
        self._send(b"")

    def taken(self) -> None:
        """The socket has taken the rest: have the next bytes made, or end."""
        if self.last:
            self.drop()
        elif not self.busy:
            self.busy = True
            self.run(self._work)

    def sweep(self, now: float) -> None:
        """Drop a client that does not read; keep the connection alive while the generator takes its time."""
        pace = self.body.pace
        if self.stalled(now, pace.stall_timeout):
            self.tally.closed_stalled()
            self.drop()
        elif now + min(_LATE, now - self.progress) >= self.body.ends:  # one that is quiet ends before the next sweep
            self.half_closed()
        elif self.busy and not self.rest and now - self.progress >= pace.heartbeat:
            self._send(self.format.notice("heartbeat"))

    def finish(self) -> None:
        """The server stops."""
        self.farewell(self.format.ending(self.body.transport.retry(retry_hint())))

    def half_closed(self) -> None:
        """The client has closed its side, or may listen no more: end the stream, after what it is being written."""
        if not self.rest:
            self.finish()
            return
        if not self.last:
            self.rest = b"".join((self.rest, self.format.ending(self.body.transport.retry(retry_hint()))))
            self.last = True
        self.hear_no_more()

    def fail(self) -> None:
        """See Connection."""
        self.everyone.discard(self)
        super().fail()

    def gone(self) -> None:
        """The connection has been dropped: close the body, unless a worker has it. Then `_pulled` does so."""
        self.everyone.discard(self)
        if not self.busy:
            self.run(self.body.close)

    def _send(self, data: bytes) -> None:
        self.rest = b"".join((self.rest, data)) if self.rest else data
        if self.send_rest():
            self.taken()

    def _work(self) -> None:
        """In a worker: make the next bytes."""
        data: bytes | None = None
        try:
            data = self.body.pull()
        finally:
            self.loop.call(lambda: self.loop.guarded(self._pulled, data, fail=self.fail))

    def _pulled(self, data: bytes | None) -> None:
        self.busy = False
        if not self.open:
            self.run(self.body.close)
            return
        if self.last:  # the client has closed its side meanwhile
            return
        self.last = data is None
        self._send(self.format.ending() if data is None else self.format.frame(data))
