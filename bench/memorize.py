"""What a memorized call costs, and what a hundred callers at once do, for `memorize` and for others of its trade.

usage: memorize.py [ROUNDS]. Needs the package `dogpile.cache`. In every round each contender has its turn at each
measurement; the order turns from round to round. Printed are medians over the rounds, ratios as medians of the rounds'
own ratios: what the machine does meanwhile falls on all alike.

A hit is a call of a function whose value is there. A miss is a call with a new argument, of a function that returns it;
a contender that is bounded keeps 1024 values. Both are CPU time of the thread: what else the machine does is not in it.
Where 8 threads hit it is real time, over that of one thread that is started as they are, taken in turns of a tenth of a
second: with the interpreter's lock 8 cannot do more than one, and what they lose to each other is the question. How
much of that is the interpreter's own, a function without a decorator tells. A stampede is 100 threads that at one
moment call a function that takes 50 ms: how often is it called, how many raise, after how many ms of real time has the
last of them its answer, and the last of those who did not compute?
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from math import isnan, nan
from statistics import median
from typing import Any, NamedTuple

import cachetools
import cachetools.func
from dogpile.cache import make_region

from pushdemo.cache.memorize import memorize

Function = Callable[..., Any]
Decorate = Callable[[Function, float], Function]

CALLS = 20_000
MISSES = 3_000
THREADS = 8
HITTING = 0.1  # seconds that threads hit for at a time
CROWD = 100
TAKES = 0.05  # seconds that the function of a stampede takes
SHORT = 0.1  # seconds that a value is fresh in the stampede on an expired one
LONG = 600.0

OURS, TTL, POST = "memorize", "cachetools.func.ttl_cache", "the 2009 post's recipe"
LRU, NONE = "functools.lru_cache", "no decorator"


class Crowd(NamedTuple):
    """A stampede: how often the function was called, how many callers got an exception, and times in ms.

    `last`: until the last of all had its answer, `slowest`: the last of those who did not compute.
    """

    calls: int
    exceptions: int
    last: float
    slowest: float


def ours(function: Function, duration: float) -> Function:
    return memorize(duration, stale=60)(function)


def post(function: Function, duration: float) -> Function:
    """The decorator as recipes of the time had it: one dict, a hash of the pickled call, the time beside the value."""
    cache: dict[str, dict[str, Any]] = {}

    @functools.wraps(function)
    def memoized(*args: Any, **kwargs: Any) -> Any:
        key = hashlib.sha1(pickle.dumps((function.__name__, args, kwargs))).hexdigest()
        if key in cache and time.time() - cache[key]["time"] < duration:
            return cache[key]["value"]
        value = function(*args, **kwargs)
        cache[key] = {"value": value, "time": time.time()}
        return value

    return memoized


def condition(function: Function, duration: float) -> Function:
    cache: cachetools.TTLCache[Any, Any] = cachetools.TTLCache(1024, duration)
    return cachetools.cached(cache, condition=threading.Condition())(function)


def dogpile(function: Function, duration: float) -> Function:
    region = make_region().configure("dogpile.cache.memory", expiration_time=duration)
    return region.cache_on_arguments()(function)


CONTENDERS: dict[str, Decorate] = {
    OURS: ours,
    POST: post,
    TTL: lambda function, duration: cachetools.func.ttl_cache(1024, duration)(function),
    "cachetools.cached(condition=)": condition,
    "dogpile.cache memory region": dogpile,
    LRU: lambda function, _duration: functools.lru_cache(1024)(function),
}


def no_arguments() -> int:
    return 1


def two_arguments(a: int, b: str) -> int:
    return 1


def hit_none(decorate: Decorate) -> float:
    """Nanoseconds of a hit with no arguments."""
    call = decorate(no_arguments, LONG)
    call()
    start = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - start) / CALLS


def hit_two(decorate: Decorate) -> float:
    """Nanoseconds of a hit with two arguments."""
    call = decorate(two_arguments, LONG)
    call(1, "b")
    start = time.thread_time_ns()
    for _ in range(CALLS):
        call(1, "b")
    return (time.thread_time_ns() - start) / CALLS


def miss(decorate: Decorate) -> float:
    """Nanoseconds of a miss, the cache being full."""

    def same(number: int) -> int:
        return number

    call = decorate(same, LONG)
    for number in range(1024):
        call(number)
    start = time.thread_time_ns()
    for number in range(1024, 1024 + MISSES):
        call(number)
    return (time.thread_time_ns() - start) / MISSES


def hit_threads(call: Function, count: int) -> float:
    """Nanoseconds of real time of a call without arguments, `count` threads taken together."""
    gate = threading.Barrier(count)
    hits: list[int] = []
    moments: list[int] = []

    def work() -> None:
        gate.wait()
        start = now = time.perf_counter_ns()
        own = 0
        while now < start + HITTING * 1e9:
            for _ in range(100):
                call()
            own += 100
            now = time.perf_counter_ns()
        hits.append(own)
        moments.extend((start, now))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (max(moments) - min(moments)) / sum(hits)


def threads_ratio(decorate: Decorate) -> float:
    """How much longer a hit takes where 8 threads do it than where one does."""
    call = decorate(no_arguments, LONG)
    call()
    many, one, one_more, many_more = (hit_threads(call, count) for count in (THREADS, 1, 1, THREADS))
    return (many + many_more) / (one + one_more)


def stampede(decorate: Decorate, *, after: bool = False, raises: bool = False) -> Crowd:
    """100 threads at once: on a cold key, on one whose value is past its duration, or where the function raises."""
    computed: list[int] = []
    answers: dict[int, tuple[float, bool]] = {}

    def slow() -> int:
        computed.append(threading.get_ident())
        time.sleep(TAKES)
        if raises:
            raise ValueError("no value")
        return 1

    call = decorate(slow, SHORT if after else LONG)
    if after:
        call()
        time.sleep(SHORT)
        computed.clear()
    gate = threading.Barrier(CROWD)

    def ask() -> None:
        gate.wait()
        start = time.perf_counter()
        try:
            call()
        except ValueError:
            raised = True
        else:
            raised = False
        answers[threading.get_ident()] = (time.perf_counter() - start) * 1e3, raised

    threads = [threading.Thread(target=ask) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    others = [took for thread, (took, _) in answers.items() if thread not in computed]
    exceptions = sum(raised for _, raised in answers.values())
    return Crowd(len(computed), exceptions, max(took for took, _ in answers.values()), max(others, default=nan))


COSTS: dict[str, Callable[[Decorate], float]] = {
    "hit, no arguments": hit_none,
    "hit, 2 arguments": hit_two,
    "miss": miss,
}
THREADED: dict[str, Decorate] = {
    **{name: CONTENDERS[name] for name in (OURS, LRU, TTL)},
    NONE: lambda function, _duration: function,
}
CROWDS: dict[str, Callable[[Decorate], Crowd]] = {
    "cold": stampede,
    "expired": functools.partial(stampede, after=True),
    "raising": functools.partial(stampede, raises=True),
}


def measured(
    rounds: int,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]], dict[str, dict[str, list[Crowd]]]]:
    """For each measurement and contender a figure a round: costs, threads, crowds."""
    costs: dict[str, dict[str, list[float]]] = {each: {name: [] for name in CONTENDERS} for each in COSTS}
    threads: dict[str, list[float]] = {name: [] for name in THREADED}
    crowds: dict[str, dict[str, list[Crowd]]] = {each: {name: [] for name in CONTENDERS} for each in CROWDS}
    names = list(CONTENDERS)
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for each, cost in COSTS.items():
            for name in order:
                costs[each][name].append(cost(CONTENDERS[name]))
        for name, decorate in THREADED.items():
            threads[name].append(threads_ratio(decorate))
        for each, crowd in CROWDS.items():
            for name in order:
                if not (each == "expired" and name == LRU):  # its values do not expire
                    crowds[each][name].append(crowd(CONTENDERS[name]))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return costs, threads, crowds


def ratio(figures: dict[str, list[float]], name: str, other: str) -> float:
    return median(mine / theirs for mine, theirs in zip(figures[name], figures[other], strict=True))


def costs_table(costs: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    def cell(each: str, name: str) -> str:
        return f"{median(costs[each][name]):,.0f} ({ratio(costs[each], name, TTL):.2f})"

    rows = [[name, *(cell(each, name) for each in COSTS)] for name in CONTENDERS]
    return [["ns of CPU a call (x ttl_cache)", *COSTS], *rows]


def crowds_table(crowds: dict[str, dict[str, list[Crowd]]]) -> list[list[str]]:
    def cell(samples: list[Crowd]) -> str:
        if not samples:
            return "-"
        calls, exceptions, last, slowest = (median(each) for each in zip(*samples, strict=True))
        raised = f", {exceptions:.0f} raise" if exceptions else ""
        others = "-" if isnan(slowest) else f"{slowest:.2f} ms"
        return f"{calls:.0f} calls{raised}; {last:.0f} ms, {others}"

    rows = [[name, *(cell(crowds[each][name]) for each in CROWDS)] for name in CONTENDERS]
    return [[f"{CROWD} threads: last of all, last that did not compute", *CROWDS], *rows]


def bars(
    costs: dict[str, dict[str, list[float]]],
    threads: dict[str, list[float]],
    crowds: dict[str, dict[str, list[Crowd]]],
) -> list[list[str]]:
    """What `memorize` must reach, and what it reached."""
    none, two = (costs[each] for each in list(COSTS)[:2])
    cold, old, raised = (crowds[each][OURS] for each in CROWDS)
    fast = f"{max(each.calls for each in old)}; {median(each.slowest for each in old):.2f} ms in the median round"
    return [
        ["bar", "at most", "reached"],
        ["hit, no arguments / ttl_cache", "0.45", f"{ratio(none, OURS, TTL):.2f}"],
        ["hit, no arguments / the post's recipe", "0.40", f"{ratio(none, OURS, POST):.2f}"],
        ["hit, 2 arguments / ttl_cache", "0.60", f"{ratio(two, OURS, TTL):.2f}"],
        ["hit, 8 threads / one thread", "1", ", ".join(f"{name} {median(each):.2f}" for name, each in threads.items())],
        ["calls, cold", "1", f"{max(each.calls for each in cold)}"],
        ["calls, expired; slowest of the 99 others", "1; 1 ms", fast],
        ["calls, raising (exceptions)", "1 (100)", f"{max(each.calls for each in raised)} ({raised[0].exceptions})"],
    ]


def markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(rounds: int) -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("cachetools", "dogpile.cache"))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {libraries}; medians of {rounds} rounds\n")
    costs, threads, crowds = measured(rounds)
    print(markdown(costs_table(costs)))
    print(markdown(crowds_table(crowds)))
    print(markdown(bars(costs, threads, crowds)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
