"""`memorize` against a plain model: calls, failures, clock and invalidations in any order, also within computations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pushdemo.cache.memorize import Caches, memorize
from tests.cache.support import Asked, Clock

ARGUMENTS = [1, "1", True]
WAYS: list[Any] = [
    lambda function, item: function(item),
    lambda function, item: function(item, 2),
    lambda function, item: function(item=item),
    lambda function, item: function(tax=2, item=item),
]
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0, 10.0])
TIMES = st.sampled_from([0.0, 1.0, 5.0])
# What happens while the function computes: an invalidation, the clock, another argument's call, another thread's call.
MEANWHILE = st.lists(
    st.tuples(st.just("advance"), SECONDS)
    | st.tuples(st.sampled_from(["invalidate", "ask", "other thread"]), st.sampled_from(ARGUMENTS))
    | st.tuples(st.just("clear"), st.none()),
    max_size=3,
)


class Failure(Exception):
    """What the function raises in the tests."""


@dataclass
class Kept:
    """The model's entry."""

    value: int
    made: float


@dataclass
class Computation:
    """The model's flight; `valid` until an invalidation."""

    item: Any
    old: Kept | None
    valid: bool = True


def named(item: Any) -> tuple[type, Any]:
    """An argument as the model knows it: 1 and True are two."""
    return type(item), item


class MemorizeMachine(RuleBasedStateMachine):
    """Each rule does one thing to the real function and to the model, and what they answer is the same."""

    @initialize(duration=st.sampled_from([0.0, 1.0, 5.0]), stale=TIMES, stale_if_error=TIMES)
    def begin(self, duration: float, stale: float, stale_if_error: float) -> None:
        self.clock = Clock()
        self.caches = Caches(duration, stale, stale_if_error, timer=self.clock)
        self.duration, self.stale, self.stale_if_error = duration, stale, stale_if_error
        self.made = 0
        self.fails = False
        self.meanwhile: list[tuple[str, Any]] = []
        self.kept: dict[Any, Kept] = {}
        self.computing: list[Computation] = []
        self.counts = {"hits": 0, "misses": 0, "waits": 0, "stale": 0, "errors": 0}

        @memorize
        def price(item: Any, tax: int = 2) -> int:
            return self.compute(item)

        self.price = price

    def compute(self, item: Any) -> int:
        """The function's inside, the real one."""
        fails, meanwhile = self.fails, self.meanwhile
        self.fails, self.meanwhile = False, []
        for what, argument in meanwhile:
            self.do(what, argument)
        if fails:
            raise Failure
        self.made += 1
        return self.made

    def do(self, what: str, argument: Any) -> None:
        if what == "advance":
            self.clock.advance(argument)
        elif what == "invalidate":
            self.invalidate(argument)
        elif what == "clear":
            self.clear()
        elif what == "ask":
            if all(each.item != named(argument) for each in self.computing):
                self.ask(argument, WAYS[0])
        elif self.computing and self.duration:
            self.ask_from_another_thread(argument)

    def ask_from_another_thread(self, item: Any) -> None:
        """Only what has to answer at once: a fresh value, or a stale one while this thread computes the new one."""
        kept = self.kept.get(named(item))
        computing = any(each.valid and each.item == named(item) for each in self.computing)
        age = self.clock() - kept.made if kept else 0.0
        if kept and age < self.duration + (self.stale if computing else 0.0):
            self.counts["hits" if age < self.duration else "stale"] += 1
            assert Asked(lambda: self.price(item)).answer() == kept.value

    def ask(self, item: Any, way: Any) -> None:
        """Call, and hold what comes against what the model says."""
        kept = self.kept.get(named(item))
        if kept and self.clock() - kept.made < self.duration:
            self.counts["hits"] += 1
            assert way(self.price, item) == kept.value
            return
        computation = Computation(named(item), kept)
        self.computing.append(computation)
        self.counts["misses"] += 1
        will_fail = self.fails
        try:
            value = way(self.price, item)
        except Failure:
            value = None
        self.computing.remove(computation)
        if not will_fail:
            assert value is not None
            if computation.valid and self.duration:
                self.kept[named(item)] = Kept(value, self.clock())
            return
        self.counts["errors"] += 1
        usable = kept and computation.valid and self.clock() - kept.made < self.duration + self.stale_if_error
        assert value == (kept.value if kept and usable else None)
        self.counts["stale"] += bool(usable)

    @rule(item=st.sampled_from(ARGUMENTS), way=st.sampled_from(WAYS), fails=st.booleans(), meanwhile=MEANWHILE)
    def call(self, item: Any, way: Any, fails: bool, meanwhile: list[tuple[str, Any]]) -> None:
        self.fails, self.meanwhile = fails, meanwhile
        with self.caches.active():
            self.ask(item, way)
        self.fails, self.meanwhile = False, []

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(item=st.sampled_from(ARGUMENTS))
    def invalidate(self, item: Any) -> None:
        with self.caches.active():
            self.price.invalidate(item)
        self.kept.pop(named(item), None)
        for computation in self.computing:
            computation.valid &= computation.item != named(item)

    @rule()
    def clear(self) -> None:
        with self.caches.active():
            self.price.clear()
        self.kept.clear()
        for computation in self.computing:
            computation.valid = False

    @invariant()
    def the_counts_are_the_model_s(self) -> None:
        with self.caches.active():
            info = self.price.info()
        assert {name: getattr(info, name) for name in self.counts} == self.counts
        useful = self.duration + max(self.stale, self.stale_if_error)
        ages = [self.clock() - kept.made for kept in self.kept.values() if self.clock() - kept.made < useful]
        assert (info.size, info.age) == (len(ages), min(ages, default=None))


TestMemorizeAgainstTheModel = MemorizeMachine.TestCase
TestMemorizeAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
