"""What the server asks of the kernel for a connection: options of a socket, and how it is closed. Any thread.

A socket that is not TCP, and a system without an option, are passed over.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress


def hang_up(sock: socket.socket) -> None:
    """Close a connection, also where a forked child of this process has the same socket and keeps it open."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


# The kernel's options, by their numbers where Python has no name for them. Elsewhere than on Linux there may be none.
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_KEEP_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", None)
_NOT_SENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)

_MOST = 2**31 - 1  # of an option
_LATE = 16_384  # bytes that the kernel may keep of a stream and has not sent, before a socket counts as full


def give_up_after(sock: socket.socket, heartbeat: float, stall_timeout: float) -> None:
    """Have the kernel end a connection whose client has vanished without a word (Linux: tcp(7)).

    What was sent and not acknowledged for `stall_timeout` seconds ends it. So does a keep-alive probe, for a client
    that is sent nothing: the server has switched these on. A socket that is not TCP has no such options.
    """
    if _USER_TIMEOUT is not None:
        _set(sock, _USER_TIMEOUT, min(max(1, round(1000 * stall_timeout)), _MOST))
    if _KEEP_IDLE is not None and heartbeat < KEEP_ALIVE:
        _set(sock, _KEEP_IDLE, max(1, round(heartbeat)))


def never_give_up(sock: socket.socket) -> None:
    """Undo `give_up_after`: a download that its reader pauses is not to be cut."""
    if _USER_TIMEOUT is not None:
        _set(sock, _USER_TIMEOUT, 0)


def keep_late_here(sock: socket.socket) -> None:
    """Keep what a slow client has yet to get in the history, where it is replaced by newer messages.

    The kernel would let its own buffer grow to megabytes: seconds of pictures that are old when they arrive.
    """
    if _NOT_SENT_LOWAT is not None:
        _set(sock, _NOT_SENT_LOWAT, _LATE)


KEEP_ALIVE = 15  # seconds without a byte before the kernel asks whether the client is still there
_PROBES = 6
_BETWEEN_PROBES = 5  # seconds


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel end a connection whose client has vanished while nothing was sent.

    On Linux a listening socket hands this on to those who connect from then on.
    """
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("IDLE", KEEP_ALIVE), ("INTVL", _BETWEEN_PROBES), ("CNT", _PROBES)):
        if (option := getattr(socket, f"TCP_KEEP{name}", None)) is not None:
            _set(sock, option, value)


def closing(sock: socket.socket) -> bool:
    """Whether the client has closed its side, or all (Linux: CLOSE_WAIT, CLOSE), behind bytes that nobody has read."""
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (8, 7)
    return False


def _set(sock: socket.socket, option: int, value: int) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
