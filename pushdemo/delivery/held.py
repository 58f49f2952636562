"""System calls of non-blocking sockets with the interpreter's lock held.

Python lets go of the lock for each of them. Another thread that computes meanwhile, a page that is being rendered say,
may then keep it for its whole switch interval (5 ms): a message to 500 clients takes ten times as long (bench/busy.py),
and thousands of clients that come at once are accepted one after each of these intervals. These calls take microseconds
and wait for nobody. Where the C library cannot be called so, they are Python's own.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable

FAILED = -1


def _found(name: str, result: type, *arguments: type) -> Callable[..., int]:
    """A function of the C library, with the lock held; it returns FAILED where that is not to be had."""
    try:
        function = getattr(ctypes.PyDLL(None), name)
    except (AttributeError, OSError, TypeError):  # Windows has them elsewhere, and for sockets that are no files
        return lambda *_: FAILED
    function.argtypes = arguments
    function.restype = result
    found: Callable[..., int] = function
    return found


# (descriptor, data, size, 0) -> bytes taken
send_raw = _found("send", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_receive = _found("recv", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_accept = _found("accept4", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)

_ACCEPTED = getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


def send(sock: socket.socket, data: bytes) -> int:
    """As `sock.send(data)`."""
    sent = send_raw(sock.fileno(), data, len(data), 0)
    return sock.send(data) if sent == FAILED else sent  # which raises what is the matter


class Receiver:
    """Reads up to `size` bytes. One thread calls it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = ctypes.create_string_buffer(size)

    def __call__(self, sock: socket.socket) -> bytes:
        """As `sock.recv(size)`."""
        received = _receive(sock.fileno(), self._buffer, self._size, 0)
        return sock.recv(self._size) if received == FAILED else ctypes.string_at(self._buffer, received)


def accept(listening: socket.socket) -> socket.socket:
    """As `listening.accept()`, without the address: the next connection."""
    fd = _accept(listening.fileno(), None, None, _ACCEPTED)
    if fd == FAILED:
        return listening.accept()[0]
    return socket.socket(listening.family, listening.type, listening.proto, fd)
