"""Which process has a generator session, at a real redis-server: two stores of sessions as two processes have them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pushdemo.redis.backend import RedisBackend
from pushdemo.redis.ownership import EXPIRY
from pushdemo.web.session import Owner, Refused
from pushdemo.web.sessions import RENEWAL, Sessions
from tests.redis.support import RedisServer, namespace, redis_server
from tests.support import wait_until

OWNER = Owner("view", "key", None)


class Counting:
    """A generator that counts, as Sessions run it."""

    is_alone = False

    def __init__(self) -> None:
        self.numbers = count(1)
        self.closed = threading.Event()

    def __next__(self) -> str:
        return str(next(self.numbers))

    def close(self) -> None:
        self.closed.set()


class Process:
    """What one process has of an application."""

    def __init__(self, url: str, space: str, **options: Any) -> None:
        self.backend = RedisBackend(url, space)
        self.sessions = Sessions(ownership=self.backend.ownership, **options)
        self.begun: list[Counting] = []

    def start(self) -> Counting:
        self.begun.append(Counting())
        return self.begun[-1]

    def poll(self, after: int | None = None, owner: Owner = OWNER) -> int | tuple[str, ...]:
        """What a poll gets: its items, or the status of its refusal."""
        try:
            return self.sessions.take(owner, self.start, after=after).items
        except Refused as refused:
            return refused.status

    def close(self) -> None:
        assert self.sessions.close(20) == 0
        self.backend.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def make(redis: RedisServer) -> Iterator[Callable[..., Process]]:
    """Makes the processes of one application."""
    space = namespace()
    made: list[Process] = []

    def make(url: str = redis.url, **options: Any) -> Process:
        made.append(Process(url, space, **options))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def here(make: Callable[..., Process]) -> Process:
    return make()


@pytest.fixture
def there(make: Callable[..., Process]) -> Process:
    return make()


def keys(redis: RedisServer, process: Process) -> list[bytes]:
    """The sessions that Redis knows of in the application of this process."""
    return list(redis.client.scan_iter(match=f"{{{process.backend.namespace}}}:generator:*"))


@pytest.mark.parametrize("after", [None, 0, 1])
def test_a_poll_elsewhere_is_misdirected_whatever_it_says(here: Process, there: Process, after: int | None) -> None:
    assert here.poll() == ("1",)
    assert there.poll(after) == 421
    assert there.begun == []
    assert here.poll(1) == ("2",)


def test_other_keys_views_and_users_are_other_sessions(here: Process, there: Process) -> None:
    assert here.poll() == ("1",)
    for owner in (Owner("view", "other", None), Owner("other", "key", None), Owner("view", "key", "ann")):
        assert there.poll(owner=owner) == ("1",)


def test_redis_hears_neither_key_nor_user(here: Process, redis: RedisServer) -> None:
    here.poll(owner=Owner("view", "a-secret", "ann"))
    (key,) = keys(redis, here)
    assert b"a-secret" not in key
    assert b"ann" not in key
    assert redis.client.get(key)


def test_a_session_that_is_forgotten_may_begin_elsewhere(here: Process, there: Process) -> None:
    here.poll()
    here.sessions.forget(OWNER)
    assert there.poll(1) == 410
    assert there.poll() == ("1",)
    assert here.poll() == 421


def test_an_idle_session_and_a_process_that_stops_leave_nothing(
    make: Callable[..., Process], there: Process, redis: RedisServer
) -> None:
    idle = make(timeout=0.05)
    idle.poll()
    assert idle.begun[0].closed.wait(20)
    assert wait_until(lambda: there.poll() == ("1",))
    there.sessions.close(20)
    assert not keys(redis, there)


def test_a_session_that_could_not_begin_is_nobody_s(here: Process, there: Process, redis: RedisServer) -> None:
    def broken() -> Counting:
        raise ValueError("no generator")

    with pytest.raises(ValueError, match="no generator"):
        here.sessions.take(OWNER, broken)
    assert not keys(redis, here)
    assert there.poll() == ("1",)


def test_a_session_that_has_ended_is_still_its_process_s(here: Process, there: Process) -> None:
    class Over(Counting):
        def __next__(self) -> str:
            raise StopIteration

    here.sessions.take(OWNER, Over, after=0)
    assert there.poll(0) == 421
    assert here.sessions.take(OWNER, None, after=0).state == "done"


@pytest.mark.heavy
def test_a_deletion_reaches_the_process_that_has_the_session(here: Process, there: Process) -> None:
    here.poll()
    assert not there.sessions.forget(OWNER)
    assert there.poll(1) == 410
    assert here.begun[0].closed.wait(20)
    assert wait_until(lambda: here.poll(1) == 410)


@pytest.mark.heavy
def test_who_begins_anew_after_a_deletion_is_left_alone(
    here: Process, there: Process, make: Callable[..., Process]
) -> None:
    here.poll()
    make().sessions.forget(OWNER)
    assert there.poll() == ("1",)
    assert here.begun[0].closed.wait(20)
    assert there.poll(1) == ("2",)
    assert here.poll() == 421


def test_a_deletion_of_nothing_leaves_nothing(here: Process, redis: RedisServer) -> None:
    here.sessions.forget(Owner("view", "nobody's", None))
    assert not keys(redis, here)


@pytest.mark.heavy
def test_what_is_kept_is_renewed_for_as_long_as_it_lives(here: Process, there: Process, redis: RedisServer) -> None:
    here.poll()
    (key,) = keys(redis, here)
    redis.client.pexpire(key, 1500)
    wait_until(lambda: redis.client.pttl(key) > 1500, what="the renewal")
    assert there.poll() == 421


@pytest.mark.heavy
def test_the_session_of_a_process_that_died_begins_elsewhere(redis: RedisServer, there: Process) -> None:
    child = os.fork()
    if not child:
        os._exit(0 if Process(redis.url, there.backend.namespace).poll() == ("1",) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert there.poll() == 421
    assert wait_until(lambda: there.poll() == ("1",), 3 * EXPIRY)


def test_a_forked_process_is_another(redis: RedisServer, here: Process) -> None:
    here.poll()
    child = os.fork()
    if not child:
        os._exit(0 if here.poll(1) == 421 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert here.poll(1) == ("2",)


def test_a_redis_that_has_forgotten_everything_is_told_again(here: Process, there: Process, redis: RedisServer) -> None:
    here.poll()
    redis.client.flushall()
    wait_until(lambda: keys(redis, here), what="the renewal")
    assert there.poll() == 421
    assert here.poll(1) == ("2",)


@pytest.mark.heavy
def test_while_redis_is_away_each_process_is_for_itself(tmp_path: Path, make: Callable[..., Process]) -> None:
    with redis_server(tmp_path) as own:
        here, there = make(own.url), make(own.url)
        assert here.poll() == ("1",)
        own.kill()
        assert here.poll() == ("2",)
        assert there.poll() == ("1",)
        assert there.poll(9) == 400
        there.sessions.forget(OWNER)
        assert there.begun[0].closed.wait(20)
        own.start()
        wait_until(lambda: keys(own, here), what="the renewal")
        assert there.poll() == 421
        assert here.poll() == ("3",)


def test_many_polls_at_many_processes_have_one_generator_a_key(make: Callable[..., Process]) -> None:
    processes = [make(waiters=50) for _ in range(4)]
    owners = [Owner("view", f"key {number}", None) for number in range(5)]
    given: dict[Owner, list[int]] = {owner: [] for owner in owners}
    refused: set[int] = set()

    def poll(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(40):
            owner = dice.choice(owners)
            answer = dice.choice(processes).poll(owner=owner)
            if isinstance(answer, int):
                refused.add(answer)
            else:
                given[owner].append(int(answer[0]))

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(poll, seed) for seed in range(12)]:
            done.result(60)
    assert refused == {421}
    for numbers in given.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert sum(len(process.begun) for process in processes) == len(owners)


def test_nobody_is_asked_at_the_limit_or_about_a_session_that_is_here(
    make: Callable[..., Process], redis: RedisServer
) -> None:
    process = make(limit=1)
    process.poll()

    def commands() -> int:
        stats = redis.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "get", "set"))

    fewest = 10**9
    for _ in range(3):  # a renewal may come between
        before = commands()
        for _ in range(50):
            process.poll()
            assert process.poll(owner=Owner("view", "other", None)) == 503
        fewest = min(fewest, commands() - before)
    assert fewest <= 4
    assert RENEWAL >= 1
