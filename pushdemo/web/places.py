"""Admission: how many clients an application holds at once, and which of them count together."""

from __future__ import annotations

import threading
from collections import deque
from ipaddress import IPv6Address, ip_address, ip_network


class Places:
    """So many places, taken and given back by any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0  # under the lock; less by what waits in the next line
        self._given: deque[None] = deque()  # any thread appends, even a garbage collection within the lock

    def take(self) -> bool:
        """Take a place, if one is left."""
        with self._lock:
            while self._given:
                self._given.pop()
                self._taken -= 1
            if self._taken >= self.limit:
                return False
            self._taken += 1
            return True

    def give(self) -> None:
        """Give a place back. Takes no lock."""
        self._given.append(None)

    @property
    def taken(self) -> int:
        """How many places are taken now."""
        return self._taken - len(self._given)


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
