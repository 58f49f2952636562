"""What holds clients and what is held, as the hub and the modules of its clients see each other."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Hashable
from typing import Protocol

from pushdemo.delivery.sending import Sender

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Held(Protocol):
    """What a selector's key has as its data."""

    def ready(self, events: int) -> None:
        """The socket can be read (or the client has left), or written."""


class Holder(Protocol):
    """What a client needs of the hub; only the hub's thread may use it, but for `call`."""

    clock: Callable[[], float]  # seconds
    selector: selectors.BaseSelector
    sender: Sender

    def call(self, function: Callable[[], None]) -> None:
        """Have the hub's thread call `function`. For any thread."""

    def emptied(self, held: Hashable) -> None:
        """It may hold nobody any more."""


def has_left(sock: socket.socket) -> bool:
    """Read and forget what a client sends that has nothing to say; whether that is its farewell."""
    try:
        return not sock.recv(65_536)
    except BlockingIOError:
        return False
    except OSError:
        return True
