"""What the connections of a listener have in common, and how the application sees the server's end.

Made by server.py, one for each listener. Which threads use it says each part.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import Any

from waitress.server import BaseWSGIServer

from pushdemo.delivery.held import Receiver
from pushdemo.delivery.hub import Hub
from pushdemo.server.loop import Loop
from pushdemo.server.workers import Workers

log = logging.getLogger("pushdemo")


class End:
    """The server's end, as the application sees it: `environ["pushdemo.end"]`.

    While the server drains it goes on serving, and the application says that it is not ready, so that a balancer sends
    nobody more. Any thread may use it.
    """

    def __init__(self) -> None:
        self.drain = 0.0  # seconds from the stop to the end; the application sets it
        self._at = math.inf  # of the monotonic clock

    @property
    def near(self) -> bool:
        """Whether the server has been told to stop."""
        return self._at < math.inf

    def begin(self) -> None:
        """The server has been told to stop; told twice, it does so at once."""
        self._at = time.monotonic() + (0.0 if self.near else self.drain)

    def left(self) -> float:
        """Seconds to the end."""
        return self._at - time.monotonic()


class Accepted:
    """Sockets of all listeners that were accepted and are no channel yet. The loop's."""

    number = 0


class Reception:
    """What the channels of a listener know as their server: all that waitress's own code asks of one, and our parts."""

    def __init__(
        self, listener: BaseWSGIServer, hub: Hub, workers: Workers, loop: Loop, end: End, accepted: Accepted
    ) -> None:
        self.adj = listener.adj
        self.application = listener.application
        self.effective_port = listener.effective_port
        self.server_name = listener.server_name
        self.active_channels = listener.active_channels
        self.map = listener._map  # by descriptor: listeners and connections, but for those that are parked
        self.add_task = listener.add_task
        self._waiting: deque[Any] = listener.task_dispatcher.queue
        self._most_waiting: int = max(16, 4 * listener.adj.threads)
        self.hub = hub
        self.trouble = lambda: hub.trouble  # what keeps parked clients from being served, if anything does
        self.workers = workers
        self.loop = loop
        self.end = end
        # Who has yet to have a first request read, the first that came first: sockets that were accepted, with their
        # addresses, and those connections whose request came later. The loop's.
        self.arrived: deque[Any] = deque()
        self.accepted = accepted
        self.receive = Receiver(self.adj.recv_bytes)  # the loop's
        self.held_back = False  # nobody of them is read from, since so many wait for a thread; any thread
        self._second = 0  # see `headers`; any thread, roughly: one that loses makes its headers anew
        self._headers: dict[Any, tuple[bytes, bool, bool]] = {}
        self.turned_away = 0  # since a stream that a middleware iterates last had a thread; workers', roughly
        self._warned: set[tuple[str, str]] = set()  # any thread adds

    def headers(self, second: int) -> dict[Any, tuple[bytes, bool, bool]]:
        """Headers that responses of this second have had: see ParkingTask."""
        if second != self._second:
            self._second, self._headers = second, {}
        return self._headers

    def warn_once(self, message: str, name: str) -> None:
        """Log a warning, once for each name in it."""
        if (message, name) not in self._warned:
            self._warned.add((message, name))
            log.warning(message, name)

    @property
    def connections(self) -> int:
        """How many there are, those that have just been accepted among them, and listeners."""
        return len(self.map) + self.accepted.number

    @property
    def crowded(self) -> bool:
        """Whether so many wait for a thread that new connections had better wait where they are."""
        return len(self._waiting) >= self._most_waiting

    def let_in(self) -> None:
        """A request is over: have the loop read from those who have arrived, if few wait now."""
        if self.held_back and len(self._waiting) <= self._most_waiting // 2:
            self.held_back = False
            self.loop.wake()

    def pull_trigger(self) -> None:
        """waitress would have its loop look at all connections; each tells the loop itself (`attend`)."""
