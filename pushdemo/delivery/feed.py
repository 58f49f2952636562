"""A topic's clients in the hub: its streams, in groups that are written the same bytes, and its long polls.

Theory of operation. A `Feed` is one topic in the hub; `position` is that of the last entry that it has delivered. A
`Stream` is a client with a cursor in each of its topics, and so in one group of each of their feeds. It is

- current: it has, or is about to be written, all that its feeds have delivered, and stands in `current` of all its
  groups. Its cursors are not moved: they are where the feeds are;
- behind: its socket has not taken all of its `rest`. It stands in `behind` of all its groups, its cursors are its own,
  and it is given entry after entry as its socket takes them;
- closed: in no group.

It begins alone (`start`), as if it were behind. `advance` makes it current when it has everything; `keep` puts it
behind when its socket does not take a message whole; `drop` closes it, when the client leaves, fails to read for too
long, or the server stops; and so does the end of its last topic, once it has everything.

Bytes reach a current stream in two ways. A message to a group of many is sent to all of them at once, from one object.
For a group of few, the bytes wait in the hub's `Outbox` until the end of the turn, and go with those for other groups
in one system call. What may never happen:

- something is written to a stream with a rest: it is in no `current`, and the outbox is emptied before a stream leaves
  `current` alive, or is written to by any other way;
- a stream is current in one of its feeds and not in another;
- a feed is before the cursor of a stream that joins it: `advance` has it deliver first;
- a closed stream's socket is sent to: its descriptor may be another's by then. `drop` takes it out of the outbox.

All of this is the hub's thread's alone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pushdemo.delivery.connection import Connection
from pushdemo.delivery.cursor import Cursor
from pushdemo.delivery.held import FAILED
from pushdemo.delivery.loop import Loop
from pushdemo.delivery.metrics import Tally
from pushdemo.delivery.poll import Poll
from pushdemo.delivery.sending import Sockets, offer
from pushdemo.delivery.subscription import Pace, Subscription, retry_hint
from pushdemo.delivery.tcp import give_up_after, keep_late_here
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import Format

CROWD = 64  # streams of a group: from here on a message to them is sent at once; else with those of other groups


class Outbox:
    """What a turn of the hub has for streams in small groups: sent by one system call where the kernel can do that."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[Stream, bytes] = {}

    def add(self, stream: Stream, data: bytes) -> None:
        """Send `data` to a current stream, after what already waits for it."""
        before = self._waiting.get(stream)
        self._waiting[stream] = data if before is None else before + data

    def discard(self, stream: Stream) -> None:
        """Forget what waits for a stream that is closed."""
        self._waiting.pop(stream, None)

    def flush(self) -> None:
        """Send all that waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        data = list(waiting.values())
        try:
            taken = self._loop.sender.send_all([stream.sock for stream in waiting], data)
        except BaseException:  # who has taken what is lost: they come back, and say what they have
            for stream in waiting:
                stream.drop()
            raise
        if taken != list(map(len, data)):
            for (stream, each), sent in zip(waiting.items(), taken, strict=True):
                if sent != len(each):
                    self._loop.guarded(stream.keep, each, sent, fail=stream.fail)


class Feed:
    """A topic in the hub."""

    __slots__ = ("_last", "_over", "due", "groups", "looked_at", "loop", "outbox", "polls", "position", "topic")

    def __init__(self, loop: Loop, outbox: Outbox, topic: Topic) -> None:
        self.loop = loop
        self.outbox = outbox
        self.topic = topic
        self.position = topic.head
        self.groups: dict[Format, Group] = {}
        self.polls: dict[Poll, None] = {}  # that wait, in the order of their deadlines
        self.looked_at: dict[Poll, None] = {}  # by each sweep: see Poll.sweep
        self._last: Message | None = None  # the last entry that was delivered
        self._over = False  # the streams have been told that the topic has ended
        self.due = 0.0  # when it is next to be swept; whoever makes that earlier sets it to 0

    @property
    def late(self) -> bool:
        """Whether the topic has more than was delivered."""
        return self.position < self.topic.head

    @property
    def empty(self) -> bool:
        """Whether it has no clients. Forgets groups that have none."""
        for format in [format for format, group in self.groups.items() if not group.current and not group.behind]:
            del self.groups[format]
        return not self.groups and not self.polls and not self.looked_at

    def group(self, cursor: Cursor, pace: Pace, format: Format) -> Group:
        """The streams that are written the same bytes as the client with this cursor."""
        group = self.groups.get(format)
        if group is None:
            group = self.groups[format] = Group(self, cursor.tally, pace, format)
        return group

    def reach(self, position: int) -> bool:
        """Deliver what a client at `position` has already; whether the topic has ended, and all of it is delivered."""
        ended, head = self.topic.reached()
        if self.position < (head if ended else position):
            self.deliver()
        return ended

    def deliver(self, up_to: int | None = None) -> None:
        """Write everyone what has come since, up to a position; answer the polls; end what has ended."""
        ended, head = self.topic.reached()  # what comes meanwhile is another turn's, and others come first
        before = self.position
        if up_to is not None:
            head = min(head, up_to)
        while self.position < head and not self.loop.out_of_time:
            message, gap = self.topic.following(self.position)
            assert message is not None
            for group in self.groups.values():
                if len(group.current) >= CROWD:
                    self.outbox.flush()  # before the position moves: who is put behind now has yet to get this entry
            self.position = message.position
            for group in self.groups.values():
                if group.current:
                    try:  # as `guarded` does, which takes longer than the rest where a topic has one client
                        group.write_entry(message, gap)
                    except BaseException:
                        self.loop.tell_failure()
                        self.loop.guarded(group.fail)
            self._forget_encoded(message)
        if self.polls and (ended or self.position > before):
            for poll in list(self.polls):
                self.loop.guarded(poll.answer, fail=poll.fail)
        if ended and not self.late and not self._over:
            self._over = True
            self._end()

    def _forget_encoded(self, message: Message) -> None:
        """The last entry keeps its bytes for those who come now; the one before only while somebody is behind."""
        last, self._last = self._last, message
        if last is None:
            return
        for group in self.groups.values():
            if group.behind:
                return
        last.forget_encoded()

    def _end(self) -> None:
        """The topic has ended: so do the streams that have no other."""
        for group in self.groups.values():
            for stream in list(group.current):
                self.outbox.flush()  # another feed may have delivered what a stream before this one has yet to get
                if stream in group.current and stream.ended:
                    self.loop.guarded(stream.end, fail=stream.fail)

    def sweep(self, now: float) -> None:
        """Close streams that do not read, keep quiet ones alive, answer the polls whose time is over."""
        self.topic.start_again()
        for group in self.groups.values():
            self.loop.guarded(group.sweep, now, fail=group.fail)
        for poll in list(self.polls):
            if poll.deadline > now:
                break
            self.loop.guarded(poll.let_go, fail=poll.fail)
        for poll in list(self.looked_at):
            self.loop.guarded(poll.sweep, now, fail=poll.fail)
        often = (
            self.polls or self.looked_at or self.topic.producer or any(group.behind for group in self.groups.values())
        )
        self.due = 0.0 if often else min((group.quiet_from for group in self.groups.values()), default=0.0)

    def end_ordered(self) -> None:
        """Let the clients go whose end has been ordered."""
        for group in self.groups.values():
            for stream in [each for each in (*group.current, *group.behind) if each.subscription.ordered]:
                self.loop.guarded(stream.let_go, fail=stream.fail)
        for poll in [each for each in self.polls if each.poll.ordered]:
            self.loop.guarded(poll.let_go, fail=poll.fail)

    def finish(self) -> None:
        """The server stops: everyone is told, and let go. What cannot be sent in time is in the topic's history."""
        self.loop.guarded(self.deliver)
        self.loop.guarded(self.outbox.flush)
        for group in self.groups.values():
            for stream in [*group.current, *group.behind]:
                self.loop.guarded(stream.finish, group.format, fail=stream.fail)
        for poll in [*self.polls, *self.looked_at]:
            self.loop.guarded(poll.finish, fail=poll.fail)


class Group:
    """The streams of one topic that are written the same bytes."""

    __slots__ = ("behind", "current", "feed", "format", "pace", "sent", "tally", "written")

    def __init__(self, feed: Feed, tally: Tally, pace: Pace, format: Format) -> None:
        self.feed = feed
        self.format = format
        self.pace = pace
        self.tally = tally
        self.current: Sockets[Stream] = Sockets()
        self.behind: dict[Stream, None] = {}
        self.sent = 0  # bytes that each of `current` has been written: see delivery/access.py
        self.written = feed.loop.clock()  # when `current` was last written to

    def entry(self, message: Message, reset: bool) -> bytes:
        """An entry's bytes, made once for all; after the notice of a reset, where messages were missed before it."""
        clients = len(self.current) + len(self.behind)
        # One client's alone are not kept: in a topic with just one that takes longer than to make them.
        data = self.format.encode(message) if clients > 1 or len(self.feed.groups) > 1 else self.format.make(message)
        return self.format.notice("reset", self.feed.topic.id_at(message.position - 1)) + data if reset else data

    def write_entry(self, message: Message, reset: bool) -> None:
        """Write an entry to all that are current."""
        data, clients = self.entry(message, reset), len(self.current)
        self._write(data)
        self.count(len(data), clients, message, reset)

    def count(self, size: int, clients: int, message: Message, reset: bool) -> None:
        """So many clients are being given an entry of this size, after a reset or not."""
        messages = clients if message.kind == "message" else 0
        self.tally.wrote(size * clients, messages=messages, resets=clients if reset or message.kind == "reset" else 0)

    def sweep(self, now: float) -> None:
        """Close streams that do not read, and keep quiet ones alive."""
        for stream in list(self.behind):
            if stream.stalled(now, self.pace.stall_timeout):
                self.tally.closed_stalled()
                stream.subscription.record.ended("it did not read")
                self.feed.loop.guarded(stream.drop)
        if self.current and now >= self.quiet_from:
            self._keep_alive(now)

    @property
    def quiet_from(self) -> float:
        """When those that are current want a heartbeat, unless something is written to them."""
        return self.written + self.pace.heartbeat

    def _keep_alive(self, now: float) -> None:
        """Write a heartbeat to those whose other topics are as quiet."""
        self.feed.outbox.flush()
        data = self.format.notice("heartbeat")
        quiet = [stream for stream in self.current if now - stream.written >= self.pace.heartbeat]
        if len(quiet) == len(self.current):
            self._write(data)
        else:
            for stream in quiet:
                stream.progress = now
                stream.subscription.record.add(len(data))
                self.feed.outbox.add(stream, data)
        self.tally.wrote(len(data) * len(quiet))

    def _write(self, data: bytes) -> None:
        self.written = self.feed.loop.clock()
        self.sent += len(data)
        if len(self.current) < CROWD:
            for stream in self.current:
                self.feed.outbox.add(stream, data)
            return
        size = len(data)
        try:
            taken = self.feed.loop.sender.send_each(self.current, data)
        except BaseException:  # who has taken what is lost: they come back, and say what they have
            for stream in list(self.current):
                stream.drop()
            raise
        if taken.count(size) < len(taken):
            for stream, sent in [each for each in zip(self.current, taken, strict=True) if each[1] != size]:
                self.feed.loop.guarded(stream.keep, data, sent, fail=stream.fail)

    def fail(self) -> None:
        """An error has met what all that are current are written: they come back, and say what they have."""
        for stream in list(self.current):
            self.feed.loop.guarded(stream.fail)


class Stream(Connection):
    """A client that is streamed to, with a group for each of its subscription's cursors, in their order."""

    __slots__ = ("__weakref__", "ending", "groups", "subscription")

    def __init__(
        self,
        sock: socket.socket,
        subscription: Subscription,
        feeds: Sequence[Feed],
        format: Format,
        unsent: bytes,
    ) -> None:
        give_up_after(sock, subscription.pace.heartbeat, subscription.pace.stall_timeout)
        keep_late_here(sock)
        super().__init__(feeds[0].loop, sock, subscription.cursors[0].tally, unsent)
        self.subscription = subscription
        self.groups = tuple(
            feed.group(cursor, subscription.pace, format)
            for feed, cursor in zip(feeds, subscription.cursors, strict=True)
        )
        self.ending: bytes | None = None  # what follows the rest, and then nothing

    def start(self) -> None:
        """Send what is still unsent of the response so far, and go on, unless the client's end has been ordered."""
        self._go_on_alone()
        self.advance()
        if self.subscription.ordered:
            self.let_go()

    def end(self) -> None:
        """All its topics have ended: say so, when it has everything."""
        self.leave_current()
        self.advance()

    def finish(self, format: Format) -> None:
        """The server stops, or lets the client go."""
        self.subscription.record.ended("the server stops")
        self.farewell(format.ending(format.transport.retry(retry_hint())))

    def half_closed(self) -> None:
        """The client has closed its side."""
        self.subscription.record.ended("the client left")
        self.let_go()
        if self.open:
            self.hear_no_more()

    def let_go(self) -> None:
        """End the stream before its topics end, after what it is being written; the client may come back."""
        self.groups[0].feed.outbox.flush()
        if not self.open:
            return
        self.subscription.record.ended("its right ended")
        format = self.groups[0].format
        if not self.rest:
            self.finish(format)
        elif self.ending is None:
            self.ending = format.ending(format.transport.retry(retry_hint()))

    @property
    def ended(self) -> bool:
        """Whether all its topics have."""
        return all(group.feed.topic.ended for group in self.groups)

    @property
    def written(self) -> float:
        """When something was last written to it, as long as it is current."""
        first, *others = self.groups
        return max(first.written, self.progress, *(group.written for group in others)) if others else first.written

    def taken(self) -> None:
        """The socket has taken the rest."""
        self.advance()

    def advance(self) -> None:
        """Write what the client lacks, until its socket is full or it has everything and is current again."""
        while self.send_rest():
            if self.ending is not None:
                if not self.ending:
                    self.drop()
                    return
                self.rest, self.ending = self.ending, b""
                continue
            cursors = self.subscription.cursors
            ended = [group.feed.reach(cursor.position) for group, cursor in zip(self.groups, cursors, strict=True)]
            lacking = [
                (cursor, group)
                for cursor, group in zip(cursors, self.groups, strict=True)
                if cursor.position < group.feed.position
            ]
            if lacking:
                self.rest = self._next_of(lacking)
            elif all(ended):
                self.subscription.record.ended("the topic ended")
                self.ending = self.groups[0].format.ending(self.subscription.end())
            else:
                self._become_current()
                return

    def _next_of(self, lacking: list[tuple[Cursor, Group]]) -> bytes:
        """The next entry in the order in which they came."""
        cursor, group = lacking[0] if len(lacking) == 1 else min(lacking, key=lambda pair: pair[0].next_time)
        message, reset = cursor.take()
        assert message is not None
        data = group.entry(message, reset)
        group.count(len(data), 1, message, reset)
        self.subscription.record.add(len(data))
        return data

    def _become_current(self) -> None:
        for cursor, group in zip(self.subscription.cursors, self.groups, strict=True):
            del group.behind[self]
            group.tally.caught_up(cursor)
            group.current[self] = self.sock
        self.subscription.record.join(self.groups)

    def _go_on_alone(self) -> None:
        for cursor, group in zip(self.subscription.cursors, self.groups, strict=True):
            group.behind[self] = None
            group.feed.due = 0.0
            group.tally.alone(cursor)

    def leave_current(self) -> None:
        """Go on alone, from where the feeds are."""
        for cursor, group in zip(self.subscription.cursors, self.groups, strict=True):
            del group.current[self]
            cursor.position = group.feed.position
        self.subscription.record.leave(self.groups)
        self._go_on_alone()

    def keep(self, data: bytes, sent: int) -> None:
        """Keep what the socket has not taken of `data`; FAILED for `sent` says that it has taken nothing."""
        if sent == FAILED:  # full, or gone
            sent = offer(self.sock, data)
        if sent == FAILED:
            self.drop()
        elif sent < len(data):
            self.leave_current()
            self.rest = memoryview(data)[sent:]
            self.progress = self.loop.clock()
            self.watch()

    def gone(self) -> None:
        """The connection has been dropped."""
        for cursor, group in zip(self.subscription.cursors, self.groups, strict=True):
            if group.current.pop(self, None):
                cursor.position = group.feed.position
            group.behind.pop(self, None)
            group.feed.due = 0.0
        self.subscription.record.leave(self.groups)
        self.groups[0].feed.outbox.discard(self)
        self.subscription.close()
