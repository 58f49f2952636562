"""Bytes to many sockets: the loop that everything costs. Knows sockets only. The hub's thread runs it.

Where the kernel has io_uring and allows it, hundreds of sends share a system call (delivery/io_uring.py), which costs
less than a loop of `send` in C does (bench/README.md), and other threads run meanwhile. Else `starmap` calls `send`:
no Python runs for a single socket, so that a client costs little more than its system call.

As soon as somebody else wants the interpreter's lock, it is held over each send (delivery/held.py), and others have
their turn between two batches.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat, starmap
from typing import Any, TypeVar

from pushdemo.delivery.held import FAILED, send, send_raw

if sys.platform == "linux":
    from pushdemo.delivery.io_uring import Ring

log = logging.getLogger("pushdemo")

K = TypeVar("K")

MANY = 64  # sockets; a ring costs more than it saves below

_HELD = 16_384  # bytes that are sent with the lock held at most: others wait for as long as the kernel copies them
_BATCH = 32  # sockets, a quarter of a millisecond


_letting_go: Callable[[socket.socket, bytes], int] = socket.socket.send


def offer(sock: socket.socket, data: bytes | memoryview) -> int:
    """How many bytes of `data` a non-blocking socket takes, none where it is full; FAILED where its client is gone."""
    try:
        return send(sock, data) if isinstance(data, bytes) and len(data) <= _HELD else sock.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return FAILED


class Sockets(dict[K, socket.socket]):
    """Sockets that are sent the same bytes, by key: added with [], removed with `del` or `pop`.

    Their descriptors are kept in one piece of memory: to look into thousands of objects for each message takes longer
    than all else that is done here. Remove a socket before it is closed, since its number is soon another's.
    """

    __slots__ = ("_descriptors",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._descriptors: array[int] | None = None

    def __setitem__(self, key: K, sock: socket.socket) -> None:
        self._descriptors = None
        super().__setitem__(key, sock)

    def __delitem__(self, key: K) -> None:
        self._descriptors = None
        super().__delitem__(key)

    def pop(self, key: K, default: Any = None) -> Any:
        """As a dictionary's."""
        self._descriptors = None
        return super().pop(key, default)

    @property
    def descriptors(self) -> array[int]:
        """In the order of the sockets."""
        if self._descriptors is None:
            self._descriptors = array("i", map(socket.socket.fileno, self.values()))
        return self._descriptors


class Sender:
    """Sends to many sockets, for one thread, with a ring if it may and can. Close it.

    Its functions return how many bytes each of the non-blocking sockets has taken, or FAILED where that is none. After
    an error nobody knows who has taken what.
    """

    def __init__(self, io_uring: bool = True) -> None:
        self._ring = _opened() if io_uring else None

    def send_each(self, sockets: Sockets[Any], data: bytes) -> list[int]:
        """Send the same `data` to each of these sockets."""
        if not self._ring or len(sockets) < MANY:
            return send_each(sockets.values(), len(sockets), repeat(data))
        try:
            return self._ring.send_each(sockets.descriptors, data)
        except BaseException:
            self.close()
            raise

    def send_all(self, sockets: Sequence[socket.socket], data: Sequence[bytes]) -> list[int]:
        """Send to each of these sockets, which are all different, its own `data`."""
        if not self._ring or len(sockets) < MANY:
            return send_each(sockets, len(sockets), data)
        try:
            return self._ring.send_all(array("i", map(socket.socket.fileno, sockets)), data)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the ring up."""
        if self._ring:
            self._ring.close()
            self._ring = None


def _opened() -> Ring | None:
    if sys.platform != "linux":
        return None
    try:
        return Ring()
    except (AttributeError, OSError, ValueError) as error:  # the C library has no syscall(2), or the kernel no io_uring
        log.info("there is no io_uring here (%s): each send is a system call of its own", error)
        return None


def send_each(sockets: Iterable[socket.socket], count: int, data: Iterable[bytes]) -> list[int]:
    """As a `Sender`'s functions, one system call for each of `count` sockets."""
    sent: list[int] = []
    left = zip(sockets, data, strict=False)  # the same data may be repeated for ever
    most = sys.getswitchinterval() / 2
    contended, batch = False, 1  # the first one tells
    while len(sent) < count:
        some = islice(left, batch)
        began = time.perf_counter()
        try:
            if contended:
                sent.extend(starmap(send_raw, [(sock.fileno(), each, len(each), 0) for sock, each in some]))
            else:
                sent.extend(starmap(_letting_go, some))
        except OSError:
            sent.append(FAILED)  # after those before it; what is left of the batch is still `left`
        contended = contended or time.perf_counter() - began > most
        batch = _BATCH
    return sent
