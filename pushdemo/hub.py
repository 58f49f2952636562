"""The hub: one thread and one selector that hold the sockets of all parked clients.

It knows sockets and subscriptions, no web server. A message is written to each client of its topic with one
non-blocking `send` of the same bytes object; a client that cannot take it all goes on from its own position when its
socket can be written again. Only the hub's thread touches what is not marked otherwise; other threads leave a call in
`_calls` or a topic in `_changed`, and ring the bell.
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
from typing import Protocol

from pushdemo import transports
from pushdemo.messages import Message
from pushdemo.pulls import Pull, Pulled
from pushdemo.subscriptions import LongPoll, Subscription, retry_hint
from pushdemo.topics import Topic

log = logging.getLogger("pushdemo")

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_SWEEP = 0.5  # seconds between two looks for stalled clients, quiet streams and polls whose time is over
_LAST_CHUNK = b"0\r\n\r\n"  # RFC 9112 section 7.1


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of the chunked transfer coding (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(data: bytes) -> bytes:
    """`data` as it is: a response that ends with its connection has no framing (RFC 9112 section 6.3)."""
    return data


def _chunks(data: bytes, last: bool) -> bytes:
    return (chunk(data) if data else b"") + (_LAST_CHUNK if last else b"")  # an empty chunk would be the last one


def _plain(data: bytes, last: bool) -> bytes:
    return data


class Stream:
    """A client that is being streamed to. `rest` is what its socket has not taken yet of the bytes under way."""

    __slots__ = ("group", "last", "progress", "rest", "sock", "subscription")

    def __init__(self, sock: socket.socket, subscription: Subscription, rest: bytes) -> None:
        self.sock = sock
        self.subscription = subscription
        self.rest: memoryview | None = memoryview(rest) if rest else None
        self.last = False  # nothing follows `rest`
        self.progress = 0.0  # when the socket last took something of a `rest`
        self.group: Group


class Reply(Protocol):
    """What a parked long poll becomes in the server's hands."""

    def response(self, body: bytes) -> bytes:
        """The whole HTTP response with this body."""

    def done(self, rest: bytes) -> None:
        """The response is written but for `rest`; the connection is the server's again."""

    def gone(self) -> None:
        """The client has left; the socket is closed."""


class Poll:
    """A client that waits for the answer to a long poll."""

    __slots__ = ("deadline", "poll", "reply", "sock")

    def __init__(self, sock: socket.socket, poll: LongPoll, reply: Reply) -> None:
        self.sock = sock
        self.poll = poll
        self.reply = reply
        self.deadline = 0.0


class Group:
    """The streams of one topic that are written the same bytes."""

    __slots__ = ("behind", "current", "feed", "frame", "pace", "transport", "written")

    def __init__(self, feed: Feed, subscription: Subscription, frame: Callable[[bytes], bytes], now: float) -> None:
        self.feed = feed
        self.transport = subscription.transport
        self.pace = subscription.pace
        self.frame = frame
        self.current: dict[Stream, None] = {}  # those that have everything up to the feed's position
        self.behind: dict[Stream, None] = {}  # those whose sockets are full
        self.written = now  # when `current` was last written to

    def encoded(self, message: Message, reset: bool) -> bytes:
        """The bytes of an entry with their framing, made once; a reset before it is made each time."""
        data = message.encoded((self.transport.name, self.frame), self._encode)
        return self.frame(self.transport.notice("reset")) + data if reset else data

    def _encode(self, message: Message) -> bytes:
        return self.frame(transports.encode(self.transport, message))

    def ending(self, last: bytes) -> bytes:
        """`last` and the end of the response."""
        return (_chunks if self.frame is chunk else _plain)(last, True)


class Feed:
    """What the hub holds of one topic. Everyone in a `current` has all entries up to `position`."""

    __slots__ = ("groups", "polls", "position", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.position = topic.head
        self.groups: dict[tuple[str, Callable[[bytes], bytes]], Group] = {}
        self.polls: dict[Poll, None] = {}  # in the order of their deadlines


class Hub:
    """Holds parked clients. Its thread starts with the first of them. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._calls: deque[Callable[[], None]] = deque()  # any thread appends
        self._changed: deque[Topic] = deque()  # any thread appends
        self._rung = False  # any thread; a bell too many does no harm
        self._lock = threading.Lock()  # guards the three below
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._finished = False
        self._feeds: dict[Topic, Feed] = {}
        self._emptied: set[Feed] = set()
        self.pulls: set[Pull] = set()
        self._swept = clock()
        self.selector = selectors.DefaultSelector()
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self.selector.register(self._ear, _READ)

    # -- any thread

    def stream(self, sock: socket.socket, subscription: Subscription, *, chunked: bool, unsent: bytes) -> None:
        """Hold an open subscription; `unsent` is what is still to be written of its response so far."""
        client = Stream(sock, subscription, unsent)
        self.call(lambda: self._adopt(client, chunk if chunked else whole))

    def poll(self, sock: socket.socket, poll: LongPoll, reply: Reply) -> None:
        """Hold a long poll that has joined its topic until there is an answer."""
        client = Poll(sock, poll, reply)
        self.call(lambda: self._await(client))

    def pull(
        self,
        sock: socket.socket,
        body: Pulled,
        *,
        chunked: bool,
        unsent: bytes,
        run: Callable[[Callable[[], None]], None],
    ) -> None:
        """Hold a client that is given the next bytes when it has taken the last; `run` has workers make them."""
        client = Pull(self, sock, body, _chunks if chunked else _plain, run)
        self.call(lambda: self._begin(client, unsent))

    def stop(self, timeout: float = 1.5) -> None:
        """End every stream and answer every poll, with a hint when to come back; at most `timeout` seconds."""
        with self._lock:
            thread, self._stopping = self._thread, True
        self._ring()
        if thread:
            thread.join(timeout)

    def call(self, function: Callable[[], None]) -> None:
        """Have the hub's thread call `function`."""
        with self._lock:
            if not self._finished:
                self._calls.append(function)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="pushdemo-hub", daemon=True)
                    self._thread.start()
                self._ring()
                return
        function()  # nobody else is here any more; it finds the hub stopped and closes the client

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
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                log.exception("the hub met an error and goes on")
        self._finish()

    def _turn(self) -> None:
        for key, events in self.selector.select(self._timeout()):
            client = key.data
            if client is None:
                self._ear.recv(4096)
            elif isinstance(client, Pull):
                client.ready(events)
            elif events & _WRITE:
                self._writable(client)
            elif isinstance(client, Stream):
                self._readable(client)
            else:
                self._overheard(client)
        self._rung = False  # before the queues are read: what is put there from now on rings again
        while self._calls:
            self._calls.popleft()()
        while self._changed:
            if feed := self._feeds.get(self._changed.popleft()):
                self._deliver(feed)
        if self.clock() >= self._swept + _SWEEP:
            self._sweep()
        if self._emptied:
            self._tidy()

    def _timeout(self) -> float | None:
        if not self._feeds and not self.pulls:
            return None
        return max(0.0, self._swept + _SWEEP - self.clock())

    # -- feeds and groups

    def _feed(self, topic: Topic) -> Feed:
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = Feed(topic)
            topic.listen(self._notified)
        # What has come before the call to listen, or is still in the queue, is delivered now, so that whoever joins
        # finds the feed at least as far as itself.
        self._deliver(feed)
        return feed

    def _tidy(self) -> None:
        """Forget the groups and feeds that nobody is left in: once a turn, when no loop is on its way through them."""
        for feed in self._emptied:
            feed.groups = {key: group for key, group in feed.groups.items() if group.current or group.behind}
            if not feed.groups and not feed.polls and feed.topic in self._feeds:
                del self._feeds[feed.topic]
                feed.topic.unlisten(self._notified)
        self._emptied.clear()

    def _deliver(self, feed: Feed) -> None:
        """Write everyone what has come since; answer the polls; end what has ended."""
        while True:
            message, gap = feed.topic.following(feed.position)
            if message is None:
                break
            feed.position = message.position
            for group in feed.groups.values():
                if group.current:
                    self._write(group, group.encoded(message, gap))
        for client in list(feed.polls):
            if (body := client.poll.answer()) is not None:
                self._answer(feed, client, body)
        if feed.topic.ended:
            self._end(feed)

    def _write(self, group: Group, data: bytes) -> None:
        """Write `data` to all that are current. This loop is what everything costs: keep it bare."""
        size = len(data)
        stuck: list[tuple[Stream, int]] = []
        for client in group.current:
            try:
                sent = client.sock.send(data)
            except BlockingIOError:
                stuck.append((client, 0))
            except OSError:
                stuck.append((client, -1))
            else:
                if sent != size:
                    stuck.append((client, sent))
        group.written = self.clock()
        for client, sent in stuck:
            if sent < 0:
                self._drop(client)
            else:
                client.rest = memoryview(data)[sent:]
                self._fall_behind(client)

    # -- streams

    def _adopt(self, client: Stream, frame: Callable[[bytes], bytes]) -> None:
        subscription = client.subscription
        if self._stopping:
            client.sock.close()
            subscription.close()
            return
        feed = self._feed(subscription.topic)
        key = (subscription.transport.name, frame)
        group = feed.groups.get(key)
        if group is None:
            group = feed.groups[key] = Group(feed, subscription, frame, self.clock())
        client.group = group
        self.selector.register(client.sock, _READ, client)
        self._advance(client)

    def _advance(self, client: Stream) -> None:
        """Write what the client lacks, until its socket is full or it has everything and is current again."""
        group, feed = client.group, client.group.feed
        while True:
            if client.rest is not None and not self._send_rest(client):
                return
            if client.subscription.position > feed.position:  # it has skipped to the newest entry: so must the feed
                self._deliver(feed)
            if client.subscription.position < feed.position:
                message, reset = client.subscription.take()
                assert message is not None
                client.rest = memoryview(group.encoded(message, reset))
            elif feed.topic.ended:
                client.rest = memoryview(group.ending(group.transport.notice("end")))
                client.last = True
            else:
                if client in group.behind:
                    del group.behind[client]
                    self.selector.modify(client.sock, _READ, client)
                group.current[client] = None
                return

    def _send_rest(self, client: Stream) -> bool:
        """Send what is under way; whether the client can be given more."""
        assert client.rest is not None
        try:
            sent = client.sock.send(client.rest)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return False
        if sent < len(client.rest):
            client.rest = client.rest[sent:]
            if sent:
                client.progress = self.clock()
            if client not in client.group.behind:
                self._fall_behind(client)
            return False
        client.rest = None
        if client.last:
            self._drop(client)
        return not client.last

    def _fall_behind(self, client: Stream) -> None:
        """The socket is full: the client goes on by itself when it can be written again."""
        group = client.group
        if client in group.current:
            del group.current[client]
            client.subscription.position = group.feed.position
        group.behind[client] = None
        client.progress = self.clock()
        self.selector.modify(client.sock, _READ | _WRITE, client)

    def _writable(self, client: Stream) -> None:
        self._advance(client)

    def _readable(self, client: Stream) -> None:
        """The client has left, or sends what nobody asked for."""
        try:
            gone = not client.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._drop(client)

    def _end(self, feed: Feed) -> None:
        for group in list(feed.groups.values()):
            for client in list(group.current):
                del group.current[client]
                client.subscription.position = feed.position
                self._advance(client)

    def _drop(self, client: Stream) -> None:
        """The client is gone, or is to go. What follows the first call does nothing."""
        if client.sock.fileno() < 0:
            return
        group = client.group
        group.current.pop(client, None)
        group.behind.pop(client, None)
        self.selector.unregister(client.sock)
        client.sock.close()
        client.subscription.close()
        if not group.current and not group.behind:
            self._emptied.add(group.feed)

    # -- clients that pull

    def _begin(self, client: Pull, unsent: bytes) -> None:
        self.pulls.add(client)
        client.start(unsent)
        if self._stopping and not client.gone:
            client.finish()

    # -- long polls

    def _await(self, client: Poll) -> None:
        if self._stopping:
            self._send_off(client)
            return
        client.poll.join()
        feed = self._feed(client.poll.topic)
        if (body := client.poll.answer()) is not None:
            self._reply(client, body)
            self._emptied.add(feed)
            return
        client.deadline = self.clock() + client.poll.pace.longpoll_timeout
        feed.polls[client] = None
        self.selector.register(client.sock, _READ, client)

    def _answer(self, feed: Feed, client: Poll, body: bytes) -> None:
        self._forget(feed, client)
        self._reply(client, body)

    def _forget(self, feed: Feed, client: Poll) -> None:
        del feed.polls[client]
        with suppress(KeyError):  # not watched any more: see _overheard
            self.selector.unregister(client.sock)
        if not feed.polls:
            self._emptied.add(feed)

    def _reply(self, client: Poll, body: bytes) -> None:
        """Write the whole response and give the connection back."""
        data = client.reply.response(body)
        client.poll.close()
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            client.sock.close()
            client.reply.gone()
            return
        client.reply.done(data[sent:])

    def _overheard(self, client: Poll) -> None:
        """The client has left, or has sent its next request: that stays in the socket until this one is done."""
        feed = self._feeds.get(client.poll.topic)
        if feed is None or client not in feed.polls:  # answered in this very turn
            return
        try:
            gone = not client.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if not gone:
            self.selector.unregister(client.sock)  # it would be reported for ever
            return
        self._forget(feed, client)
        client.sock.close()
        client.poll.close()
        client.reply.gone()

    # -- the clock and the end

    def _sweep(self) -> None:
        now = self._swept = self.clock()
        for pull in list(self.pulls):
            pull.sweep(now)
        for feed in list(self._feeds.values()):
            for group in list(feed.groups.values()):
                for client in [c for c in group.behind if now - c.progress >= group.pace.stall_timeout]:
                    self._drop(client)
                if group.current and now - group.written >= group.pace.heartbeat:
                    self._write(group, group.frame(group.transport.notice("heartbeat")))
            while feed.polls and (client_poll := next(iter(feed.polls))).deadline <= now:
                self._answer(feed, client_poll, client_poll.poll.waiting())

    def _finish(self) -> None:
        """The server stops: everyone is told, and let go."""
        while self._calls:
            self._calls.popleft()()
        for pull in list(self.pulls):
            pull.finish()
        for feed in list(self._feeds.values()):
            for group in list(feed.groups.values()):
                for client in list(group.current):
                    with suppress(OSError):
                        client.sock.send(group.ending(group.transport.retry(retry_hint())))
                    self._drop(client)
                for client in list(group.behind):
                    self._drop(client)
            for client_poll in list(feed.polls):
                self._forget(feed, client_poll)
                self._send_off(client_poll)
        with self._lock:
            self._finished = True
        while self._calls:
            self._calls.popleft()()
        self.selector.close()
        self._ear.close()
        self._bell.close()

    def _send_off(self, client: Poll) -> None:
        with suppress(OSError):
            client.sock.send(client.reply.response(client.poll.waiting(retry_hint())))
        client.sock.close()
        client.poll.close()
        client.reply.gone()
