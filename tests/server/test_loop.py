"""The loop: what it reports, whom it wakes for, and what it outlives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from pushdemo.delivery.poller import READ, WRITE
from pushdemo.server.loop import Loop
from tests.support import PATIENCE


class Noting:
    """A handler that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.closed = False

    def owns(self, fd: int) -> bool:
        return not self.closed

    def ready(self, fd: int, events: int) -> None:
        self.told.append((fd, events))


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_the_events_that_are_watched_are_reported_and_no_others(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    (ours, theirs), handler = pair, Noting()
    fd = ours.fileno()
    loop.watch(fd, READ, handler)
    loop.turn(0)
    assert handler.told == []
    theirs.send(b"x")
    loop.turn(PATIENCE)
    loop.watch(fd, WRITE, handler)
    loop.turn(PATIENCE)
    loop.unwatch(fd, READ, handler)
    loop.turn(PATIENCE)
    loop.unwatch(fd, READ | WRITE, handler)
    loop.turn(0)
    assert handler.told == [(fd, READ), (fd, READ | WRITE), (fd, WRITE)]


def test_a_change_by_another_thread_counts_at_once(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    handler = Noting()
    watch = threading.Timer(0.05, loop.watch, (pair[0].fileno(), WRITE, handler))
    watch.start()
    loop.turn(PATIENCE)
    watch.join()
    assert len(handler.told) == 1


def test_a_number_belongs_to_who_watched_it_last(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    (ours, _), gone, here = pair, Noting(), Noting()
    fd = ours.fileno()
    loop.watch(fd, WRITE, gone)
    loop.watch(fd, WRITE, here)
    loop.unwatch(fd, READ | WRITE, gone)  # late: it is not its any more
    loop.turn(PATIENCE)
    assert (gone.told, here.told) == ([], [(fd, WRITE)])


def test_a_socket_that_was_closed_without_a_word_gives_its_number_to_the_next(loop: Loop) -> None:
    gone, here = Noting(), Noting()
    first, other = socket.socketpair()
    fd = first.fileno()
    loop.watch(fd, WRITE, gone)
    first.close()
    loop.watch(fd, READ, gone)  # nobody's number
    second = other.dup()
    assert second.fileno() == fd
    loop.watch(fd, READ | WRITE, here)
    with second, other:
        loop.turn(PATIENCE)
    assert gone.told == []
    assert [number for number, _ in here.told] == [fd]


def test_calls_wake_the_loop_and_all_of_them_are_made(loop: Loop) -> None:
    done: list[int] = []
    other = threading.Timer(0.05, lambda: [loop.call_soon(lambda n=n: done.append(n)) for n in range(2_500)])
    other.start()
    while len(done) < 2_500:
        loop.turn(PATIENCE)
    other.join()
    assert done == list(range(2_500))


def test_a_call_that_calls_again_does_not_keep_sockets_waiting(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    handler, calls = Noting(), []

    def again() -> None:
        calls.append(None)
        loop.call_soon(again)

    loop.watch(pair[0].fileno(), WRITE, handler)
    loop.call_soon(again)
    for _ in range(5):
        loop.turn(PATIENCE)
    assert len(calls) == len(handler.told) == 5


def test_an_error_is_logged_and_the_others_have_their_turn(
    loop: Loop, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Noting):
        def ready(self, fd: int, events: int) -> None:
            super().ready(fd, events)
            raise ValueError("failed on purpose")

    failing, well, done = Failing(), Noting(), []
    for sock, handler in zip(pair, (failing, well), strict=True):
        loop.watch(sock.fileno(), WRITE, handler)
    loop.call_soon(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    loop.call_soon(lambda: done.append(None))
    loop.turn(PATIENCE)
    assert (len(failing.told), len(well.told), len(done)) == (1, 1, 1)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError, ZeroDivisionError]


def test_a_closed_loop_takes_what_comes_late(pair: tuple[socket.socket, socket.socket]) -> None:
    loop, handler = Loop(), Noting()
    fd = pair[0].fileno()
    loop.watch(fd, READ, handler)
    loop.close()
    loop.watch(fd, READ, handler)
    loop.unwatch(fd, READ, handler)
    loop.call_soon(lambda: None)
    loop.wake()


def test_who_is_closed_takes_its_number_from_nobody(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """A thread may come late to watch a socket whose number is another's by now."""
    gone, here = Noting(), Noting()
    fd = pair[0].fileno()
    loop.watch(fd, READ, here)
    gone.closed = True
    loop.watch(fd, READ, gone)
    loop.unwatch(fd, READ | WRITE, gone)
    pair[1].send(b"x")
    loop.turn(PATIENCE)
    assert here.told == [(fd, READ)]
