"""Admission: how many clients an application holds at once, who of them count together, and who is refused.

`Places` and `network_of` are for any thread; the rest runs in a request's thread.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv6Address, ip_address, ip_network

from pyramid.httpexceptions import HTTPException, HTTPServiceUnavailable
from pyramid.request import Request

from pushdemo.delivery.metrics import Counters
from pushdemo.delivery.subscription import Pace
from pushdemo.web.settings import Settings

RETRY_AFTER = 5  # seconds, where Redis cannot be reached
_RETRY_AFTER = 5, 15  # seconds, where there is no place: until some client has left, and not all at the same moment
_TOKENS = 64  # of `Places`, made at a time


class Places:
    """So many places, taken and given back by any thread.

    There is a token for each place that has ever been needed at once. A lock is taken for new ones alone: all workers
    come by here, and would stand in line for it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._made = 0  # tokens; under the lock
        self._free: deque[None] = deque()  # tokens that nobody has; any thread takes and appends
        # Give a place back. One object for all that do, and no lock: a garbage collection may call it anywhere.
        self.give: Callable[[], None] = partial(self._free.append, None)

    def take(self) -> bool:
        """Take a place, if one is left."""
        try:
            self._free.pop()
        except IndexError:
            return self._make()
        return True

    def _make(self) -> bool:
        with self._lock:
            more = min(_TOKENS, self.limit - self._made)
            if more > 0:
                self._made += more
                self._free.extend([None] * more)
        try:
            self._free.pop()
        except IndexError:  # there are none, or others have been faster
            return more > 0 and self._make()
        return True

    @property
    def taken(self) -> int:
        """How many places are taken now."""
        with self._lock:
            return self._made - len(self._free)


class Shares:
    """So many places for each of many: users, or addresses. A limit of 0 is none. `of` and `setting` name it."""

    def __init__(self, limit: int, of: str, setting: str) -> None:
        self.limit = limit
        self.of = of
        self.setting = setting
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()  # under the lock; less by what waits in the next line
        self._given: deque[str] = deque()  # any thread appends, even a garbage collection within the lock

    def take(self, whose: str) -> bool:
        """Take one of their places, if one is left."""
        with self._lock:
            while self._given:
                back = self._given.pop()
                self._taken[back] -= 1
                if not self._taken[back]:
                    del self._taken[back]
            if self._taken[whose] >= self.limit:
                return False
            self._taken[whose] += 1
            return True

    def give(self, whose: str) -> None:
        """Give one of their places back. Takes no lock."""
        self._given.append(whose)


def network_of(peer: str) -> str:
    """Whose sessions count together: a client's address, or its part that a network has.

    Empty for this machine's own, which are those of a proxy, and for a Unix socket's.
    """
    try:
        address = ip_address(peer)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else str(ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


class Clients:
    """What admission and timing need, one for an application."""

    def __init__(self, settings: Settings) -> None:
        self.all = Places(settings.max_clients)
        self.threads = Places(settings.max_threads)
        self.by_user = Shares(settings.max_clients_per_user, "of this user", "pushdemo.max_clients_per_user")
        self.by_address = Shares(
            settings.max_clients_per_address, "from this address", "pushdemo.max_clients_per_address"
        )
        self.access_log = settings.access_log
        self.expire = settings.streams_expire or None  # seconds
        self.origins = settings.cors_origins
        self.counters = Counters()
        self.pace = Pace(
            heartbeat=settings.heartbeat,
            stall_timeout=settings.stall_timeout,
            longpoll_timeout=settings.longpoll_timeout,
            counters=self.counters,
            retry=settings.retry,
        )


def admit(request: Request, user: str | None = None) -> Callable[[], None]:
    """Take a place, and where the stream will hold a thread one of the few for that; returns what gives it back.

    Raises HTTPServiceUnavailable, with Retry-After, when all are taken, or all that this user or address may have.
    """
    clients: Clients = request.registry["pushdemo.clients"]
    parked = "pushdemo.park" in request.environ
    places = clients.all if parked else clients.threads
    if not (clients.by_user.limit or clients.by_address.limit):
        if places.take():
            return places.give
        raise _full(places, parked)
    with ExitStack() as given:
        _take_share(given, clients.by_user, user)
        address = request.remote_addr or ""
        _take_share(given, clients.by_address, network_of(address) or address)
        if places.take():
            given.callback(places.give)
            return given.pop_all().close
        raise _full(places, parked)


def _full(places: Places, parked: bool) -> HTTPServiceUnavailable:
    reason = f"all {places.limit} places for clients are taken (pushdemo.max_clients)"
    if not parked:
        reason = (
            f"all {places.limit} threads that may hold a client are taken (pushdemo.max_threads); under the server "
            "egg:pushdemo a client holds none"
        )
    return HTTPServiceUnavailable(reason, headers=retry_later())


def _take_share(given: ExitStack, share: Shares, whose: str | None) -> None:
    if share.limit and whose:
        if not share.take(whose):
            reason = f"{share.limit} clients {share.of} are connected already ({share.setting})"
            raise HTTPServiceUnavailable(reason, headers=retry_later())
        given.callback(share.give, whose)


def retry_later() -> dict[str, str]:
    """Return the header that tells a refused client when to come back."""
    return {"Retry-After": str(seconds_to_wait())}


def seconds_to_wait() -> int:
    """After how many seconds a refused client should come back: each after others."""
    return random.randint(*_RETRY_AFTER)


@contextmanager
def refusals_counted(request: Request) -> Iterator[None]:
    """Count the requests for a generator that are refused in here, by the status of what is raised."""
    try:
        yield
    except HTTPException as refusal:
        request.registry["pushdemo.clients"].counters.refused("generator", refusal.code)
        raise
