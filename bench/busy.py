"""What a thread that computes costs those who are pushed to: our two ways of sending beside a loop of `socket.send`.

usage: python bench/busy.py [CLIENTS [ROUNDS]]

So many connected sockets in one process, read by another; a message to all of them, sent each way in turn, while the
interpreter is otherwise idle and while one more thread computes, as a page that is being rendered does. Printed are the
medians of the time from the first to the last send, and what the other thread got done meanwhile.
"""

from __future__ import annotations

import multiprocessing
import resource
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tables import markdown

from pushdemo.delivery.sending import Sender, Sockets, send_each

DATA = b"x" * 145  # bytes, as an event of 100 has on the wire
PAUSE = 0.05  # seconds between two messages
NAP = 0.001  # seconds between two looks of the reader

Way = Callable[[list[socket.socket]], object]


def plain(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.send(DATA)


def read(port: int, count: int) -> None:
    """Connect so many clients and read what comes, until one is closed."""
    clients = {}
    with select.epoll() as epoll:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port))
            clients[client.fileno()] = client
            epoll.register(client, select.EPOLLIN)
        while all(clients[fd].recv(65_536) for fd, _ in epoll.poll()):
            time.sleep(NAP)


@contextmanager
def connected(count: int) -> Iterator[list[socket.socket]]:
    """The server's ends of so many connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        reader = multiprocessing.get_context("spawn").Process(target=read, args=(listener.getsockname()[1], count))
        reader.start()
        sockets = [listener.accept()[0] for _ in range(count)]
    for sock in sockets:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    yield sockets
    for sock in sockets:
        sock.close()
    reader.join()


class Page(threading.Thread):
    """A thread that computes; `rows` is what it has made so far."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rows = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            "".join(f"<td>{number}</td>" for number in range(100))
            self.rows += 1


def measure(way: Way, sockets: list[socket.socket], rounds: int, page: Page) -> tuple[float, float]:
    """Median milliseconds for a message, and the page's rows a second while it was sent."""
    times, rows = [], 0
    for _ in range(rounds):
        time.sleep(PAUSE)
        before, began = page.rows, time.perf_counter()
        way(sockets)
        times.append(time.perf_counter() - began)
        rows += page.rows - before
    return statistics.median(times) * 1000, rows / sum(times)


def main(clients: int = 500, rounds: int = 10) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    lines = []
    sender = Sender()
    with connected(clients) as sockets:
        together = Sockets(enumerate(sockets))
        ways: dict[str, Way] = {
            "a loop of socket.send": plain,
            "send_each, no io_uring": lambda sockets: send_each(sockets, DATA),
            "Sender, io_uring": lambda _: sender.send_each(together, DATA),
        }
        for name in ("idle", "a thread computes"):
            page = Page()
            if name != "idle":
                page.start()
            for label, way in ways.items():
                milliseconds, rows = measure(way, sockets, rounds, page)
                lines.append([name, label, f"{milliseconds:.1f}", f"{rows:,.0f}"])
            page.over = True
    sender.close()
    print(f"Python {sys.version.split()[0]}; a message to {clients:,} clients, medians of {rounds}\n")
    print(markdown(["otherwise", "sent by", "ms, first to last", "rows a second meanwhile"], lines))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
