"""Which events of which sockets are reported: epoll, by descriptor, and what takes its place where there is none.

The `selectors` module does the same and makes an object for each socket, twice as slowly; thousands of clients come and
go here. One thread waits; who else may call what, the loops say that use it.
"""

from __future__ import annotations

import select
import selectors
from contextlib import suppress
from typing import Protocol

from pushdemo.delivery.held import Epoll

READ, WRITE = 1, 4  # as epoll's EPOLLIN and EPOLLOUT

_BOTH = READ | WRITE


class _Kernel(Protocol):
    """What is used of `select.epoll`."""

    def register(self, fd: int, events: int, /) -> None: ...
    def modify(self, fd: int, events: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float | None, maxevents: int, /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class Poller:
    """Reports events of sockets, for as long as they are ready for them (level-triggered).

    Of many, epoll reports up to `most` at a time.
    """

    def __init__(self, most: int = 1_000) -> None:
        self._most = most
        self._kernel: _Kernel = Epoll() if hasattr(select, "epoll") else _Selector()
        self._wanted: dict[int, int] = {}  # by descriptor; also of sockets that were closed without a word

    def watch(self, fd: int, events: int) -> None:
        """Report these events of a socket, and no others. Raises OSError or ValueError where it is closed."""
        known = fd in self._wanted
        self._wanted[fd] = events
        if known:
            with suppress(FileNotFoundError):  # it is another socket, since the one of this number was closed
                self._kernel.modify(fd, events)
                return
        self._kernel.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Report nothing of a socket any more, if anything was reported. To be called before it is closed."""
        if self._wanted.pop(fd, 0):
            with suppress(OSError, ValueError):  # it is closed
                self._kernel.unregister(fd)

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait up to `timeout` seconds, or without an end; some of those that are ready, with their events.

        A socket that has failed or was shut down is ready for all that is wanted of it.
        """
        return [
            (fd, events if (events & _BOTH) == events else self._wanted.get(fd, 0))
            for fd, events in self._kernel.poll(timeout, self._most)
        ]

    def close(self) -> None:
        """Report nothing any more."""
        self._kernel.close()


class _Selector:
    """As epoll, by whatever else the system has."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, events: int, /) -> None:
        self._selector.register(fd, _translated(events))

    def modify(self, fd: int, events: int, /) -> None:
        # Not its `modify`, which does nothing where the events are the same: the number may be another socket's by now.
        self.unregister(fd)
        self.register(fd, events)

    def unregister(self, fd: int, /) -> None:
        with suppress(KeyError, OSError):
            self._selector.unregister(fd)

    def poll(self, timeout: float | None, _maxevents: int, /) -> list[tuple[int, int]]:
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        self._selector.close()


def _translated(events: int) -> int:
    return (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)
