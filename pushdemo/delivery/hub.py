"""The hub: one thread and one selector that hold the sockets of all parked clients.

It knows sockets and what is held on them (delivery/feed.py, delivery/poll.py, delivery/pull.py), no web server. Only
its own thread touches what is not marked otherwise; other threads leave a call in `_calls` or a topic in `_changed`,
and ring the bell.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress

from pushdemo.delivery.connection import READ
from pushdemo.delivery.feed import Feed, Stream
from pushdemo.delivery.poll import Poll, Reply, send_off
from pushdemo.delivery.pull import Pull, Pulled
from pushdemo.delivery.sending import Sender
from pushdemo.delivery.subscription import LongPoll, Subscription, retry_hint
from pushdemo.topics.topic import Topic
from pushdemo.transports.framing import Frame, chunk, ending, whole

log = logging.getLogger("pushdemo")

_SWEEP = 0.5  # seconds between two looks for stalled clients, quiet streams and polls whose time is over

Run = Callable[[Callable[[], None]], None]


class Hub:
    """Holds parked clients. Its thread starts with the first of them. `clock` counts seconds.

    `io_uring`: whether many sends may share a system call, where the kernel can.
    """

    sender: Sender  # the thread's own: it opens and closes it

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, io_uring: bool = True) -> None:
        self.clock = clock
        self._io_uring = io_uring
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends
        self._changed: deque[Topic] = deque()  # any thread appends
        self._rung = False  # any thread; true only while something is in the bell's socket, or about to be
        self._lock = threading.Lock()  # guards the two below
        self._thread: threading.Thread | None = None
        self._finished = False
        self._stopping = False  # any thread sets it, once
        self._feeds: dict[Topic, Feed] = {}
        self._pulls: set[Pull] = set()
        self._emptied: set[Hashable] = set()  # feeds that may have nobody left, and pulls that are over
        self._swept = clock()
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self.selector.register(self._ear, READ, None)

    # -- any thread

    def stream(self, sock: socket.socket, subscription: Subscription, *, chunked: bool, unsent: bytes) -> None:
        """Hold an open subscription; `unsent` is what is still to be written of its response so far."""
        frame = chunk if chunked else whole

        def adopt() -> None:
            if self._stopping:
                _say_goodbye(sock, unsent, frame, subscription)
                subscription.close()
                return
            feed = self._feed(subscription.topic)
            client = Stream(sock, subscription, feed.group(subscription, frame), unsent)
            self.selector.register(sock, READ, client)
            client.advance()

        self.call(adopt)

    def poll(self, sock: socket.socket, poll: LongPoll, reply: Reply, *, unsent: bytes) -> None:
        """Hold a long poll until there is an answer; `unsent` is what is left of the response before that."""

        def adopt() -> None:
            if self._stopping:
                send_off(sock, unsent, poll, reply)
                return
            poll.join()
            Poll(sock, unsent, poll, reply, self._feed(poll.topic)).start()

        self.call(adopt)

    def pull(self, sock: socket.socket, body: Pulled, *, chunked: bool, unsent: bytes, run: Run) -> None:
        """Hold a client that is given the next bytes when it has taken the last; `run` has workers make them."""
        frame = chunk if chunked else whole

        def adopt() -> None:
            if self._stopping:
                _say_goodbye(sock, unsent, frame, body)
                body.close()
                return
            client = Pull(self, sock, body, frame, run)
            self._pulls.add(client)
            client.start(unsent)

        self.call(adopt)

    def stop(self, timeout: float = 1.5) -> None:
        """End every stream and answer every poll, with a hint when to come back; at most `timeout` seconds."""
        self._stopping = True
        self.call(lambda: None)  # wakes the thread, or starts it to clean up
        thread = self._thread
        if thread:
            thread.join(timeout)

    def call(self, function: Callable[[], None]) -> None:
        """Have the hub's thread call `function`; once there is none any more, call it here."""
        with self._lock:
            if not self._finished:
                self._calls.append(function)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="pushdemo-hub", daemon=True)
                    self._thread.start()
                self._ring()
                return
        function()

    def _notified(self, topic: Topic) -> None:
        self._changed.append(topic)
        self._ring()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # full: it rings already; closed: nobody is there any more
                self._bell.send(b"!")

    # -- the hub's own thread from here on

    def _run(self) -> None:
        self.sender = Sender(self._io_uring)
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                log.exception("the hub met an error and goes on")
        self._finish()

    def _turn(self) -> None:
        for key, events in self.selector.select(self._timeout()):
            if key.data is None:
                self._ear.recv(4096)
                self._rung = False  # before the queues are read: what is put there from now on rings again
            else:
                key.data.ready(events)
        self._do_calls()
        for _ in range(len(self._changed)):  # what comes meanwhile has rung: the next turn takes it
            if feed := self._feeds.get(self._changed.popleft()):
                feed.deliver()
        now = self.clock()
        if now >= self._swept + _SWEEP:
            self._swept = now
            for feed in list(self._feeds.values()):
                feed.sweep(now)
            for pull in list(self._pulls):
                pull.sweep(now)
        # Once a turn, when no loop is on its way through them.
        while self._emptied:
            self._tidy(self._emptied.pop())

    def _timeout(self) -> float | None:
        """Seconds until the next sweep; None while there is nothing to sweep."""
        return max(0.0, self._swept + _SWEEP - self.clock()) if self._feeds or self._pulls else None

    def _do_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _feed(self, topic: Topic) -> Feed:
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = Feed(self, topic)
            topic.listen(self._notified)
        # What came before the call to listen, or waits in the queue, is delivered now, so that whoever joins finds the
        # feed at least as far as itself.
        feed.deliver()
        return feed

    def emptied(self, held: Hashable) -> None:
        """A feed may have nobody left; a pull is over."""
        self._emptied.add(held)

    def _tidy(self, held: Hashable) -> None:
        if isinstance(held, Pull):
            self._pulls.discard(held)
        elif isinstance(held, Feed) and held.tidy() and self._feeds.get(held.topic) is held:
            del self._feeds[held.topic]
            held.topic.unlisten(self._notified)

    def _finish(self) -> None:
        """The server stops: everyone is told, and let go."""
        self._do_calls()
        for pull in list(self._pulls):
            pull.finish()
        for feed in list(self._feeds.values()):
            feed.finish()
            self._tidy(feed)
        with self._lock:
            self._finished = True
        self._do_calls()
        self.selector.close()
        self.sender.close()
        self._ear.close()
        self._bell.close()


def _say_goodbye(sock: socket.socket, unsent: bytes, frame: Frame, body: Subscription | Pulled) -> None:
    """End a stream that has come too late."""
    with suppress(OSError):
        sock.send(unsent + ending(frame, body.transport.retry(retry_hint())))
    sock.close()
