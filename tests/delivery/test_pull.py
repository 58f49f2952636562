"""Clients that are given the next bytes when they have taken the last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pushdemo.delivery.rights import Orders
from tests.delivery.support import PACE, SMALL, Harness, Slow, assert_idle, in_a_thread, reset, rest
from tests.support import PATIENCE, SOON, wait_until

# -- clients that pull


def test_a_client_that_pulls_and_does_not_read_gets_whole_heartbeats(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=body.open(), run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    for _ in range(2):
        harness.pass_time(PACE.heartbeat + 1)
    body.due.set()
    found = b"".join(iter(lambda: theirs.recv(65_536), b""))
    assert found == b"open\n" + body.heartbeat + b"item\n"
    wait_until(lambda: body.closed)
    assert len(body.closed) == 1


def test_who_pulls_and_resets_its_connection_before_it_has_read_all_is_let_go(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    harness.settle()
    reset(theirs)
    wait_until(lambda: body.closed, timeout=SOON)
    assert not body.asked.is_set()
    assert_idle(harness)
    assert len(body.closed) == 1


def test_who_pulls_and_takes_nothing_is_closed_after_the_stall_timeout(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    harness.pass_time(PACE.stall_timeout - 1)
    theirs.recv(1_000)  # too little for the socket to take more
    assert not body.closed
    harness.pass_time(1)
    wait_until(lambda: body.closed)
    assert body.tally.figures().stalled == 1


def test_who_pulls_and_takes_a_little_in_time_is_not_stalled(harness: Harness) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    harness.hub.pull(ours, body, chunked=False, unsent=b"x" * 1_000_000, run=in_a_thread)
    left = 1_000_000
    for _ in range(4):
        harness.pass_time(PACE.stall_timeout / 2)
        for _ in range(20):
            left -= len(theirs.recv(5_000))
    while left:
        left -= len(theirs.recv(65_536))
    assert body.asked.wait(PATIENCE)
    assert not body.closed
    assert body.tally.figures().stalled == 0
    body.due.set()
    assert rest(theirs) == "item\n"


@pytest.mark.parametrize("chunked", [True, False])
def test_who_pulls_and_reads_slowly_when_its_right_ends_is_sent_the_whole_item_first(
    harness: Harness, chunked: bool
) -> None:
    ours, theirs = harness.pair(buffer=SMALL)
    body = Slow()
    body.items = [b"x" * 1_000_000, b"another", None]
    body.ends = harness.clock.now + 10
    harness.hub.pull(ours, body, chunked=chunked, unsent=b"", run=in_a_thread)
    body.due.set()
    begun = theirs.recv(1_000).decode()  # what follows does not fit into the sockets
    for _ in range(4):
        harness.pass_time(5)
    assert not body.closed
    item = "x" * 1_000_000
    assert begun + rest(theirs) == (f"f4240\r\n{item}\r\n6\r\nretry\n\r\n0\r\n\r\n" if chunked else f"{item}retry\n")
    wait_until(lambda: body.closed)
    assert len(body.closed) == 1
    assert body.tally.figures().stalled == 0


def test_an_order_ends_those_that_pull_where_they_are_the_only_clients(harness: Harness) -> None:
    ours, theirs = harness.pair()
    body = Slow()
    body.pace = replace(PACE, orders=Orders())
    harness.hub.pull(ours, body, chunked=False, unsent=b"", run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    harness.pass_time(1)
    body.ordered = True
    body.pace.orders.add("ann", None)
    harness.pass_time(1)
    assert rest(theirs) == "retry\n"
    body.due.set()
    wait_until(lambda: body.closed)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stop_ends_those_that_pull_while_their_next_bytes_are_made(harness: Harness, chunked: bool) -> None:
    ours, theirs = harness.pair()
    body = Slow()
    harness.hub.pull(ours, body, chunked=chunked, unsent=b"", run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    harness.hub.stop()
    assert rest(theirs) == ("6\r\nretry\n\r\n0\r\n\r\n" if chunked else "retry\n")
    assert not body.closed  # it still runs
    body.due.set()
    wait_until(lambda: body.closed)
    assert len(body.closed) == 1


def test_who_leaves_while_the_next_bytes_are_made_is_noticed_and_closed_when_they_are(harness: Harness) -> None:
    ours, theirs = harness.pair()
    body = Slow()
    harness.hub.pull(ours, body, chunked=True, unsent=b"", run=in_a_thread)
    assert body.asked.wait(PATIENCE)
    theirs.close()
    wait_until(lambda: ours.fileno() < 0, timeout=SOON)
    body.due.set()
    wait_until(lambda: body.closed)
    harness.settle()
    assert len(body.closed) == 1
