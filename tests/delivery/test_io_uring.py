"""A ring of sends at the kernel: thousands of sockets, each result at its place, and whatever the kernel may do."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import socket
from array import array
from collections.abc import Iterator

import pytest

from pushdemo.delivery import io_uring as ring
from pushdemo.delivery.io_uring import ENTRIES, Ring
from tests.support import at_once, fill, small_pair

pytestmark = pytest.mark.io_uring

COUNT = 3 * ENTRIES + 17

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [small_pair() for _ in range(COUNT)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


@pytest.fixture
def sends() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


class Kernel:
    """What stands in for the kernel from now on: takes so many of the entries it is given, and answers in reverse.

    Of what it takes, it keeps `late` answers to itself.
    """

    def __init__(self, sends: Ring, takes: int = ENTRIES, late: int = 0) -> None:
        self.sends = sends
        self.takes = takes
        self.late = late
        sends._call = self.enter

    def enter(self, _number: int, _descriptor: int, count: int, *_: int) -> int:
        places, sends = self.sends._places, self.sends
        begin, answered = places[sends._taken] % ENTRIES, places[sends._done] % ENTRIES
        taken = min(count, self.takes)
        for at, entry in enumerate(reversed(range(begin, begin + taken))):
            data = ctypes.string_at(sends._addresses[entry], sends._lengths[entry])
            try:
                result = os.write(sends._descriptors[entry], data)
            except BlockingIOError:
                result = -errno.EAGAIN
            if at < taken - self.late:
                sends._numbers[answered + at], sends._results[answered + at] = entry, result
        places[sends._taken] = (places[sends._taken] + taken) & 0xFFFFFFFF
        places[sends._done] = (places[sends._done] + taken - self.late) & 0xFFFFFFFF
        return taken


def test_many_more_sockets_than_entries_get_message_after_message(sends: Ring, pairs: list[Pair]) -> None:
    for number in range(20):
        data = b"message %d" % number
        assert sends.send_each(numbers(pairs), data) == [len(data)] * COUNT
        assert {theirs.recv(100) for _, theirs in pairs} == {data}


def test_each_socket_may_be_sent_bytes_of_its_own(sends: Ring, pairs: list[Pair]) -> None:
    for turn in range(20):
        data = [b"%d for %d" % (turn, number) * (number % 7) or b"." for number in range(COUNT)]
        assert sends.send_all(numbers(pairs), data) == list(map(len, data))
        assert [theirs.recv(1_000) for _, theirs in pairs] == data


def test_of_those_with_bytes_of_their_own_full_and_gone_ones_are_told_apart(sends: Ring, pairs: list[Pair]) -> None:
    full, gone = {0, ENTRIES - 1, ENTRIES, COUNT - 1}, {1, ENTRIES + 1}
    for number in full:
        fill(pairs[number][0])
    for number in gone:
        pairs[number][1].close()
    data = [b"x" * (1 + number % 5) for number in range(COUNT)]
    expected = [-1 if number in full | gone else len(each) for number, each in enumerate(data)]
    assert sends.send_all(numbers(pairs), data) == expected
    assert sends.send_each(numbers(pairs), b"m") == [-1 if each < 0 else 1 for each in expected]
    for number in range(2, 10):
        assert pairs[number][1].recv(100) == data[number] + b"m"


def test_bytes_of_their_own_that_are_too_much_are_taken_in_part(sends: Ring, pairs: list[Pair]) -> None:
    data = [b"x" * 100_000 if number % 2 else b"y" for number in range(100)]
    sent = sends.send_all(numbers(pairs[:100]), data)
    assert sent[::2] == [1] * 50
    assert all(0 < taken < 100_000 for taken in sent[1::2])


def test_results_of_bytes_of_their_own_that_come_out_of_turn_find_their_places(sends: Ring, pairs: list[Pair]) -> None:
    Kernel(sends)
    data = [b"x" * (1 + number % 9) for number in range(100)]
    assert sends.send_all(numbers(pairs[:100]), data) == list(map(len, data))


def test_full_and_gone_ones_are_told_apart_at_every_place(sends: Ring, pairs: list[Pair]) -> None:
    full = {0, 1, ENTRIES - 1, ENTRIES, 2 * ENTRIES + 5, COUNT - 1}
    gone = {2, ENTRIES - 2, ENTRIES + 1, COUNT - 2}
    for number in full:
        fill(pairs[number][0])
    for number in gone:
        pairs[number][1].close()
    expected = [-1 if number in full | gone else 1 for number in range(COUNT)]
    for _ in range(3):
        assert sends.send_each(numbers(pairs), b"m") == expected
    reading = set(range(COUNT)) - full - gone
    assert {pairs[number][1].recv(100) for number in reading} == {b"mmm"}


def test_those_behind_a_closed_socket_are_sent_to_or_told_to_be_asked_again(sends: Ring, pairs: list[Pair]) -> None:
    """Before Linux 5.18 the kernel takes no more entries behind a descriptor that there is not."""
    closed = {3, ENTRIES - 1, 2 * ENTRIES}
    for number in closed:
        pairs[number][0].close()
    sent = sends.send_each(numbers(pairs), b"m")
    for number, (ours, theirs) in enumerate(pairs):
        if number in closed:
            assert sent[number] == -1
        else:
            assert sent[number] == 1 or ours.send(b"m")
            assert theirs.recv(100) == b"m"


def test_a_part_is_a_part(sends: Ring, pairs: list[Pair]) -> None:
    sent = sends.send_each(numbers(pairs[:100]), b"x" * 100_000)
    assert 0 < min(sent) == max(sent) < 100_000
    assert len(b"".join(iter(lambda: at_once(pairs[50][1]), b""))) == sent[50]


def test_results_that_come_out_of_turn_find_their_places(sends: Ring, pairs: list[Pair]) -> None:
    Kernel(sends)
    fill(pairs[7][0])
    sent = sends.send_each(numbers(pairs[:100]), b"m")
    assert sent == [-1 if number == 7 else 1 for number in range(100)]


def test_what_the_kernel_does_not_take_is_sent_to_nobody_and_not_later_either(sends: Ring, pairs: list[Pair]) -> None:
    kernel = Kernel(sends, takes=10)
    ours = numbers(pairs[:100])
    assert sends.send_each(ours, b"first") == [5] * 10 + [-1] * 90
    kernel.takes = ENTRIES
    assert sends.send_each(ours, b"second") == [6] * 100
    assert [theirs.recv(100) for _, theirs in pairs[:100]] == [b"firstsecond"] * 10 + [b"second"] * 90


def test_an_order_that_was_never_given_is_forgotten(sends: Ring, pairs: list[Pair]) -> None:
    """An error on the way to the kernel leaves nothing that the next call would send to somebody."""
    kernel = sends._call

    def out_of_memory(*_: int) -> int:
        raise MemoryError

    sends._call = out_of_memory
    with pytest.raises(MemoryError):
        sends.send_each(numbers(pairs[:100]), b"first")
    sends._call = kernel
    assert sends.send_each(numbers(pairs[50:60]), b"second") == [6] * 10
    assert [at_once(theirs) for _, theirs in pairs[:100]] == [b""] * 50 + [b"second"] * 10 + [b""] * 40


def test_a_send_without_an_answer_is_an_error(sends: Ring, pairs: list[Pair]) -> None:
    Kernel(sends, late=1)
    with pytest.raises(OSError, match="not answered"):
        sends.send_each(numbers(pairs[:100]), b"m")


def test_an_answer_that_comes_late_is_an_error_at_the_next_call(sends: Ring, pairs: list[Pair]) -> None:
    kernel = Kernel(sends, late=1)
    with pytest.raises(OSError, match="not answered"):
        sends.send_each(numbers(pairs[:100]), b"m")
    kernel.late = 0
    with pytest.raises(OSError, match="not answered"):
        sends.send_each(numbers(pairs[:100]), b"m")


def test_signals_meanwhile_change_nothing(sends: Ring, pairs: list[Pair]) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(40):
            data = b"%02d" % number
            assert sends.send_each(numbers(pairs), data) == [2] * COUNT
            assert {theirs.recv(100) for _, theirs in pairs} == {data}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came


def test_after_two_to_the_32_sends_the_counters_begin_anew(sends: Ring, pairs: list[Pair]) -> None:
    Kernel(sends)
    for place in (sends._taken, sends._given, sends._read, sends._done):
        sends._places[place] = 2**32 - ENTRIES
    fill(pairs[ENTRIES][0])
    sent = sends.send_each(numbers(pairs), b"m")
    assert sent == [-1 if number == ENTRIES else 1 for number in range(COUNT)]
    assert sends._places[sends._given] == COUNT - ENTRIES


def test_a_kernel_that_forbids_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidding(*_: int) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(ring, "_system_call", lambda: forbidding)
    with pytest.raises(PermissionError):
        Ring()


@pytest.mark.heavy
def test_a_kernel_that_would_wait_for_a_full_socket_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_FLAGS", socket.MSG_NOSIGNAL)
    before = descriptors()
    with pytest.raises(OSError, match="not answered"):
        Ring()
    assert descriptors() == before


@pytest.mark.heavy
def test_a_closed_ring_leaves_no_descriptor_behind() -> None:
    before = descriptors()
    for _ in range(10):
        made = Ring()
        made.close()
    del made
    assert descriptors() == before


def numbers(pairs: list[Pair]) -> array[int]:
    return array("i", [ours.fileno() for ours, _ in pairs])


def descriptors() -> int:
    """How many are open, once those of what nobody uses any more are closed."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
