"""The hub: the loop that holds all parked clients, in a feed for each topic that has clients here.

Theory of operation. A server hands a socket over (`stream`, `poll`, `pull`, in any thread) and the hub's thread adopts
it. A topic tells the hub of a change in the thread that made it: the topic is queued in `_changed`, and the hub's next
turn delivers it. A turn is: the sockets' reports, the calls, the changed topics, what these have for streams in small
groups (`Outbox`), and every half second the sweep, which closes stalled clients, keeps quiet ones alive, answers polls
whose time is over, and forgets the feeds that nobody is in.

A stop is one more turn: `finish` tells every client that the server goes, and closes it. From then on whoever is still
handed over is told the same in `adopt`. What may never happen: a client is held by a hub that has finished; an error
that one client meets reaches another, or ends the thread. So each step for a client is `guarded`, and its error ends
that client.
"""

from __future__ import annotations

import heapq
import math
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from pushdemo.delivery.connection import say_goodbye
from pushdemo.delivery.feed import Feed, Outbox, Stream
from pushdemo.delivery.loop import Loop
from pushdemo.delivery.poll import Poll, Reply, send_off
from pushdemo.delivery.pull import Pull, Pulled, Run
from pushdemo.delivery.rights import Orders
from pushdemo.delivery.subscription import LongPoll, Subscription, retry_hint
from pushdemo.delivery.tcp import hang_up
from pushdemo.topics.topic import Topic
from pushdemo.transports import Format, format_of
from pushdemo.transports.framing import Frame, chunk, whole

_SWEEP = 0.5  # seconds between two sweeps

# Seconds between two turns that deliver, where messages flow: each turn then takes all that have come since, and nobody
# has to wake the thread for each. To wake it costs as much as to deliver several messages to one client each
# (bench/own_topics.py). A message after a pause is delivered at once.
_FLOW = 0.01

_EXPIRING = 1_000  # ends of rights, below which those of clients that have left are not looked for


class _Expiry(weakref.ref["Stream | Poll"]):
    """A client, and when its right to listen ends: one object of 90 bytes, since there may be thousands."""

    __slots__ = ("at",)

    at: float

    def __new__(cls, client: Stream | Poll, at: float) -> _Expiry:
        self: _Expiry = weakref.ref.__new__(cls, client)
        self.at = at
        return self

    def __init__(self, client: Stream | Poll, at: float) -> None:
        super().__init__(client)  # type: ignore[call-arg]  # typeshed has no __init__ of it

    def __lt__(self, other: _Expiry) -> bool:
        return self.at < other.at


class Hub(Loop):
    """Holds parked clients. Its thread starts with the first of them. `clock` counts seconds.

    `io_uring`: whether many sends may share a system call, where the kernel can.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, io_uring: bool = True) -> None:
        super().__init__("pushdemo-hub", clock, io_uring=io_uring)
        # Any thread appends. With the newest position, so that who has several topics gets their messages as they came.
        self._changed: deque[tuple[Topic, int]] = deque()
        self._outbox = Outbox(self)
        self._feeds: dict[Topic, Feed] = {}
        self._pulls: set[Pull] = set()
        self._swept = clock()
        self._delivered = 0.0  # when a turn last delivered something, by the system's clock
        self._flowing = False  # messages have come so soon after others that the loop naps between two turns
        # When clients may listen no more, the next one first; who has left meanwhile is nobody.
        self._expiring: list[_Expiry] = []
        self._most_expiring = _EXPIRING  # with so many, those who have left are taken out
        self._orders: dict[Orders, int] = {}  # of each application, with the number of those that are carried out

    # -- any thread

    def stream(self, sock: socket.socket, subscription: Subscription, *, chunked: bool, unsent: bytes) -> None:
        """Hold an open subscription; `unsent` is what is still to be written of its response so far."""
        format = format_of(subscription.transport, subscription.format.names, _frame(chunked))
        if (message := subscription.large_next) is not None:
            format.encode(message)  # here, in the request's thread: the hub's has other clients to serve

        def adopt() -> None:
            if self.stopping:
                say_goodbye(sock, unsent + _retry(format))
                hang_up(sock)
                subscription.close()
                return
            stream = Stream(sock, subscription, self._feeds_of(subscription.topics), format, unsent)
            self.guarded(stream.start, fail=stream.fail)
            self._let_go_at(subscription.right.expires, stream, subscription.pace.orders)

        self._hold(sock, adopt, subscription.close)

    def poll(self, sock: socket.socket, poll: LongPoll, reply: Reply, *, unsent: bytes) -> None:
        """Hold a long poll until there is an answer; `unsent` is what is left of the response before that."""

        def adopt() -> None:
            if self.stopping:
                send_off(sock, unsent, poll, reply)
                return
            poll.join()
            waiting = Poll(sock, poll, reply, self._feeds_of(poll.topics), unsent)
            self.guarded(waiting.start, fail=waiting.fail)
            self._let_go_at(poll.right.expires, waiting, poll.pace.orders)

        def gone() -> None:
            poll.close()
            reply.gone()

        self._hold(sock, adopt, gone)

    def pull(self, sock: socket.socket, body: Pulled, *, chunked: bool, unsent: bytes, run: Run) -> None:
        """Hold a client that is given the next bytes when it has taken the last; `run` has workers make them."""
        format = Format(body.transport, "", _frame(chunked))

        def adopt() -> None:
            if self.stopping:
                say_goodbye(sock, unsent + _retry(format))
                hang_up(sock)
                body.close()
                return
            client = Pull(self, sock, body, format, unsent, run, self._pulls)
            self.guarded(client.start, fail=client.fail)
            self._obey(body.pace.orders)

        self._hold(sock, adopt, body.close)

    def _hold(self, sock: socket.socket, adopt: Callable[[], None], gone: Callable[[], None]) -> None:
        """Have the hub's thread adopt a client, whom its error alone costs the connection."""

        def fail() -> None:
            self.unwatch(sock)
            hang_up(sock)
            gone()

        self.call(lambda: self.guarded(adopt, fail=fail))

    def _notified(self, topic: Topic) -> None:
        self._changed.append((topic, topic.head))
        self.wake()

    # -- the hub's own thread from here on

    def turn(self) -> None:
        """Deliver what has changed, and sweep from time to time."""
        if self._changed:
            self._deliver()
        else:
            self._flowing = False
        now = self.clock()
        while self._expiring and self._expiring[0].at <= now:
            if (client := heapq.heappop(self._expiring)()) is not None:
                self.guarded(client.let_go, fail=client.fail)
        if now >= self._swept + _SWEEP:
            self._swept = now
            self._sweep(now)
            self.guarded(self._outbox.flush)

    def _deliver(self) -> None:
        now = time.monotonic()
        self._flowing = self._flowing or now < self._delivered + _FLOW
        self._delivered = now
        for _ in range(len(self._changed)):  # what comes meanwhile has woken the loop: the next turn takes it
            topic, head = self._changed.popleft()
            if feed := self._feeds.get(topic):
                self.guarded(feed.deliver, head)
        self.guarded(self._outbox.flush)

    def timeout(self) -> float | None:
        """Seconds until the next sweep or the end of a right; None while there is nobody."""
        if not self._feeds and not self._pulls:
            return None
        due = self._swept + _SWEEP
        if self._expiring:
            due = min(due, self._expiring[0].at)
        return max(0.0, due - self.clock())

    def nap(self) -> float:
        """Seconds until the next turn, where messages flow."""
        return max(0.0, self._delivered + _FLOW - time.monotonic()) if self._flowing else 0.0

    def finish(self) -> None:
        """The server stops: everyone is told, and let go."""
        for pull in list(self._pulls):
            self.guarded(pull.finish, fail=pull.fail)
        for feed in list(self._feeds.values()):
            self.guarded(feed.finish)
            self._forget(feed)

    def _sweep(self, now: float) -> None:
        self._carry_out_orders()
        for pull in list(self._pulls):
            self.guarded(pull.sweep, now, fail=pull.fail)
        for feed in [feed for feed in self._feeds.values() if feed.due <= now]:
            self.guarded(feed.sweep, now)
            if feed.empty:
                self._forget(feed)

    def _carry_out_orders(self) -> None:
        """Let the clients go whose end was ordered since the last sweep."""
        changed = [orders for orders, number in self._orders.items() if orders.number != number]
        for orders in changed:
            self._orders[orders] = orders.number
        if changed:
            for feed in list(self._feeds.values()):
                self.guarded(feed.end_ordered)
            for pull in [pull for pull in self._pulls if pull.body.ordered]:
                self.guarded(pull.half_closed, fail=pull.fail)

    def _let_go_at(self, expires: float, client: Stream | Poll, orders: Orders) -> None:
        self._obey(orders)
        if expires < math.inf:
            heapq.heappush(self._expiring, _Expiry(client, expires))
            if len(self._expiring) > self._most_expiring:  # many have left before the end of their right
                self._expiring = [each for each in self._expiring if each() is not None]
                heapq.heapify(self._expiring)
                self._most_expiring = max(_EXPIRING, 2 * len(self._expiring))

    def _obey(self, orders: Orders) -> None:
        self._orders.setdefault(orders, 0)  # the next sweep looks for what its first client may have missed

    def _feeds_of(self, topics: Sequence[Topic]) -> list[Feed]:
        return [self._feed(topic) for topic in topics]

    def _feed(self, topic: Topic) -> Feed:
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = Feed(self, self._outbox, topic)
            topic.listen(self._notified)
        # What came before the call to listen, or waits in the queue, is delivered now, so that whoever joins finds the
        # feed at least as far as itself.
        feed.deliver()
        return feed

    def _forget(self, feed: Feed) -> None:
        del self._feeds[feed.topic]
        feed.topic.unlisten(self._notified)


def _frame(chunked: bool) -> Frame:
    return chunk if chunked else whole


def _retry(format: Format) -> bytes:
    """What a stream that has come too late is told."""
    return format.ending(format.transport.retry(retry_hint()))
