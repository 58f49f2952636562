"""Admission: how many clients an application holds at once."""

from __future__ import annotations

import threading
from collections import deque


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
