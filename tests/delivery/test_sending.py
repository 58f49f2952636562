"""The same bytes to many sockets: who has taken how much, by a ring, by `send`, and while another thread computes."""

from __future__ import annotations

import errno
import itertools
import logging
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from pushdemo.delivery import held, sending
from pushdemo.delivery.held import FAILED, send
from pushdemo.delivery.sending import MANY, Sender, Sockets
from tests.support import at_once, fill, small_pair

MUCH = b"x" * 100_000


class Pairs:
    """Connected sockets; `ours` do not block."""

    def __init__(self) -> None:
        self.ours: list[socket.socket] = []
        self.theirs: list[socket.socket] = []

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            ours, theirs = small_pair()
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


SendEach = Callable[[list[socket.socket], bytes], list[int]]
SendAll = Callable[[list[socket.socket], list[bytes]], list[int]]


@pytest.fixture(params=[pytest.param("ring", marks=pytest.mark.io_uring), "alone", "contended"])
def sender(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    monkeypatch.setattr(sending, "MANY", 1)
    if request.param == "contended":
        # Each look at the clock is a second after the one before, as if another thread had kept the lock.
        ticks = itertools.count()
        monkeypatch.setattr(sending, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    sender = Sender(io_uring=request.param == "ring")
    yield sender
    sender.close()


@pytest.fixture
def send_each(sender: Sender) -> SendEach:
    return lambda sockets, data: sender.send_each(Sockets(enumerate(sockets)), data)


@pytest.fixture
def send_all(sender: Sender) -> SendAll:
    return sender.send_all


def test_each_socket_is_given_the_bytes_once(send_each: SendEach, pairs: Pairs) -> None:
    pairs.add(100)
    assert send_each(pairs.ours, b"a message") == [9] * 100
    assert [sock.recv(100) for sock in pairs.theirs] == [b"a message"] * 100


def test_those_that_take_nothing_are_told_apart_wherever_they_are(send_each: SendEach, pairs: Pairs) -> None:
    pairs.add(70)
    full, gone = (0, 31, 32, 33, 69), (1, 40, 68)
    for number in full:
        fill(pairs.ours[number])
    for number in gone:
        pairs.theirs[number].close()
    expected = [FAILED if number in full + gone else 1 for number in range(70)]
    assert send_each(pairs.ours, b"m") == expected


def test_a_socket_that_takes_a_part_says_how_much(send_each: SendEach, pairs: Pairs) -> None:
    pairs.add(3)
    first, _, _ = taken = send_each(pairs.ours, MUCH)
    assert 0 < first < len(MUCH)
    assert taken == [first] * 3
    assert len(b"".join(iter(lambda: at_once(pairs.theirs[1]), b""))) == first


def test_to_nobody_nothing_is_sent(send_each: SendEach) -> None:
    assert send_each([], b"m") == []


def test_each_socket_is_given_its_own_bytes_once(send_all: SendAll, pairs: Pairs) -> None:
    pairs.add(100)
    data = [b"%d" % number for number in range(100)]
    fill(pairs.ours[3])
    pairs.theirs[40].close()
    expected = [FAILED if number in (3, 40) else len(each) for number, each in enumerate(data)]
    assert send_all(pairs.ours, data) == expected
    for number in (0, 2, 4, 39, 41, 99):
        assert pairs.theirs[number].recv(100) == data[number]


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
    monkeypatch.setattr(held, "send_raw", lambda *_: FAILED)
    pairs.add()
    assert send(pairs.ours[0], b"m") == 1
    assert pairs.theirs[0].recv(10) == b"m"


@pytest.mark.io_uring
def test_a_few_sockets_are_not_worth_a_ring(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str] = []
    ring = SimpleNamespace(send_each=lambda *_: ways.append("ring"))
    monkeypatch.setattr(sending, "Ring", lambda: ring)
    monkeypatch.setattr(sending, "send_each", lambda *_: ways.append("send"))
    pairs.add(MANY)
    Sender().send_each(Sockets(enumerate(pairs.ours[1:])), b"m")
    Sender().send_each(Sockets(enumerate(pairs.ours)), b"m")
    assert ways == ["send", "ring"]


@pytest.mark.io_uring
def test_where_the_kernel_forbids_a_ring_the_log_says_so_and_send_is_called(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(sending, "Ring", forbidden)
    caplog.set_level(logging.INFO, "pushdemo")
    sender = Sender()
    pairs.add(MANY)
    assert sender.send_each(Sockets(enumerate(pairs.ours)), b"m") == [1] * MANY
    assert "Operation not permitted" in caplog.text


@pytest.mark.io_uring
def test_a_ring_that_has_failed_is_given_up(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def failing(*_: object) -> list[int]:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(sending, "Ring", lambda: SimpleNamespace(send_each=failing, close=lambda: closed.append(True)))
    sender = Sender()
    pairs.add(MANY)
    with pytest.raises(OSError, match="no answer"):
        sender.send_each(Sockets(enumerate(pairs.ours)), b"m")
    assert sender.send_each(Sockets(enumerate(pairs.ours)), b"m") == [1] * MANY
    sender.close()
    assert closed == [True]


def test_who_has_joined_or_left_is_in_the_descriptors_or_is_not(pairs: Pairs) -> None:
    pairs.add(4)
    sockets: Sockets[int] = Sockets()
    expected: list[socket.socket] = []
    for number, sock in enumerate(pairs.ours):
        sockets[number] = sock
        expected.append(sock)
        assert list(sockets.descriptors) == [each.fileno() for each in expected]
    del sockets[1]
    del expected[1]
    assert list(sockets.descriptors) == [each.fileno() for each in expected]
    assert sockets.pop(3) is expected.pop()
    assert sockets.pop(3, None) is None
    assert list(sockets.descriptors) == [each.fileno() for each in expected]
    assert sockets.descriptors is sockets.descriptors
