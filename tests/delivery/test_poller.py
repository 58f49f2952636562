"""Which events of sockets are reported, by epoll and by what takes its place."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from pushdemo.delivery.poller import READ, WRITE, Poller


@pytest.fixture(params=["epoll", "selectors"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    if request.param == "selectors":
        monkeypatch.delattr(select, "epoll", raising=False)
    elif not hasattr(select, "epoll"):
        pytest.skip("this system has no epoll")
    found = Poller(most=2)
    yield found
    found.close()


def test_what_is_wanted_is_reported(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd = ours.fileno()
    poller.watch(fd, READ)
    assert poller.wait(0) == []
    theirs.send(b"a")
    assert poller.wait(5) == [(fd, READ)]
    assert poller.wait(5) == [(fd, READ)], "for as long as it is so"
    poller.watch(fd, READ | WRITE)
    assert poller.wait(5) == [(fd, READ | WRITE)]
    poller.watch(fd, WRITE)
    assert poller.wait(5) == [(fd, WRITE)]
    poller.unwatch(fd)
    assert poller.wait(0) == []
    poller.unwatch(fd)


def test_one_that_has_been_shut_down_is_ready_for_all_that_is_wanted(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    poller.watch(ours.fileno(), READ)
    theirs.close()
    assert poller.wait(5) == [(ours.fileno(), READ)]
    poller.watch(ours.fileno(), READ | WRITE)
    assert poller.wait(5) == [(ours.fileno(), READ | WRITE)]


def test_some_of_many_are_reported_at_a_time(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    try:
        for ours, theirs in pairs:
            poller.watch(ours.fileno(), READ)
            theirs.send(b"a")
        reported = set()
        for _ in range(5):
            ready = poller.wait(5)
            assert ready
            assert len(ready) <= 2 or not hasattr(select, "epoll")
            for fd, _events in ready:
                reported.add(fd)
                poller.unwatch(fd)
            if len(reported) == 5:
                break
        assert reported == {ours.fileno() for ours, _ in pairs}
    finally:
        for both in pairs:
            for each in both:
                each.close()


def test_a_number_may_be_another_socket_s_when_the_first_was_closed_without_a_word(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    poller.watch(fd, WRITE)
    ours.close()
    theirs.close()
    assert poller.wait(0) == []
    others = [socket.socketpair() for _ in range(2)]
    another = next(each for both in others for each in both if each.fileno() == fd)
    poller.watch(fd, WRITE)
    assert poller.wait(5) == [(fd, WRITE)]
    poller.unwatch(fd)
    assert another.fileno() == fd
    for both in others:
        for each in both:
            each.close()


def test_a_closed_socket_cannot_be_watched(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    ours.close()
    theirs.close()
    with pytest.raises((OSError, ValueError)):
        poller.watch(fd, READ)
    poller.unwatch(fd)
    with pytest.raises((OSError, ValueError)):
        poller.watch(-1, READ)
    poller.unwatch(-1)
