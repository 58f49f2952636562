"""What the hub holds of a topic: its streaming clients, in groups that are written the same bytes, and its long polls.

Everyone in a group's `current` has all entries up to the feed's position; a message is one non-blocking `send` for
each. A client whose socket is full goes on from its own position when it can be written again. All of this is the
hub's thread's alone.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Protocol

from pushdemo import transports
from pushdemo.delivery.connection import READ, WRITE, Holder, has_left
from pushdemo.delivery.sending import FAILED, Sockets, offer
from pushdemo.delivery.subscription import Subscription, retry_hint
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports.framing import Frame, ending


class Waiting(Protocol):
    """A long poll that waits in a feed; delivery/poll.py has it."""

    deadline: float

    def answer(self) -> None:
        """Answer, if there is something to say."""

    def expire(self) -> None:
        """Nothing has come in time."""

    def finish(self) -> None:
        """The server stops."""


class Feed:
    """A topic in the hub. `position` is how far it has been delivered."""

    __slots__ = ("groups", "hub", "polls", "position", "topic")

    def __init__(self, hub: Holder, topic: Topic) -> None:
        self.hub = hub
        self.topic = topic
        self.position = topic.head
        self.groups: dict[tuple[str, Frame], Group] = {}
        self.polls: dict[Waiting, None] = {}  # in the order of their deadlines

    def group(self, subscription: Subscription, frame: Frame) -> Group:
        """The clients that are written the same bytes as this one."""
        key = (subscription.transport.name, frame)
        if key not in self.groups:
            self.groups[key] = Group(self, subscription, frame)
        return self.groups[key]

    def deliver(self) -> None:
        """Write everyone what has come since; answer the polls; end what has ended."""
        ended = self.topic.ended  # asked first: what was said right before the end is then up to `head`
        before, head = self.position, self.topic.head  # what comes meanwhile is another turn's, and others come first
        while self.position < head:
            message, gap = self.topic.following(self.position)
            assert message is not None
            self.position = message.position
            for group in self.groups.values():
                if group.current:
                    group.write(group.encoded(message, gap), message, gap)
        if ended or self.position > before:
            for poll in list(self.polls):
                poll.answer()
        if ended:
            for group in self.groups.values():
                while group.current:
                    client = next(reversed(group.current))
                    client.go_on_alone()
                    client.advance()

    def sweep(self, now: float) -> None:
        """Drop who does not read, keep quiet streams alive, answer the polls whose time is over."""
        for group in self.groups.values():
            for client in list(group.behind):
                if now - client.progress >= group.pace.stall_timeout:
                    group.tally.closed_stalled()
                    client.drop()
            if group.current and now - group.written >= group.pace.heartbeat:
                group.write(group.frame(group.transport.notice("heartbeat")))
        for poll in list(self.polls):
            if poll.deadline > now:
                break
            poll.expire()

    def finish(self) -> None:
        """The server stops: everyone is told, and let go."""
        self.deliver()
        for group in self.groups.values():
            for client in list(group.current):
                with suppress(OSError):
                    client.sock.send(ending(group.frame, group.transport.retry(retry_hint())))
                client.drop()
            for client in list(group.behind):
                client.drop()
        for poll in list(self.polls):
            poll.finish()

    def tidy(self) -> bool:
        """Forget groups without clients; whether nobody is left."""
        self.groups = {key: group for key, group in self.groups.items() if group.current or group.behind}
        return not self.groups and not self.polls


class Group:
    """The streams of one topic that are written the same bytes."""

    __slots__ = ("behind", "current", "feed", "frame", "pace", "tally", "transport", "written")

    def __init__(self, feed: Feed, subscription: Subscription, frame: Frame) -> None:
        self.feed = feed
        self.transport = subscription.transport
        self.pace = subscription.pace
        self.tally = subscription.tally
        self.frame = frame
        # Those that have everything up to the feed's position, and their sockets.
        self.current: Sockets[Stream] = Sockets()
        self.behind: dict[Stream, None] = {}  # those whose sockets are full
        self.written = feed.hub.clock()  # when `current` was last written to

    def encoded(self, message: Message, reset: bool) -> bytes:
        """The bytes of an entry with their framing, made once; a reset before it is made each time."""
        data = message.encoded((self.transport.name, self.frame), self._encode)
        if not reset:
            return data
        return self.frame(self.transport.notice("reset", after=self.feed.topic.id_at(message.position - 1))) + data

    def _encode(self, message: Message) -> bytes:
        return self.frame(transports.encode(self.transport, message))

    def write(self, data: bytes, message: Message | None = None, reset: bool = False) -> None:
        """Write `data`, an entry or what keeps the stream alive, to all that are current."""
        size = len(data)
        try:
            taken = self.feed.hub.sender.send_each(self.current, data)
        except BaseException:  # who has taken what is lost: they come back, and say what they have
            for client in list(self.current):
                client.drop()
            raise
        self.written = self.feed.hub.clock()
        clients = len(taken)
        if taken.count(size) < clients:
            stuck = [(client, sent) for client, sent in zip(self.current, taken, strict=True) if sent != size]
            clients -= sum(not client.keep(data, sent) for client, sent in stuck)
        self.count(size, clients, message, reset)

    def count(self, size: int, clients: int, message: Message | None, reset: bool) -> None:
        """Count what so many clients are given, whole as soon as it is begun."""
        kind = message.kind if message else None
        messages = clients if kind == "message" else 0
        self.tally.wrote(size * clients, messages=messages, resets=clients if reset or kind == "reset" else 0)


class Stream:
    """A client that is being streamed to. `rest` is what its socket has not taken yet of the bytes under way."""

    __slots__ = ("group", "last", "progress", "rest", "sock", "subscription")

    def __init__(self, sock: socket.socket, subscription: Subscription, group: Group, unsent: bytes) -> None:
        self.sock = sock
        self.subscription = subscription
        self.group = group
        self.rest: memoryview | None = memoryview(unsent) if unsent else None
        self.last = False  # nothing follows `rest`
        self.progress = 0.0  # when the socket last took something of a `rest`

    def ready(self, events: int) -> None:
        """The socket can be written, or the client has left or sends what nobody asked for."""
        if self.sock.fileno() < 0:  # dropped in this very turn
            return
        if events & WRITE:
            self.advance()
        elif has_left(self.sock):
            self.drop()

    def advance(self) -> None:
        """Write what the client lacks, until its socket is full or it has everything and is current again."""
        group, feed, subscription = self.group, self.group.feed, self.subscription
        while self.rest is None or self._send_rest():
            ended = feed.topic.ended
            if subscription.position > feed.position or (ended and feed.position < feed.topic.head):
                feed.deliver()  # the client has skipped to the newest entry, so must the feed; or the last is to come
            if subscription.position < feed.position:
                message, reset = subscription.take()
                assert message is not None
                self.rest = memoryview(group.encoded(message, reset))
                group.count(len(self.rest), 1, message, reset)
            elif ended:
                self.rest = memoryview(ending(group.frame, subscription.end()))
                self.last = True
            else:
                if self in group.behind:
                    del group.behind[self]
                    group.tally.caught_up(subscription)
                    feed.hub.selector.modify(self.sock, READ, self)
                group.current[self] = self.sock
                return

    def _send_rest(self) -> bool:
        """Send what is under way; whether the client can be given more."""
        assert self.rest is not None
        sent = offer(self.sock, self.rest)
        if sent == FAILED:
            self.drop()
            return False
        if sent:
            self.progress = self.group.feed.hub.clock()
        if sent < len(self.rest):
            self.rest = self.rest[sent:]
            if self not in self.group.behind:
                self.fall_behind()
            return False
        self.rest = None
        if self.last:
            self.drop()
        return not self.last

    def keep(self, data: bytes, sent: int) -> bool:
        """Keep what the socket has not taken of `data`; whether the client is still there."""
        if sent == FAILED:  # full, or gone
            sent = offer(self.sock, data)
        if sent == FAILED:
            self.drop()
            return False
        if sent < len(data):
            self.go_on_alone()
            self.rest = memoryview(data)[sent:]
            self.fall_behind()
        return True

    def go_on_alone(self) -> None:
        """Leave those that are current, at the feed's position."""
        del self.group.current[self]
        self.subscription.position = self.group.feed.position

    def fall_behind(self) -> None:
        """The socket is full: the client goes on when it can be written again."""
        hub = self.group.feed.hub
        self.group.behind[self] = None
        self.group.tally.alone(self.subscription)
        self.progress = hub.clock()
        hub.selector.modify(self.sock, READ | WRITE, self)

    def drop(self) -> None:
        """The client is gone, or is to go. What follows the first call does nothing."""
        if self.sock.fileno() < 0:
            return
        self.group.current.pop(self, None)
        self.group.behind.pop(self, None)
        self.group.feed.hub.selector.unregister(self.sock)
        self.sock.close()
        self.subscription.close()
        if not self.group.current and not self.group.behind:
            self.group.feed.hub.emptied(self.group.feed)
