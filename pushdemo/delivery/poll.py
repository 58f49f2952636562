"""Parked long polls: clients that wait for one answer. All of this is the hub's thread's alone."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Protocol

from pushdemo.delivery.connection import READ, WRITE
from pushdemo.delivery.feed import Feed
from pushdemo.delivery.sending import send
from pushdemo.delivery.subscription import LongPoll, retry_hint


class Reply(Protocol):
    """What a parked long poll becomes in the server's hands."""

    def response(self, body: bytes) -> bytes:
        """The whole HTTP response with this body."""

    def done(self, rest: bytes) -> None:
        """The response is written but for `rest`; the connection is the server's again."""

    def gone(self) -> None:
        """The client has left; the socket is closed."""


def send_off(sock: socket.socket, unsent: bytes | memoryview, poll: LongPoll, reply: Reply) -> None:
    """Answer a long poll because the server stops."""
    with suppress(OSError):
        sock.send(b"".join((unsent, reply.response(poll.waiting(retry_hint())))))
    sock.close()
    poll.close()
    reply.gone()


class Poll:
    """A client that waits in a feed for the answer to its long poll, until `deadline`."""

    __slots__ = ("deadline", "feed", "poll", "reply", "sock", "unsent")

    def __init__(self, sock: socket.socket, unsent: bytes, poll: LongPoll, reply: Reply, feed: Feed) -> None:
        self.sock = sock
        self.unsent = memoryview(unsent)  # of the response before this one: it does not wait for the answer
        self.poll = poll
        self.reply = reply
        self.feed = feed
        self.deadline = feed.hub.clock() + poll.pace.longpoll_timeout

    def start(self) -> None:
        """Wait, unless the answer has come meanwhile."""
        self.feed.polls[self] = None
        self.feed.hub.selector.register(self.sock, WRITE if self.unsent else READ, self)
        self.answer()

    def ready(self, events: int) -> None:
        """The client reads, has left, or has sent its next request: that stays in the socket until this one is done."""
        if self not in self.feed.polls:  # answered in this very turn
            return
        try:
            if events & WRITE:
                self._send_unsent()
                return
            left = not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            left = True
        if left:
            self._forget()
            self._close()
        else:
            self.feed.hub.selector.unregister(self.sock)  # it would be reported for ever

    def _send_unsent(self) -> None:
        self.unsent = self.unsent[self.sock.send(self.unsent) :]
        if not self.unsent:
            self.feed.hub.selector.modify(self.sock, READ, self)

    def answer(self) -> None:
        """Answer, if there is something to say."""
        if (body := self.poll.answer()) is not None:
            self._reply(body)

    def expire(self) -> None:
        """Nothing has come in time."""
        self._reply(self.poll.waiting())

    def finish(self) -> None:
        """The server stops."""
        self._forget()
        send_off(self.sock, self.unsent, self.poll, self.reply)

    def _reply(self, body: bytes) -> None:
        """Write the whole response and give the connection back."""
        self._forget()
        self.poll.close()  # first: who has the answer asks again, and needs the place
        data = b"".join((self.unsent, self.reply.response(body)))
        try:
            sent = send(self.sock, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close()
            return
        self.reply.done(data[sent:])

    def _forget(self) -> None:
        del self.feed.polls[self]
        with suppress(KeyError):  # not watched any more: see ready
            self.feed.hub.selector.unregister(self.sock)
        if not self.feed.polls:
            self.feed.hub.emptied(self.feed)

    def _close(self) -> None:
        self.sock.close()
        self.poll.close()
        self.reply.gone()
