"""Memorized values at a real redis-server: the contract of every store, several nodes, and what goes wrong."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pushdemo.cache.keys import Key, key_of
from pushdemo.cache.memorize import Caches, memorize
from pushdemo.cache.store import CachetoolsStore, Entry, Store
from pushdemo.redis.backend import RedisBackend
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.store import Deletions, RedisStore
from pushdemo.redis.values import decoded, digest, encoded
from tests.cache.support import Asked, Gate
from tests.cache.test_store import StoreContract
from tests.redis.support import RedisServer, namespace, redis_server
from tests.support import PATIENCE, ROOT, in_child, wait_until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedisStore(StoreContract):
    """Two ends are those of two processes; Redis's time is moved on with the clock of the test."""

    @pytest.fixture(autouse=True)
    def _backends(self, shared: RedisServer) -> Iterator[None]:
        with ExitStack() as stack:
            self.backends = [RedisBackend(shared.url, "x") for _ in range(2)]
            for backend in self.backends:
                stack.callback(backend.close)
            shared.client.flushall()
            yield

    def stores(self, name: str = "prices", maxsize: int = 8) -> tuple[Store, Store]:
        name = name.replace("<locals>", "")  # the contract's functions are those of two processes
        here, there = (backend.store(name, maxsize, self.clock) for backend in self.backends)
        return here, there

    def put(self, store: Store, key: Key, entry: Entry) -> None:
        super().put(store, key, entry)
        self.clock.advance(0.02)  # the order of two moments of a clock that is not Redis's is known no better than this


# -- several nodes


class Machine:
    """Nodes that share their values: an application's caches on each."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.space = namespace()
        self.backends: list[RedisBackend] = []

    def node(self, **options: Any) -> Caches:
        backend = RedisBackend(self.server.url, self.space)
        backend.start([])
        self.backends.append(backend)
        wait_until(lambda: backend.trouble or backend._deletions.current, what="the news of deletions")
        return Caches(store=backend.store, **options)

    def close(self) -> None:
        for backend in self.backends:
            backend.close()


@pytest.fixture
def machine(shared: RedisServer) -> Iterator[Machine]:
    machine = Machine(shared)
    yield machine
    machine.close()


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Machine]:
    with redis_server(tmp_path, durable=True) as server:
        machine = Machine(server)
        yield machine
        machine.close()


calls: list[Any] = []
gate = Gate()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global gate
    calls.clear()
    gate = Gate()


@memorize(60)
def counted(*args: Any) -> list[Any]:
    calls.append(args)
    return [len(calls), {"args": len(args)}]


@memorize(60)
def gated() -> int:
    calls.append(())
    gate.stop()
    return len(calls)


def on(caches: Caches, function: Any, *args: Any) -> Any:
    with caches.active():
        return function(*args)


def test_a_value_is_computed_once_in_the_cluster(machine: Machine) -> None:
    nodes = [machine.node() for _ in range(3)]
    assert [on(node, counted, 1) for node in nodes] == [[1, {"args": 1}]] * 3
    assert len(calls) == 1


def test_a_hit_costs_no_round_trip(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    on(here, counted, 1)
    on(there, counted, 1)
    before = machine.server.client.info("stats")["total_commands_processed"]
    for _ in range(1000):
        on(there, counted, 1)
    after = machine.server.client.info("stats")["total_commands_processed"]
    assert after - before < 100, "what the readers ask meanwhile"
    assert len(calls) == 1


def test_the_claim_is_renewed_while_the_function_runs(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    first = Asked(lambda: on(here, gated))
    gate.reached()
    (key,) = machine.server.client.keys("*gated:claims")
    (claim,) = machine.server.client.hvals(key)
    second = Asked(lambda: on(there, gated))
    for _ in range(2):  # each time, it would have ended soon
        (claim,) = wait_until(lambda old=claim: renewed(machine, key, old), what="the renewal")  # type: ignore[misc]
    gate.open()
    assert (first.answer(), second.answer()) == (1, 1)


def renewed(machine: Machine, key: Any, old: bytes) -> list[bytes]:
    return [claim for claim in machine.server.client.hvals(key) if claim != old]


def test_who_waits_for_a_claim_asks_less_and_less_often(machine: Machine) -> None:
    machine.node(), machine.node()
    here, there = (backend.store(counted.name, 8, time.monotonic) for backend in machine.backends)
    claim = here.claim(key_of((1,)), 0)

    def scripts() -> int:
        return int(machine.server.client.info("commandstats")["cmdstat_evalsha"]["calls"])

    before = scripts()
    assert there.claim(key_of((1,)), 0.5) is None
    assert 2 < scripts() - before < 30, "pauses of 5 ms, 10, 20, 40, 80, and then of 100"
    assert here.settle(key_of((1,)), claim, None)


HOLDER = """
import sys, threading
from pushdemo.cache.memorize import Caches
from pushdemo.redis.backend import RedisBackend
from tests.redis import test_store as test_redis_store
backend = RedisBackend(*sys.argv[1:])
caches = Caches(store=backend.store)
class Gate:
    def stop(self):
        print("reached", flush=True)
        threading.Event().wait(60)
test_redis_store.gate = Gate()
with caches.active():
    test_redis_store.gated()
"""


@pytest.mark.heavy
def test_when_the_holder_of_a_claim_dies_another_computes(machine: Machine) -> None:
    command = [sys.executable, "-c", HOLDER, machine.server.url, machine.space]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"reached\n"
        here = machine.node()
        waiting = Asked(lambda: on(here, gated))
        holder.kill()
        gate.open()
        assert waiting.answer() == 1


def test_an_invalidation_reaches_the_copies_of_other_nodes(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    for node in (here, there):
        assert on(node, counted, 1)[0] == 1
        assert on(node, counted, 2)[0] == 2
    with here.active():
        counted.invalidate(1)
    wait_until(lambda: on(there, counted, 1)[0] == 3, what="the new value")
    assert on(there, counted, 2)[0] == 2
    with here.active():
        counted.clear()
    wait_until(lambda: on(there, counted, 2)[0] > 3, what="the new value")


def test_a_value_that_another_node_deletes_right_after_it_was_stored_leaves_no_copy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.node(), machine.node()
    kept, others = (backend.store(counted.name, 8, time.monotonic) for backend in machine.backends)
    assert isinstance(kept, RedisStore)
    key, settled = key_of((1,)), kept._settled

    def settled_and_deleted(*args: Any) -> bool:
        stored, before = settled(*args), kept._deletions
        others.delete(key)
        wait_until(lambda: kept._deletions > before, what="the news")
        return stored

    monkeypatch.setattr(kept, "_settled", settled_and_deleted)
    assert kept.settle(key, kept.claim(key, 0), Entry([1], time.monotonic(), 60))
    assert not kept.near
    assert kept.get(key) is None


@pytest.mark.parametrize("found_by", ["the next deletion", "a new connection"])
def test_who_has_missed_a_deletion_drops_all_copies(machine: Machine, found_by: str) -> None:
    machine.node(), machine.node()
    wait_until(lambda: all(backend._deletions.current for backend in machine.backends), what="both readers")
    kept, others = (backend.store(counted.name, 8, time.monotonic) for backend in machine.backends)
    assert isinstance(others, RedisStore)
    others.delete(key_of((4,)))  # the first in the life of a Redis: all that is known before it is that there was none
    wait_until(lambda: kept._deletions == 1, what="the news")
    keys = [key_of((number,)) for number in range(3)]
    for key in keys:
        kept.settle(key, kept.claim(key, 0), Entry([1], time.monotonic(), 60))
    others.delete(keys[0])
    wait_until(lambda: set(kept.near) == set(keys[1:]), what="the news")
    heard, others._channel = others._channel, "nowhere"
    others.delete(keys[1])
    if found_by == "a new connection":
        machine.server.kill_connections()
    else:
        others._channel = heard
        others.delete(key_of((4,)))
    wait_until(lambda: not kept.near, what="the end of the copies")
    assert kept.get(keys[1]) is None
    assert kept.get(keys[2])
    others._channel = heard
    others.delete(keys[0])
    wait_until(lambda: kept._deletions == 4, what="the news")
    assert list(kept.near) == [keys[2]]


def test_a_copy_does_not_outlive_a_deletion_at_a_redis_that_went_back_to_an_older_one(fragile: Machine) -> None:
    fragile.node(), fragile.node()
    kept, others = (backend.store(counted.name, 8, time.monotonic) for backend in fragile.backends)
    assert isinstance(kept, RedisStore)
    client, key, another = fragile.server.client, key_of((1,)), key_of((2,))
    others.delete(another)
    copy = client.get(kept._deletions_key)
    others.delete(another)
    wait_until(lambda: kept._deletions >= 2, what="the news")
    kept.settle(key, kept.claim(key, 0), Entry([1], time.monotonic(), 60))
    assert kept.near
    client.set(kept._deletions_key, copy)  # type: ignore[arg-type]
    others._channel = "nowhere"
    others.delete(key)
    fragile.server.kill_connections()
    wait_until(lambda: not kept.near, what="the end of the copies")


def test_a_copy_from_before_the_first_look_is_dropped_since_it_may_have_been_deleted(fragile: Machine) -> None:
    fragile.server.kill()
    fragile.node()
    kept, key = fragile.backends[0].store(counted.name, 8, time.monotonic), key_of((1,))
    kept.settle(key, kept.claim(key, 0), Entry([1], time.monotonic(), 60))
    assert kept.near
    fragile.server.start()
    wait_until(lambda: not kept.near, what="the end of the copies")


def test_news_of_a_deletion_must_follow_the_one_before(machine: Machine) -> None:
    machine.node()
    store = machine.backends[0].store(counted.name, 8, time.monotonic)
    assert isinstance(store, RedisStore)
    deletions = Deletions(machine.backends[0]._link)
    deletions.add(store)

    def absorbed(number: int, token: bytes, before: bytes) -> tuple[bool, int]:
        """Whether the news were taken, and how often the store has forgotten something by them."""
        store._deletions = 0
        news = {b"c": b"%d" % number, b"n": token, b"p": before, b"b": counted.name.encode(), b"d": b"digest"}
        return deletions.absorb(news), store._deletions

    assert absorbed(5, b"a", b"") == (False, 0), "nothing is known yet"
    deletions.take_over(deletions.look(), b"5 a")
    assert absorbed(6, b"b", b"a") == (True, 1)
    assert absorbed(6, b"b", b"a") == (True, 0), "the same again"
    assert absorbed(5, b"a", b"") == (True, 0), "older ones"
    assert absorbed(6, b"x", b"w") == (False, 0), "of a Redis that went back"
    assert absorbed(8, b"d", b"c") == (False, 0), "one was missed"
    assert absorbed(7, b"c", b"b") == (True, 1)


def test_a_node_that_has_not_called_a_function_clears_its_values_too(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, counted, 1)[0] == 1
    there.clear(counted.name)
    wait_until(lambda: on(here, counted, 1)[0] == 2, what="the new value")


def test_a_function_in_a_function_is_each_process_s_own(machine: Machine) -> None:
    def made(number: int) -> Any:
        @memorize(60)
        def inner() -> int:
            return number

        return inner

    here = machine.node()
    assert [on(here, made(1)), on(here, made(2))] == [1, 2]
    assert isinstance(machine.backends[0].store("f.<locals>.g", 8, lambda: 0.0), CachetoolsStore)


one, two = memorize(60)(lambda: 1), memorize(60)(lambda: 2)


def test_two_lambdas_of_one_module_do_not_share_values(machine: Machine) -> None:
    here = machine.node()
    assert [on(here, one), on(here, two)] == [1, 2]


class Thing:
    """Equals nothing but itself."""


def test_a_call_that_only_this_process_knows_is_its_own(machine: Machine) -> None:
    here, there, thing = machine.node(), machine.node(), Thing()
    assert on(here, counted, thing)[0] == on(here, counted, thing)[0] == 1
    assert on(there, counted, thing)[0] == 2


@memorize(60)
def not_kept(thing: Any) -> int:
    calls.append(type(thing))
    return len(calls)


def test_a_value_of_an_object_that_is_gone_is_forgotten_without_redis(
    fragile: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    here, living = fragile.node(), Thing()
    on(here, not_kept, living)  # what is logged of its type keeps it
    for _ in range(2):
        on(here, not_kept, Thing())
    assert not fragile.server.client.exists(f"{{{fragile.space}}}:deletions")
    fragile.server.kill()
    assert on(here, not_kept, 1) == on(here, not_kept, 1) == 4
    assert on(here, not_kept, living) == 1
    with here.active():
        assert not_kept.info().size == 2
    assert "Instance" not in caplog.text


# -- values


PLAIN = [None, True, 0, -7, 1.5, "", "é\n\x00", [], [1, [2]], {}, {"a": {"b": [None]}}, 10**30]


@pytest.mark.parametrize("value", PLAIN)
def test_what_json_carries_comes_back_as_it_was(value: Any) -> None:
    back = decoded(encoded("f", value, may_pickle=False), may_pickle=False)
    assert (back, type(back)) == (value, type(value))


OTHERS = [
    ((1, 2), "a tuple"),
    ({"a": [1, (2,)]}, r"value\['a'\]\[1\] is a tuple"),
    ({1: "a"}, "the key 1 is not text"),
    ({1, 2}, "a set"),
    (b"bytes", "a bytes"),
    (Decimal("1.5"), "a Decimal"),
    (date(2009, 1, 1), "a date"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (type("Text", (str,), {})("x"), "a Text"),
    ("\ud800", "surrogates not allowed"),
    ([10**5000], "4300 digits"),
]


@pytest.mark.parametrize(("value", "what"), OTHERS)
def test_what_json_cannot_carry_is_refused_by_name(value: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what) as caught:
        encoded("prices.rate", value, may_pickle=False)
    assert str(caught.value).startswith("prices.rate returned what JSON cannot carry")


@memorize(60)
def a_date() -> Any:
    calls.append(())
    return date(2009, 1, 1)


@memorize(60, pickle=True)
def a_pickled_date() -> Any:
    calls.append(())
    return date(2009, 1, 1)


def test_the_caller_is_told_and_nobody_waits_for_the_claim(machine: Machine) -> None:
    here, there = machine.node(), machine.node(wait=PATIENCE)
    for node in (here, there):
        with pytest.raises(TypeError, match="a_date returned what JSON cannot carry to other nodes: value is a date"):
            on(node, a_date)
        assert not machine.server.client.keys(f"*{machine.space}*:claims")


def test_a_function_that_opts_in_is_pickled(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, a_pickled_date) == on(there, a_pickled_date) == date(2009, 1, 1)
    assert len(calls) == 1


@memorize(60, pickle=True)
def a_function() -> Any:
    return lambda: None


def test_what_cannot_be_pickled_is_refused_and_nobody_waits_for_the_claim(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    for node in (here, here, there):
        with pytest.raises(TypeError, match="a_function returned what cannot be pickled for other nodes"):
            on(node, a_function)
        assert not machine.server.client.keys(f"*{machine.space}*:claims")


def test_a_pickle_is_never_loaded_where_the_function_has_not_opted_in(machine: Machine) -> None:
    import pickle

    here = machine.node()
    on(here, counted, 1)
    client = machine.server.client
    (key,) = client.keys(f"*{machine.space}*counted:values")
    (name,) = client.hkeys(key)
    made, times, _ = client.hget(key, name).split(b"\n", 2)  # type: ignore[union-attr]

    class Bomb:
        def __reduce__(self) -> Any:
            return calls.append, ("it went off",)

    client.hset(key, name, b"\n".join((made, times, b"p" + pickle.dumps(Bomb()))))
    there = machine.node()
    assert on(there, counted, 1)[0] == 2
    assert "it went off" not in calls


# -- keys


SAME = [(1,), ("1",), ([1, {"a": (2, None)}],), ({3, 1, 2},), (date(2009, 1, 1), Decimal("1.50")), (frozenset("abc"),)]


def test_a_call_has_one_name_in_every_process() -> None:
    here = [digest(key_of(arguments)) for arguments in SAME]
    assert len(set(here)) == len(SAME)
    script = (
        "from tests.redis.test_store import SAME, digest, key_of\n"
        "print(*[digest(key_of(arguments)) for arguments in SAME])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},  # here it is random, or another
    )
    assert run.stdout.split() == here


@pytest.mark.parametrize(
    ("one", "other"), [((1,), (1.0,)), ((True,), (1,)), (([1],), ((1,),)), (("a", "b"), ("ab", ""))]
)
def test_different_calls_have_different_names(one: Key, other: Key) -> None:
    assert digest(key_of(one)) != digest(key_of(other))


# -- what goes wrong


def test_while_redis_is_gone_hits_go_on_and_each_process_computes_for_itself(fragile: Machine) -> None:
    here, there = fragile.node(), fragile.node()
    on(here, counted, 1)
    on(there, counted, 1)
    fragile.server.kill()
    assert on(there, counted, 1)[0] == 1
    assert on(there, counted, 2)[0] == 2
    assert on(there, counted, 2)[0] == 2
    assert on(here, counted, 2)[0] == 3
    with here.active(), pytest.raises(RedisUnavailableError, match="is not reachable"):
        counted.invalidate(1)
    assert on(here, counted, 1)[0] == 4
    fragile.server.start()
    wait_until(lambda: not any(backend.trouble for backend in fragile.backends), what="Redis")
    assert on(here, counted, 3)[0] == on(there, counted, 3)[0] == 5


def test_redis_may_go_and_come_while_a_value_is_computed(fragile: Machine) -> None:
    here = fragile.node()
    first = Asked(lambda: on(here, gated))
    gate.reached()
    fragile.server.kill()
    gate.open()
    assert first.answer() == 1
    assert on(here, gated) == 1
    fragile.server.start()


def test_a_full_redis_is_as_one_that_is_gone(fragile: Machine, caplog: pytest.LogCaptureFixture) -> None:
    here = fragile.node()
    fragile.server.client.config_set("maxmemory", "1")
    for number in range(5):
        assert on(here, counted, number)[0] == on(here, counted, number)[0] == number + 1
    assert len([record for record in caplog.records if "OutOfMemoryError" in record.getMessage()]) == 1


def test_a_value_that_was_made_while_redis_was_full_is_forgotten_when_another_node_deletes_it(fragile: Machine) -> None:
    fragile.node(), fragile.node()
    kept, others = (backend.store(counted.name, 8, time.monotonic) for backend in fragile.backends)
    assert isinstance(kept, RedisStore)
    key, another = key_of((1,)), key_of((2,))
    fragile.server.client.config_set("maxmemory", "1")
    for each in (key, another):
        assert kept.settle(each, kept.claim(each, 0), Entry([1], time.monotonic(), 60))
    fragile.server.client.config_set("maxmemory", "0")
    before = kept._deletions
    others.delete(key)
    wait_until(lambda: kept._deletions > before, what="the news")
    assert list(kept.near) == [another]


@memorize(0.05, stale_if_error=60)
def failing() -> int:
    calls.append(())
    if len(calls) > 1:
        raise OSError("no rate")
    return len(calls)


def test_a_node_whose_function_fails_uses_the_old_value_of_another(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, failing) == 1
    assert wait_until(lambda: on(there, failing) == 1 and len(calls) > 1, what="the end of the value")
    with there.active():
        assert failing.info().errors == len(calls) - 1


def test_after_a_flush_values_are_computed_again_and_shared_again(fragile: Machine) -> None:
    here, there = fragile.node(), fragile.node()
    on(here, counted, 1)
    fragile.server.client.flushall()
    assert on(there, counted, 1)[0] == 2
    assert on(fragile.node(), counted, 1)[0] == 2


@pytest.mark.heavy
def test_nothing_is_left_of_values_that_are_of_no_more_use(fragile: Machine) -> None:
    here = fragile.node(functions={counted.name: {"duration": 0.05}})
    on(here, counted, 1)
    assert fragile.server.client.keys("*counted*")
    store = fragile.backends[0].store(counted.name, 8, time.monotonic)
    assert isinstance(store, RedisStore)
    wait_until(lambda: len(store) == 0, what="the end of the value")
    wait_until(lambda: not fragile.server.client.keys("*counted:values"), what="the end of the key")


def test_while_redis_is_gone_a_deletion_beats_a_computation_too(fragile: Machine) -> None:
    fragile.node()
    fragile.server.kill()
    store, key = fragile.backends[0].store(counted.name, 8, time.monotonic), key_of((1,))
    claim = store.claim(key, 0)
    assert claim is not None
    with pytest.raises(RedisUnavailableError):
        store.delete(key)
    assert not store.settle(key, claim, Entry([1], time.monotonic(), 60))
    assert not store.near


def test_what_redis_does_not_have_any_more_has_no_copy(machine: Machine) -> None:
    machine.node()
    store, key = machine.backends[0].store(counted.name, 8, time.monotonic), key_of((1,))
    # The first look of the reader drops whatever copies there are.
    wait_until(lambda: store.settle(key, store.claim(key, 0), Entry([1], time.monotonic(), 60)) and store.near)
    for name in machine.server.client.keys(f"*{machine.space}*values"):
        machine.server.client.delete(name)
    assert store.get(key) is None
    assert not store.near


# -- functions that are not the one at their address


def fetch(table: str, item: int) -> str:
    return f"{table} {item}"


class Table:
    """A callable object, with a method that it memorizes itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.row = memorize(60)(self.row)  # type: ignore[method-assign]

    def row(self, item: int) -> str:
        return f"{self.name} {item}"

    __call__ = row


@memorize(60)
def replaced(item: int) -> str:
    return f"the first {item}"


the_first = replaced


@memorize(60)
def replaced(item: int) -> str:  # type: ignore[no-redef]
    return f"the last {item}"


TABLES = Table("users"), Table("orders")
PAIRS: dict[str, tuple[Any, Any]] = {
    "partial": tuple(memorize(60)(partial(fetch, name)) for name in ("users", "orders")),  # type: ignore[dict-item]
    "bound method": (TABLES[0].row, TABLES[1].row),
    "callable object": (memorize(60)(TABLES[0]), memorize(60)(TABLES[1])),
    "function that was redefined": (the_first, replaced),
}


@pytest.mark.parametrize("what", PAIRS)
def test_functions_that_only_share_a_name_do_not_share_values(machine: Machine, what: str) -> None:
    here, there = machine.node(), machine.node()
    found = [[on(node, function, 1) for function in PAIRS[what]] for node in (here, there)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 2


named = memorize(60, name="rows of users")(partial(counted.__wrapped__, "users"))
others = memorize(60, name="rows of orders")(partial(counted.__wrapped__, "orders"))


def test_with_a_name_of_its_own_a_partial_is_shared(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert [on(here, named, 1)[0], on(here, others, 1)[0]] == [1, 2]
    assert [on(there, named, 1)[0], on(there, others, 1)[0]] == [1, 2]


# -- arguments that all nodes know


class Currency(Enum):
    EUR = "eur"
    USD = "usd"


class Sales(Flag):
    SHOP = 1
    NET = 2


@dataclass
class Search:
    source: str
    target: str


class Shop:
    @memorize(60)
    @classmethod
    def price(cls) -> int:
        calls.append(cls)
        return len(calls)

    @memorize(60)
    @staticmethod
    def tax(currency: Currency) -> int:
        calls.append(currency)
        return len(calls)


class Branch(Shop):
    pass


KNOWN: list[Any] = [
    Currency.EUR,
    [Currency.EUR],
    Sales.SHOP | Sales.NET,
    Shop,
    int,
    fetch,
    len,
    Shop.tax,
    ZoneInfo("Europe/Berlin"),
    datetime.now,
    datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    Search("de", "".join(["d", "e"])),
    {"a": Search("de", "en"), "b": {Currency.USD, None}},
    list(range(20_000)),
    "a" * 20_000,
]


@pytest.mark.parametrize("argument", KNOWN, ids=lambda argument: type(argument).__name__)
def test_what_all_nodes_know_is_computed_once_and_forgotten_by_all(machine: Machine, argument: Any) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, counted, argument)[0] == on(there, counted, copy.deepcopy(argument))[0] == 1
    with there.active():
        counted.invalidate(argument)
    wait_until(lambda: on(here, counted, argument)[0] == 2, what="the new value")


def test_class_methods_are_shared_and_forgotten_by_class(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert [on(here, Shop.price), on(there, Shop.price), on(here, Branch.price), on(there, Branch.price)] == [
        1,
        1,
        2,
        2,
    ]
    with there.active():
        Shop.price.invalidate()
    wait_until(lambda: on(here, Shop.price) == 3, what="the new value")
    assert on(here, Branch.price) == 2


class CaseBlind:
    """Equals what looks different, so that nobody can say what equals it elsewhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaseBlind) and other.text.lower() == self.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())


def test_a_type_that_other_nodes_cannot_know_is_each_node_s_own_and_told_once(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, counted, CaseBlind("a"))[0] == on(here, counted, CaseBlind("A"))[0] == 1
    assert on(here, counted, CaseBlind("b"))[0] == 2
    assert on(there, counted, CaseBlind("a"))[0] == 3
    told = [record.getMessage() for record in caplog.records if "CaseBlind" in record.getMessage()]
    assert len(told) == 1
    assert "counted: calls with arguments of type tests.redis.test_store.CaseBlind are not shared" in told[0]
    assert "memorize(ignore=...)" in told[0]
    with here.active():
        counted.invalidate(CaseBlind("A"))
    assert on(here, counted, CaseBlind("a"))[0] == 4


@memorize(60, ignore=("session",))
def with_session(item: int, session: Any) -> int:
    calls.append(session)
    return item * 2


def test_what_is_ignored_does_not_keep_a_call_from_the_other_nodes(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, with_session, 2, Thing()) == on(there, with_session, 2, Thing()) == 4
    assert len(calls) == 1
    with there.active():
        with_session.invalidate(2)  # type: ignore[call-arg]
    wait_until(lambda: on(here, with_session, 2, Thing()) and len(calls) == 2, what="the new value")


# -- what cannot be read


MALFORMED = [
    b"",
    b"no line",
    b"a\nb\nj1",
    b"{made}\n{times}\n",
    b"{made}\n1\nj1",
    b"{made}\n{times}\nj[1, 2",
    b"{made}\n{times}\nj\xff",
    b"{made}\n{times}\nx1",
    b"{made}\n{times}\np",
    b"{made}\n{times}\np\x80\x05garbage",
    b"{made}\n{times}\npctests.redis.test_store\nGone\n.",
    b"{made}\n{times}\npcbuiltins\nopen\n(S'/nowhere'\ntR.",
    b"{made}\n{times}\nj" + b"[" * 100_000,
]


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda value: repr(value[:50]))
@pytest.mark.parametrize("function", [counted, a_pickled_date], ids=lambda function: function.__name__)
def test_a_malformed_value_is_made_anew(
    machine: Machine, function: Any, malformed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = machine.node(), machine.node()
    value = on(here, function)
    client = machine.server.client
    (key,) = client.keys(f"*{machine.space}*{function.name}:values")
    ((name, entry),) = client.hgetall(key).items()
    made, times, _ = entry.split(b"\n", 2)
    client.hset(key, name, malformed.replace(b"{made}", made).replace(b"{times}", times))
    assert type(on(there, function)) is type(value)
    assert len(calls) == 2
    assert type(on(machine.node(), function)) is type(value)
    assert len(calls) == 2, "what has been made anew is at Redis"
    assert [record.levelname for record in caplog.records if "cannot be read" in record.getMessage()] == ["WARNING"]


def test_a_malformed_number_of_the_last_deletion_does_not_stop_the_news(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    for node in (here, there):
        assert on(node, counted, 1)[0] == 1
    (key,) = machine.server.client.keys(f"*{machine.space}*deletions") or [f"{{{machine.space}}}:deletions"]
    machine.server.client.set(key, b"garbage")
    machine.server.kill_connections()
    with here.active():
        counted.invalidate(1)
    wait_until(lambda: on(there, counted, 1)[0] == 2, what="the new value")


# -- forks and interrupts


def test_a_computation_that_goes_on_in_a_child_does_not_put_its_value(machine: Machine) -> None:
    machine.node(), machine.node()
    here, there = (backend.store(counted.name, 8, time.monotonic) for backend in machine.backends)
    key = key_of((1,))
    claim = here.claim(key, 0)
    assert claim is not None
    assert not in_child(lambda: here.settle(key, claim, Entry([1], time.monotonic(), 60)))
    assert there.get(key) is None
    assert there.claim(key, 0) is None, "the claim is the parent's"
    assert here.settle(key, claim, Entry([2], time.monotonic(), 60))
    assert (found := there.get(key)) is not None
    assert found.value == [2]


def test_a_child_computes_and_shares_too(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    first = Asked(lambda: on(here, gated))
    gate.reached()
    assert in_child(lambda: [on(here, counted, 5)[0], on(here, counted, 5)[0]]) == [2, 2]
    assert on(there, counted, 5)[0] == 2, "the child's value, which it counted after its parent's call"
    gate.open()
    assert first.answer() == 1


def test_a_child_hears_of_deletions(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, counted, 1)[0] == 1
    reader, writer = os.pipe()
    told, tell = os.pipe()

    def child() -> Any:
        first = on(here, counted, 1)[0]
        os.write(writer, b".")
        os.read(told, 1)
        calls.extend([(), ()])
        wait_until(lambda: on(here, counted, 1)[0] == 4, what="the new value")
        return first

    def forget() -> None:
        os.read(reader, 1)
        with there.active():
            counted.invalidate(1)
        os.write(tell, b".")

    forgetting = Asked(forget)
    assert in_child(child) == 1
    forgetting.answer()
    for end in (reader, writer, told, tell):
        os.close(end)


def test_a_child_does_not_trust_the_copies_of_its_parent(machine: Machine) -> None:
    here, there = machine.node(), machine.node()
    assert on(here, counted, 1)[0] == 1

    def child() -> Any:
        with there.active():  # the other node's way to Redis, in this child
            counted.invalidate(1)
        return on(here, counted, 1)[0]

    assert in_child(child) == 2


def test_a_child_has_the_locks_of_the_connection_anew(machine: Machine) -> None:
    here = machine.node()
    link = machine.backends[0]._link
    with link._lock, link._trying:
        held = Asked(lambda: in_child(lambda: on(here, counted, 1)[0]))
        assert held.answer() == 1


@pytest.mark.heavy
def test_a_claim_that_is_dropped_ends_with_its_lease(machine: Machine) -> None:
    machine.node(), machine.node()
    here, there = (backend.store(counted.name, 8, time.monotonic) for backend in machine.backends)
    key = key_of((1,))
    claim = here.claim(key, 0)
    assert claim is not None
    del claim  # as where an interrupt ends the computation
    assert there.claim(key, PATIENCE) is not None
    assert here.claim(key_of((2,)), 0) is not None


INTERRUPTED = """
import os, signal, sys
from pushdemo.cache import Caches, canonical
from pushdemo.redis import store
from pushdemo.redis.backend import RedisBackend
from tests.redis.test_store import counted

class Interrupt(BaseException):
    pass

FOLDERS = os.path.dirname(canonical.__file__), os.path.dirname(store.__file__)
interrupts = 0

def handler(number, frame):
    global interrupts
    if frame.f_code.co_filename.startswith(FOLDERS):
        interrupts += 1
        raise Interrupt

signal.signal(signal.SIGALRM, handler)
backend = RedisBackend(*sys.argv[1:])
backend.start([])
with Caches(store=backend.store, wait=10).active():
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0002)
    while interrupts < 300:
        try:
            for number in range(5):
                counted(number)
                counted.invalidate(number)
                counted(number)
        except Interrupt:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in range(5):
        counted(number)
        assert counted(number)[1] == {"args": 1}
backend.close()
"""


@pytest.mark.heavy
def test_interrupts_leave_no_key_locked(machine: Machine) -> None:
    command = [sys.executable, "-c", INTERRUPTED, machine.server.url, machine.space]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
