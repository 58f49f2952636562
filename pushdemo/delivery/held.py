"""System calls of non-blocking sockets with the interpreter's lock held.

Python lets go of the lock for each of them. Another thread that computes meanwhile, a page that is being rendered say,
may then keep it for its whole switch interval (5 ms): a message to 500 clients takes ten times as long (bench/busy.py),
and thousands of clients that come at once are accepted one after each of these intervals. Even where all threads do the
same, handing the lock over and back costs more than such a call, which takes microseconds and waits for nobody. Where
the C library cannot be called so, or refuses, they are Python's own, which raise what is the matter.
"""

from __future__ import annotations

import ctypes
import platform
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

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

_epoll_ctl = _found("epoll_ctl", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)

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


_IPV4 = struct.Struct("!2xH4s")  # a struct sockaddr_in: ip(7)
_IPV6 = struct.Struct("!2xHI16s4s")  # a struct sockaddr_in6: ipv6(7)


class NonBlockingSocket(socket.socket):
    """A socket that does not block from its first moment: to say so again is no system call."""

    __slots__ = ()

    def setblocking(self, flag: bool, /) -> None:
        """See socket.socket."""
        if flag or self.gettimeout() != 0:
            super().setblocking(flag)


class Acceptor:
    """Accepts the connections of a non-blocking socket that listens. One thread calls it."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._type = listening.type | getattr(socket, "SOCK_NONBLOCK", 0)
        self._address = ctypes.create_string_buffer(128)  # a struct sockaddr_storage
        self._length = ctypes.c_uint32()
        self._lengths = ctypes.byref(self._length)

    def __call__(self) -> tuple[socket.socket, Any]:
        """As `listening.accept()`, but the connection does not block, and where it is not of TCP its address is ""."""
        listening = self._listening
        self._length.value = len(self._address)
        fd = _accept(listening.fileno(), self._address, self._lengths, _ACCEPTED)
        if fd == FAILED:
            sock, address = listening.accept()
            sock.setblocking(False)
            return sock, address
        return NonBlockingSocket(listening.family, self._type, listening.proto, fd), self._peer()

    def _peer(self) -> Any:
        """The address, as Python has it."""
        family = self._listening.family
        if family == socket.AF_INET:
            port, host = _IPV4.unpack_from(self._address)
            return socket.inet_ntop(family, host), port
        if family == socket.AF_INET6:
            port, flow, host, scope = _IPV6.unpack_from(self._address)
            return socket.inet_ntop(family, host), port, flow, int.from_bytes(scope, sys.byteorder)
        return ""


# A struct epoll_event: the events, and 64 bits that begin with the descriptor. It is packed on x86_64 alone.
_EVENT = {"x86_64": struct.Struct("=IiI"), "aarch64": struct.Struct("=I4xiI")}.get(platform.machine())
_ADD, _DELETE, _MODIFY = 1, 2, 3


class Epoll:
    """As `select.epoll`."""

    def __init__(self) -> None:
        self._python = select.epoll()
        self.poll = self._python.poll
        self.close = self._python.close

    def register(self, fd: int, events: int, /) -> None:
        """See select.epoll."""
        if self._control(_ADD, fd, events) == FAILED:
            self._python.register(fd, events)

    def modify(self, fd: int, events: int, /) -> None:
        """See select.epoll."""
        if self._control(_MODIFY, fd, events) == FAILED:
            self._python.modify(fd, events)

    def unregister(self, fd: int, /) -> None:
        """See select.epoll."""
        if self._control(_DELETE, fd, 0) == FAILED:
            self._python.unregister(fd)

    def _control(self, operation: int, fd: int, events: int) -> int:
        if _EVENT is None:
            return FAILED
        return _epoll_ctl(self._python.fileno(), operation, fd, _EVENT.pack(events, fd, 0))
