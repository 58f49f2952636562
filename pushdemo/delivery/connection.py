"""A parked client's connection: its socket, and what the socket has not taken yet. The loop's thread's alone.

A connection is in one of three states:

- open, with nothing left to send: the loop reports when the client leaves, or sends something;
- open, with a `rest`: the loop reports as well when the socket can be written. Nothing else may be written to it until
  the rest is taken, or two messages would be mixed up;
- closed: it is in no table, and no later report of this turn means it any more.

`send_rest` moves it between the first two, `drop` to the last.

A client that has closed its sending side (a half-close) and one that has closed the connection look alike until the
server writes. To notice who has left without a write is worth more than to serve the half-closed for ever. So both are
told the ordinary end, and closed.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from pushdemo.delivery.held import FAILED
from pushdemo.delivery.loop import Loop
from pushdemo.delivery.metrics import Tally
from pushdemo.delivery.poller import READ, WRITE
from pushdemo.delivery.sending import offer
from pushdemo.delivery.tcp import hang_up

_HEARD = 4_096  # bytes that a client may send on its stream; who sends on costs a turn of the hub each time


class Connection:
    """What streams, long polls and pulled bodies have in common."""

    __slots__ = ("heard", "listening", "loop", "open", "progress", "rest", "sock", "tally", "writing")

    while_writing = READ | WRITE  # what the loop reports while there is a rest

    def __init__(self, loop: Loop, sock: socket.socket, tally: Tally, unsent: bytes) -> None:
        self.loop = loop
        self.tally = tally
        self.sock = sock
        self.rest: bytes | memoryview = unsent
        self.writing = False  # whether the loop reports that the socket can be written
        self.progress = loop.clock()  # when the socket last took something
        self.heard = 0  # bytes that the client has sent, to which nobody listens
        self.open = True
        self.listening = True  # the client has not closed its side
        loop.watch(self, READ)

    # -- what a subclass says

    def taken(self) -> None:
        """The socket has taken the whole rest."""

    def gone(self) -> None:
        """The connection has been dropped."""

    def half_closed(self) -> None:
        """The client has closed its side: tell it the end, and close."""
        raise NotImplementedError

    # -- what they share

    def ready(self, events: int) -> None:
        """The socket can be written, or the client has left or sends what nobody asked for."""
        if not self.open:  # dropped earlier in this turn
            return
        if events & WRITE:
            if self.send_rest():
                self.taken()
            return
        try:
            left = self.has_left()
        except OSError:
            self.drop()
            return
        if left:
            self.half_closed()

    def send_rest(self) -> bool:
        """Send what is left; whether that was all. A client that is gone is dropped."""
        if self.rest:
            sent = offer(self.sock, self.rest)
            if sent == FAILED:
                self.drop()
                return False
            if sent:
                self.progress = self.loop.clock()
            self.rest = memoryview(self.rest)[sent:] if sent < len(self.rest) else b""
        self.watch()
        return not self.rest

    def watch(self) -> None:
        """Have the loop report when the socket can be written, as long as there is a rest."""
        if bool(self.rest) != self.writing:
            self.writing = not self.writing
            self._report()

    def hear_no_more(self) -> None:
        """Have the loop report no more that the client has closed its side, which it would do for ever."""
        self.listening = False
        self._report()

    def _report(self) -> None:
        events = self.while_writing if self.writing else READ
        self.loop.watch(self, events if self.listening else WRITE)

    def unwatch(self) -> None:
        """Have the loop report nothing more."""
        self.loop.unwatch(self.sock)

    def stalled(self, now: float, timeout: float) -> bool:
        """Whether the client has taken nothing of the rest for `timeout` seconds."""
        return bool(self.rest) and now - self.progress >= timeout

    def has_left(self) -> bool:
        """Read and forget what a client sends; whether it has closed its side, or sends too much.

        Raises OSError where the connection is lost.
        """
        try:
            data = self.sock.recv(65_536)
            self.heard += len(data)
            return not data or self.heard > _HEARD
        except BlockingIOError:
            return False

    def farewell(self, data: bytes) -> None:
        """Say why the connection ends, unless that would be in the middle of something else, and drop it."""
        if self.open and not self.rest:
            say_goodbye(self.sock, data)
        self.drop()

    def drop(self) -> None:
        """The client is gone, or is to go. What follows the first call does nothing."""
        if self.open:
            self.open = False
            self.rest = b""
            self.unwatch()
            hang_up(self.sock)
            self.gone()

    def fail(self) -> None:
        """An error of ours has met this client: it is dropped and counted, and the others go on."""
        self.tally.failed()
        self.drop()


def say_goodbye(sock: socket.socket, data: bytes) -> None:
    """Send the last bytes of a connection, as far as the socket takes them at once."""
    with suppress(OSError):
        sock.send(data)
