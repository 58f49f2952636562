"""Parked long polls: clients that wait for one answer, after which their connection is the server's again.

Theory of operation. A `Poll` is waiting, answering, or over.

- Waiting, it stands in `polls` of its feeds. What is unsent of the response before it does not wait for the answer. The
  client's next request does: it stays in the socket, which the server reads when it has it back. As the loop would
  report that request for ever, the socket is not watched from then on, and each sweep looks whether the client has
  closed its side behind it.
- Answering, it sends a large answer, and stands in `looked_at` of its first feed. All clients share the answer's bytes;
  the server would make a copy for each. A small answer goes out with one `send`.
- Over, the connection is given back (`done`), or closed (`gone`): once, and one of the two.

All of this is the hub's thread's alone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from pushdemo.delivery.connection import Connection, say_goodbye
from pushdemo.delivery.held import send
from pushdemo.delivery.loop import Loop
from pushdemo.delivery.poller import WRITE
from pushdemo.delivery.subscription import LARGE, LongPoll, retry_hint
from pushdemo.delivery.tcp import closing, give_up_after, hang_up


class Reply(Protocol):
    """What a parked long poll becomes in the server's hands."""

    gives_up: bool  # whether the kernel ends the connection as `give_up_after` says; it stays so

    def head(self, size: int) -> bytes:
        """The status line and the headers of the response with a body of this size."""

    def done(self, rest: bytes) -> None:
        """The response is written but for `rest`; the connection is the server's again."""

    def gone(self) -> None:
        """The client has left; the socket is closed."""


class Waiting(Protocol):
    """Where a poll waits: a feed."""

    loop: Loop
    due: float
    polls: dict[Poll, None]
    looked_at: dict[Poll, None]


class Poll(Connection):
    """A client that waits for the answer to its long poll, until `deadline`."""

    __slots__ = ("__weakref__", "body", "deadline", "feed", "others", "poll", "reply")

    while_writing = WRITE  # not the next request

    def __init__(
        self, sock: socket.socket, poll: LongPoll, reply: Reply, feeds: Sequence[Waiting], unsent: bytes
    ) -> None:
        if not reply.gives_up:  # once for a connection, which mostly asks again
            give_up_after(sock, poll.pace.heartbeat, poll.pace.stall_timeout)
            reply.gives_up = True
        self.feed, self.others = feeds[0], tuple(feeds[1:])  # which is one object for all that have one feed
        super().__init__(self.feed.loop, sock, poll.cursors[0].tally, unsent)
        self.poll = poll
        self.reply = reply
        self.deadline = self.progress + poll.pace.longpoll_timeout
        self.body: bytes | None = None  # of the answer that is being sent: what follows the rest of it

    # -- waiting

    def start(self) -> None:
        """Wait, unless the answer has come meanwhile."""
        for feed in (self.feed, *self.others):
            feed.polls[self] = None
            feed.due = 0.0
        self.send_rest()
        self.answer()
        if self.poll.ordered:
            self.let_go()

    def has_left(self) -> bool:
        """Whether the client has closed its side; its next request is not looked at again. Raises OSError."""
        try:
            left = not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        if not left:
            self.unwatch()
            self.feed.looked_at[self] = None
        return left

    def half_closed(self) -> None:
        """The client has closed its side: answer now. The server serves what it has sent before that."""
        self._reply(self.poll.waiting())

    def answer(self) -> None:
        """Answer, if there is something to say."""
        if self.open and self.body is None and (body := self.poll.answer()) is not None:
            self._reply(body)

    def let_go(self) -> None:
        """Answer now: nothing has come in time, or the client may not listen any more."""
        if self.open and self.body is None:
            self._reply(self.poll.waiting())

    def sweep(self, now: float) -> None:
        """Look at what the loop does not report."""
        if self.body is None:
            if closing(self.sock):
                self.half_closed()
        elif self.stalled(now, self.poll.pace.stall_timeout):
            self.tally.closed_stalled()
            self.drop()

    # -- answering

    def _reply(self, body: bytes) -> None:
        """Write the whole response and give the connection back."""
        self.poll.close()  # first: who has the answer asks again, and needs the place
        if len(body) > LARGE:
            self._send_large(body)
            return
        self._let_go()
        data = b"".join((self.rest, self.reply.head(len(body)), body))
        try:
            sent = send(self.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            hang_up(self.sock)
            self.reply.gone()
            return
        self.reply.done(data[sent:])

    def _send_large(self, body: bytes) -> None:
        self._forget()
        self.feed.looked_at[self] = None
        self.rest, self.body = b"".join((self.rest, self.reply.head(len(body)))), body
        self.progress = self.loop.clock()
        self.loop.watch(self, WRITE)
        self.writing, self.listening = True, False
        if self.send_rest():
            self.taken()

    def taken(self) -> None:
        """The socket has taken the rest. Of an answer, send the body next, then give the connection back."""
        if self.body:
            self.rest, self.body = self.body, b""
            if self.send_rest():
                self.taken()
        elif self.body is not None:
            self._let_go()
            self.reply.done(b"")

    # -- over

    def finish(self) -> None:
        """The server stops."""
        if self.body is not None:
            self.drop()
        else:
            self._let_go()
            send_off(self.sock, self.rest, self.poll, self.reply)

    def fail(self) -> None:
        """See Connection; the error may have come when it had been let go of already."""
        super().fail()
        hang_up(self.sock)
        self.poll.close()
        self.reply.gone()

    def gone(self) -> None:
        """The connection has been dropped."""
        self._forget()
        self.poll.close()
        self.reply.gone()

    def _let_go(self) -> None:
        self.open = False
        self.unwatch()
        self._forget()

    def _forget(self) -> None:
        self.feed.looked_at.pop(self, None)
        for feed in (self.feed, *self.others):
            feed.polls.pop(self, None)


def send_off(sock: socket.socket, unsent: bytes | memoryview, poll: LongPoll, reply: Reply) -> None:
    """Answer a long poll because the server stops."""
    body = poll.waiting(retry_hint())
    say_goodbye(sock, b"".join((unsent, reply.head(len(body)), body)))
    hang_up(sock)
    poll.close()
    reply.gone()
