"""Admission: so many places, taken and given back by any thread, even in a garbage collection."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pyramid.httpexceptions import HTTPNotFound, HTTPServiceUnavailable

from pushdemo.delivery.metrics import Counters
from pushdemo.web.admission import Places, Shares, admit, refusals_counted


def test_there_are_as_many_places_as_the_limit_says() -> None:
    places = Places(2)
    assert [places.take() for _ in range(3)] == [True, True, False]
    assert places.taken == 2
    places.give()
    assert places.taken == 1
    assert [places.take() for _ in range(2)] == [True, False]


def test_a_place_is_given_back_within_the_lock_as_well() -> None:
    """As a garbage collection does that begins while a place is being taken."""
    places = Places(1)
    assert places.take()
    with places._lock:
        places.give()
    assert places.take()


def test_there_are_exactly_as_many_places_where_threads_take_them_all_at_once() -> None:
    places, together, taken = Places(1_000), threading.Barrier(8), list[bool]()

    def come() -> None:
        together.wait()
        for _ in range(200):
            taken.append(places.take())

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == 1_000 == places.taken
    for _ in range(1_000):
        places.give()
    assert places.taken == 0
    assert sum(places.take() for _ in range(1_100)) == 1_000


def test_threads_take_no_more_places_than_there_are() -> None:
    places, most, together = Places(3), list[int](), threading.Barrier(8)

    def come_and_go() -> None:
        together.wait()
        for _ in range(500):
            if places.take():
                most.append(places.taken)
                places.give()

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places.taken == 0
    assert max(most) <= 3


def request(*, parked: bool) -> Any:
    clients = SimpleNamespace(all=Places(1), threads=Places(0), counters=Counters(), by_user=Shares(0, "", ""))
    clients.by_address = clients.by_user
    environ = {"pushdemo.park": None} if parked else {}
    return SimpleNamespace(registry={"pushdemo.clients": clients}, environ=environ)


def test_a_parked_client_takes_a_place_until_it_gives_it_back() -> None:
    asking = request(parked=True)
    release = admit(asking)
    with pytest.raises(HTTPServiceUnavailable, match="all 1 places"):
        admit(asking)
    release()
    admit(asking)


def test_a_client_that_holds_a_thread_takes_one_of_those() -> None:
    with pytest.raises(HTTPServiceUnavailable, match="all 0 threads") as refused:
        admit(request(parked=False))
    assert 5 <= int(refused.value.headers["Retry-After"]) <= 15


def test_what_is_refused_is_counted_by_its_status_and_goes_on() -> None:
    asking = request(parked=True)
    for _ in range(2):
        with pytest.raises(HTTPNotFound), refusals_counted(asking):
            raise HTTPNotFound
    with pytest.raises(KeyError), refusals_counted(asking):
        raise KeyError
    assert asking.registry["pushdemo.clients"].counters.refusals() == {("generator", 404): 2}
