"""A TCP relay between a client and a server, which a test can cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Listens on `port` and carries bytes both ways. Counts connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open = threading.Event()  # clear while it is cut
        self._open.set()
        self._lock = threading.Lock()  # guards the ends
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.wait()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._ends += [near, far]
                self.connections += 1
                for source, target in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._carry, args=(source, target), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """End all connections, and have new ones wait until this is over."""
        self._open.clear()
        try:
            self._end_all()
            yield
        finally:
            self._open.set()

    def _end_all(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self._end_all()
        for thread in self._threads:
            thread.join()


@contextmanager
def relay(target: int) -> Iterator[Relay]:
    """A relay to a port of this machine."""
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()
