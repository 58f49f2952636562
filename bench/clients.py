"""The clients: thousands in one process (load.py), one thread, one epoll loop over raw sockets.

It must not take the server's processor: it parses no more than it counts by. Between two looks at its sockets it naps
for a millisecond, so that a server's send() seldom has to wake it: on a loopback that wake-up is charged to the server,
and to a slow one at every message. When something arrived is the kernel's word, so that reading it late does no harm.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

STAMP = re.compile(rb"@(\d{19})")  # the head of every body (peers/message.py)
SO_TIMESTAMPNS = 35  # socket(7), linux/asm-generic/socket.h: recvmsg() tells when the kernel received what it returns
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7)
TIMESPEC = struct.Struct("@ll")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
NAP = 0.001
PATIENCE = 15.0  # seconds without a new answer after which those who still wait for one are given up
UNDER_WAY = 256  # connections that wait for their first answer at a time
CONNECTING = 60.0  # seconds after which no more are connected


def socket_from(address: str) -> socket.socket:
    """A socket that connects from this address, and does not block.

    The port is chosen by connect(): bind() would search among all of those that wait for their end, for seconds.
    """
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((address, 0))
    return sock


@dataclass(frozen=True)
class Order:
    """What the load process is to do: `kind` is `streams` or `polls`, `pid` the server's first process."""

    kind: str
    port: int
    path: str
    clients: int
    rate: float
    seconds: float
    pid: int


class Clients:
    """Connections to one server and the loop that reads them; what is done with what comes is the subclass's."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.numbers: dict[int, int] = {}  # of the clients, by descriptor
        self.unconnected: set[int] = set()
        self.cut: dict[int, bytes] = {}  # what a client has of a message or answer that is not whole yet
        self.received = 0
        self.lost = 0
        self.ahead = time.time_ns() - time.monotonic_ns()  # the kernel stamps by the clock on the wall

    def open(self, number: int) -> int:
        """One more client, which asks as soon as it is connected. Each 10,000 have a source address of their own."""
        client = socket_from(f"127.0.0.{2 + number // 10_000}")
        client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        client.connect_ex(("127.0.0.1", self.order.port))
        self.sockets[client.fileno()] = client
        self.numbers[client.fileno()] = number
        self.unconnected.add(client.fileno())
        self.epoll.register(client.fileno(), select.EPOLLOUT)
        return client.fileno()

    def connected(self, fd: int) -> None:
        self.unconnected.remove(fd)
        self.epoll.modify(fd, select.EPOLLIN)
        self.ask(fd, self.order.path.format(self.numbers[fd]))

    def ask(self, fd: int, path: str) -> None:
        os.write(fd, request(path))

    def arrivals(self, timeout: float) -> Iterator[tuple[int, bytes, int]]:
        """What has come and when (monotonic ns), once something has or `timeout` seconds have passed.

        Drops whoever's stream has ended.
        """
        for fd, _ in self.epoll.poll(timeout, max(1, len(self.sockets))):
            try:
                if fd in self.unconnected:
                    self.connected(fd)
                    continue
                data, stamps, _, _ = self.sockets[fd].recvmsg(4096, 64)
            except OSError:
                data = b""
            if data:
                yield fd, data, arrived(stamps) - self.ahead
            else:
                self.drop(fd)

    def drop(self, fd: int) -> None:
        self.epoll.unregister(fd)
        self.sockets.pop(fd).close()
        self.unconnected.discard(fd)
        self.lost += 1

    def hold(self) -> list[float]:
        """Connect all; the moments (s) of their first answers. Some may be refused or never answered: see `lost`."""
        answered: list[float] = []
        waiting: set[int] = set()
        opened, limit = 0, time.monotonic() + CONNECTING
        patient_until = time.monotonic() + PATIENCE
        while (opened < self.order.clients or waiting) and time.monotonic() < min(patient_until, limit):
            while opened < self.order.clients and len(waiting) < UNDER_WAY:
                waiting.add(self.open(opened))
                opened += 1
            for fd, data, at in self.arrivals(PATIENCE):
                if fd in waiting:
                    waiting.discard(fd)
                    patient_until = time.monotonic() + PATIENCE
                    if data.startswith(b"HTTP/1.1 200"):
                        answered.append(time.monotonic())
                    else:
                        self.drop(fd)
                self.take(fd, data, at)
            waiting &= self.sockets.keys()
        for fd in waiting:
            self.drop(fd)
        self.lost += self.order.clients - opened
        return answered

    def read(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for fd, data, at in self.arrivals(left):
                self.take(fd, data, at)
            time.sleep(NAP)

    def read_until_pause(self) -> None:
        """Read on until a pause between two messages, so that a window's ends lie in none; two periods at most."""
        period = 1 / self.order.rate
        until = time.monotonic() + 2 * period
        while time.monotonic() < until:
            came = 0
            for fd, data, at in self.arrivals(period / 4):
                self.take(fd, data, at)
                came += 1
            if not came:
                return

    def take(self, fd: int, data: bytes, at: int) -> None:
        raise NotImplementedError

    def outcome(self, begin: int, end: int) -> dict[str, float]:
        """Of the messages published between two moments of the monotonic clock (ns): how many came, and when."""
        raise NotImplementedError


class Streams(Clients):
    """Held streams: counts each message's arrivals."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.seen: dict[bytes, list[int]] = {}  # stamp: [first, last arrival (ns), arrivals]

    def take(self, fd: int, data: bytes, at: int) -> None:
        if self.cut and fd in self.cut:
            data = self.cut.pop(fd) + data
        for stamp in STAMP.findall(data):
            self.received += 1
            entry = self.seen.get(stamp)
            if entry is None:
                self.seen[stamp] = [at, at, 1]
                continue
            entry[2] += 1
            if at > entry[1]:
                entry[1] = at
            elif at < entry[0]:
                entry[0] = at
        cut = data.rfind(b"@", -19)
        if cut >= 0:
            self.cut[fd] = data[cut:]

    def outcome(self, begin: int, end: int) -> dict[str, float]:
        messages = {int(stamp): entry for stamp, entry in self.seen.items() if begin <= int(stamp) < end}
        return {
            "published": len(messages),
            "delivered": sum(count for _, _, count in messages.values()),
            **percentiles("spread", [last - first for first, last, _ in messages.values()]),
            **percentiles("last", [last - stamp for stamp, (_, last, _) in messages.items()]),
        }


class Polls(Clients):
    """Long polls on kept connections: each asks again, after the last id it was told, as soon as it is answered."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.taken: dict[int, list[int]] = {}  # fd: the stamps it was told, in their order
        self.arrived: dict[int, tuple[int, int]] = {}  # stamp: first and last arrival (ns)
        self.errors = 0

    def hold(self) -> list[float]:
        """Connect all, without waiting for answers: a first poll may well wait for the next message."""
        opened, limit = 0, time.monotonic() + CONNECTING
        while (opened < self.order.clients or self.unconnected) and time.monotonic() < limit:
            while opened < self.order.clients and len(self.unconnected) < UNDER_WAY:
                self.open(opened)
                opened += 1
            for fd, data, at in self.arrivals(0.1):
                self.take(fd, data, at)
        self.lost += self.order.clients - opened
        return []

    def take(self, fd: int, data: bytes, at: int) -> None:
        data = self.cut.pop(fd, b"") + data
        head, _, body = data.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            self.cut[fd] = data
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.errors += 1
        self.received += 1
        for stamp in map(int, STAMP.findall(body)):
            self.taken.setdefault(fd, []).append(stamp)
            first, last = self.arrived.get(stamp, (at, at))
            self.arrived[stamp] = min(at, first), max(at, last)
        answer: dict[str, Any] = json.loads(body)
        path, joint = self.order.path, "&" if "?" in self.order.path else "?"
        self.ask(fd, f"{path}{joint}last_event_id={answer['last_event_id']}")

    def outcome(self, begin: int, end: int) -> dict[str, float]:
        stamps = sorted(stamp for stamp in self.arrived if begin <= stamp < end)
        each = [[stamp for stamp in self.taken.get(fd, []) if begin <= stamp < end] for fd in self.sockets]
        return {
            "published": len(stamps),
            "delivered": sum(map(len, each)),
            "complete": sum(taken == stamps for taken in each),
            "errors": self.errors,
            **percentiles("spread", [self.arrived[stamp][1] - self.arrived[stamp][0] for stamp in stamps]),
            **percentiles("last", [self.arrived[stamp][1] - stamp for stamp in stamps]),
        }


def arrived(stamps: list[tuple[int, int, bytes]]) -> int:
    """The kernel's time (ns) of what has come; it stamps nothing yet for a moment after the first socket asks it to."""
    if not stamps:
        return time.time_ns()
    seconds, nanoseconds = TIMESPEC.unpack(stamps[0][2])
    return int(seconds * 1_000_000_000 + nanoseconds)


def request(path: str) -> bytes:
    """The Accept header is for Nchan, which answers 403 to an EventSource that does not name its type."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream, */*\r\n\r\n".encode()


def percentiles(name: str, nanoseconds: list[int]) -> dict[str, float]:
    """p50 and p99 in ms."""
    if len(nanoseconds) < 2:
        return {}
    cuts = quantiles(nanoseconds, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49] / 1e6, f"{name}_p99": cuts[98] / 1e6}
