"""The same bytes to many sockets: who has taken how much, whether or not another thread wants the interpreter."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from pushdemo import sending
from pushdemo.sending import FAILED, send, send_each

SMALL = 4096  # bytes of a socket's buffer
MUCH = b"x" * 100_000


class Pairs:
    """Connected sockets; `ours` do not block."""

    def __init__(self) -> None:
        self.ours: list[socket.socket] = []
        self.theirs: list[socket.socket] = []

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            ours.setblocking(False)
            self.ours.append(ours)
            self.theirs.append(theirs)

    def close(self) -> None:
        for sock in self.ours + self.theirs:
            sock.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    made.close()


@pytest.fixture(params=[0.0, 1.0], ids=["alone", "contended"])
def contended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is so many seconds after the one before, as if another thread had kept the lock."""
    ticks = itertools.count(step=request.param)
    monkeypatch.setattr(sending, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(MUCH)


@pytest.mark.usefixtures("contended")
def test_each_socket_is_given_the_bytes_once(pairs: Pairs) -> None:
    pairs.add(100)
    assert send_each(pairs.ours, b"a message") == [9] * 100
    assert [sock.recv(100) for sock in pairs.theirs] == [b"a message"] * 100


@pytest.mark.usefixtures("contended")
def test_those_that_take_nothing_are_told_apart_wherever_they_are(pairs: Pairs) -> None:
    pairs.add(70)
    full, gone = (0, 31, 32, 33, 69), (1, 40, 68)
    for number in full:
        fill(pairs.ours[number])
    for number in gone:
        pairs.theirs[number].close()
    expected = [FAILED if number in full + gone else 1 for number in range(70)]
    assert send_each(pairs.ours, b"m") == expected


@pytest.mark.usefixtures("contended")
def test_a_socket_that_takes_a_part_says_how_much(pairs: Pairs) -> None:
    pairs.add(3)
    first, _, _ = taken = send_each(pairs.ours, MUCH)
    assert 0 < first < len(MUCH)
    assert taken == [first] * 3
    assert len(b"".join(iter(lambda: read(pairs.theirs[1]), b""))) == first


def read(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    try:
        return sock.recv(65_536)
    except BlockingIOError:
        return b""


def test_to_nobody_nothing_is_sent() -> None:
    assert send_each([], b"m") == []


def test_a_single_send_raises_what_socket_send_would(pairs: Pairs) -> None:
    pairs.add(2)
    assert send(pairs.ours[0], b"m") == 1
    fill(pairs.ours[0])
    with pytest.raises(BlockingIOError):
        send(pairs.ours[0], b"m")
    pairs.theirs[1].close()
    with pytest.raises(BrokenPipeError):
        send(pairs.ours[1], b"m")


def test_where_the_c_function_is_not_found_python_s_own_is_called(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_holding", lambda *_: FAILED)
    pairs.add()
    assert send(pairs.ours[0], b"m") == 1
    assert pairs.theirs[0].recv(10) == b"m"
