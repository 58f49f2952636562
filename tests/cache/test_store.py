"""What every store must do, whatever it keeps its values in; and what the one in the process does besides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushdemo.cache.keys import Key, key_of
from pushdemo.cache.memorize import Caches, memorize
from pushdemo.cache.store import CachetoolsStore, Entry, Store
from tests.cache.support import Asked, Clock, Gate
from tests.support import PATIENCE


class StoreContract:
    """The contract. A store's own test class inherits it and says how its stores are made, and how time passes.

    Keys are of plain types and values such as JSON has; times are whole multiples of `second`.
    """

    second = 1.0

    @pytest.fixture(autouse=True)
    def _clock(self) -> None:
        self.clock = Clock()

    def stores(self, name: str = "prices", maxsize: int = 8) -> tuple[Store, Store]:
        """Two ends of one function's store, as two processes have them; they begin empty."""
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, for the clock and for whatever else keeps time."""
        self.clock.advance(seconds)

    def entry(self, value: object, duration: float = 10, stale: float = 0, stale_if_error: float = 0) -> Entry:
        return Entry(value, self.clock(), *(times * self.second for times in (duration, stale, stale_if_error)))

    def put(self, store: Store, key: Key, entry: Entry) -> None:
        claim = store.claim(key, PATIENCE)
        assert claim is not None
        assert store.settle(key, claim, entry)

    def test_what_was_put_is_there_with_its_times(self) -> None:
        here, there = self.stores()
        assert here.get(key_of((1,))) is None
        put = self.entry([1, {"a": "b"}], 10, 5, 20)
        self.put(here, key_of((1,)), put)
        for store in (here, there):
            found = store.get(key_of((1,)))
            assert found is not None
            assert found.value == [1, {"a": "b"}]
            times = [found.made, found.fresh_until, found.stale_until, found.error_until]
            assert times == pytest.approx([put.made, put.fresh_until, put.stale_until, put.error_until], abs=0.1)
        assert here.near[key_of((1,))].value == [1, {"a": "b"}]

    def test_what_is_put_again_takes_the_place(self) -> None:
        here, there = self.stores()
        for value in ("old", "new"):
            self.put(here, key_of((1,)), self.entry(value))
        for store in (here, there):
            assert (found := store.get(key_of((1,)))) is not None
            assert found.value == "new"
        assert len(here) == 1

    def test_equal_arguments_of_different_types_have_values_of_their_own(self) -> None:
        here, there = self.stores()
        arguments = [1, 1.0, True, "1", None, "None", [1], (1,), {"a": 1}]
        for number, argument in enumerate(arguments):
            self.put(here, key_of((argument,)), self.entry(number, 60))
        for number, argument in list(enumerate(arguments))[-8:]:
            assert (found := there.get(key_of((argument,)))) is not None
            assert found.value == number

    def test_a_claim_is_one_caller_s_until_it_settles(self) -> None:
        here, there = self.stores()
        claim = here.claim(key_of((1,)), 0)
        assert claim is not None
        assert here.claim(key_of((1,)), 0) is None
        assert there.claim(key_of((1,)), 0) is None
        assert there.claim(key_of((2,)), 0) is not None
        assert here.settle(key_of((1,)), claim, None)
        assert here.get(key_of((1,))) is None
        assert there.claim(key_of((1,)), 0) is not None

    @pytest.mark.parametrize("end", ["settle", "put", "delete", "clear"])
    def test_who_waits_for_a_claim_gets_it_when_it_ends(self, end: str) -> None:
        here, there = self.stores()
        key = key_of((1,))
        claim = here.claim(key, 0)
        assert claim is not None
        waiting = Asked(lambda: there.claim(key, PATIENCE))
        assert there.claim(key, 0.01 * self.second) is None
        ends: dict[str, Callable[[], object]] = {
            "settle": lambda: here.settle(key, claim, None),
            "put": lambda: here.settle(key, claim, self.entry(1)),
            "delete": lambda: here.delete(key),
            "clear": here.clear,
        }
        ends[end]()
        assert waiting.answer() is not None

    def test_a_claim_that_settles_with_nothing_leaves_the_old_value(self) -> None:
        here, _ = self.stores()
        self.put(here, key_of((1,)), self.entry("old"))
        claim = here.claim(key_of((1,)), 0)
        assert claim is not None
        assert here.settle(key_of((1,)), claim, None)
        assert (found := here.get(key_of((1,)))) is not None
        assert found.value == "old"

    @pytest.mark.parametrize("forget", ["delete", "clear"])
    def test_what_was_begun_before_a_deletion_is_not_put_after_it(self, forget: str) -> None:
        here, there = self.stores()
        key = key_of((1,))
        claim = here.claim(key, 0)
        assert claim is not None
        there.delete(key) if forget == "delete" else there.clear()
        assert not here.settle(key, claim, self.entry("old"))
        assert here.get(key) is None
        assert not here.settle(key, claim, None)

    def test_a_lost_claim_does_not_end_the_next_one(self) -> None:
        here, there = self.stores()
        key = key_of((1,))
        lost = here.claim(key, 0)
        assert lost is not None
        there.delete(key)
        claim = there.claim(key, 0)
        assert claim is not None
        assert not here.settle(key, lost, self.entry("old"))
        assert here.claim(key, 0) is None
        assert there.settle(key, claim, self.entry("new"))
        assert (found := here.get(key)) is not None
        assert found.value == "new"

    def test_delete_forgets_one_and_clear_all(self) -> None:
        here, there = self.stores()
        for number in range(3):
            self.put(here, key_of((number,)), self.entry(number))
        there.delete(key_of((0,)))
        there.delete(key_of((9,)))
        assert [there.get(key_of((number,))) is None for number in range(3)] == [True, False, False]
        there.clear()
        assert [there.get(key_of((number,))) for number in range(3)] == [None, None, None]
        assert len(there) == 0
        assert not there.near

    def test_what_is_of_no_more_use_goes(self) -> None:
        here, _ = self.stores()
        self.put(here, key_of((1,)), self.entry("short", 10, stale=5))
        self.put(here, key_of((2,)), self.entry("long", 10, stale_if_error=20))
        self.advance(14 * self.second)
        assert len(here) == 2
        self.advance(2 * self.second)
        assert len(here) == 1
        assert key_of((1,)) not in here.near
        assert here.get(key_of((1,))) is None
        self.advance(15 * self.second)
        assert len(here) == 0
        assert not here.near

    def test_no_more_than_maxsize_are_kept(self) -> None:
        here, _ = self.stores(maxsize=3)
        for number in range(10):
            self.put(here, key_of((number,)), self.entry(number))
            assert len(here) <= 3
            assert len(here.near) <= 3
        assert (found := here.get(key_of((9,)))) is not None
        assert found.value == 9

    def test_another_function_s_values_are_its_own(self) -> None:
        here, _ = self.stores("prices")
        other, _ = self.stores("places")
        self.put(here, key_of((1,)), self.entry("price"))
        assert other.get(key_of((1,))) is None
        assert here.claim(key_of((1,)), 0) is not None
        assert other.claim(key_of((1,)), 0) is not None
        other.clear()
        assert here.get(key_of((1,))) is not None

    def test_of_many_threads_one_at_a_time_has_the_claim(self) -> None:
        ends = self.stores()
        key = key_of((1,))
        inside: list[int] = []
        most: list[int] = []

        def work(store: Store) -> None:
            for _ in range(20):
                claim = store.claim(key, PATIENCE)
                assert claim is not None
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                assert store.settle(key, claim, self.entry(len(most)))

        asked = [Asked(lambda store=store: work(store)) for store in ends * 4]  # type: ignore[misc]
        for each in asked:
            each.answer()
        assert len(most) == 160
        assert max(most) == 1

    def caches(self, wait: float = PATIENCE) -> tuple[Caches, Caches]:
        """Two applications, as of two processes, on one store."""
        made: dict[str, list[Store]] = {}

        def end(number: int) -> Callable[[str, int, Callable[[], float]], Store]:
            def store(name: str, maxsize: int, timer: Callable[[], float]) -> Store:
                return made.setdefault(name, list(self.stores(name, maxsize)))[number]

            return store

        durations = {"duration": 10 * self.second, "stale": 5 * self.second}
        first, second = (Caches(**durations, timer=self.clock, store=end(n), wait=wait) for n in (0, 1))  # type: ignore[arg-type]
        return first, second

    def test_of_two_processes_one_computes_and_the_other_waits_for_its_value(self) -> None:
        gate, calls = Gate(), []

        @memorize
        def rate() -> int:
            calls.append(1)
            gate.stop()
            return len(calls)

        here, there = self.caches()
        with here.active():
            first = Asked(rate)
        gate.reached()
        with there.active():
            second = Asked(rate)
        gate.open()
        assert (first.answer(), second.answer()) == (1, 1)
        with there.active():
            assert rate() == 1
        assert calls == [1]

    def test_a_process_uses_the_stale_value_while_another_computes(self) -> None:
        gate, calls = Gate(), []

        @memorize
        def rate() -> int:
            calls.append(1)
            if len(calls) == 2:
                gate.stop()
            return len(calls)

        here, there = self.caches()
        with here.active():
            assert rate() == 1
            self.advance(11 * self.second)
            second = Asked(rate)
        gate.reached()
        with there.active():
            assert rate() == 1
            assert rate.info().stale == 1
        gate.open()
        assert second.answer() == 2
        with there.active():
            assert rate() == 2

    def test_past_the_stale_time_a_process_does_not_wait_for_ever_for_another(self) -> None:
        gate, calls = Gate(), []

        @memorize
        def rate() -> int:
            calls.append(1)
            if len(calls) == 2:
                gate.stop()
            return len(calls)

        here, there = self.caches(wait=0.05)
        with here.active():
            assert rate() == 1
            self.advance(16 * self.second)
            second = Asked(rate)
        gate.reached()
        with there.active(), pytest.raises(TimeoutError, match="rate"):
            rate()
        gate.open()
        assert second.answer() == 2

    def test_a_process_computes_when_the_other_one_s_function_raised(self) -> None:
        gate, calls = Gate(), []

        @memorize
        def rate() -> int:
            calls.append(1)
            if len(calls) == 1:
                gate.stop()
                raise ValueError("no rate")
            return len(calls)

        here, there = self.caches()
        with here.active():
            first = Asked(rate)
        gate.reached()
        with there.active():
            second = Asked(rate)
        gate.open()
        assert isinstance(first.error(), ValueError)
        assert second.answer() == 2

    def test_an_invalidation_in_one_process_beats_a_computation_in_another(self) -> None:
        gate, calls = Gate(), []

        @memorize
        def rate() -> int:
            calls.append(1)
            if len(calls) == 1:
                gate.stop()
                return 1
            return len(calls)

        here, there = self.caches()
        with here.active():
            first = Asked(rate)
        gate.reached()
        with there.active():
            rate.invalidate()
            assert rate() == 2
        gate.open()
        assert first.answer() == 1
        with here.active():
            assert rate() == 2


class TestCachetoolsStore(StoreContract):
    """In one process both ends are one store."""

    def stores(self, name: str = "prices", maxsize: int = 8) -> tuple[Store, Store]:
        store = CachetoolsStore(name, maxsize, self.clock)
        return store, store

    def kept(self, store: Store) -> list[object]:
        return [entry.value for entry in sorted(store.near.values(), key=lambda entry: str(entry.value))]

    def test_a_value_that_was_used_outlives_one_that_was_not(self) -> None:
        store, _ = self.stores(maxsize=3)
        for number in range(3):
            self.put(store, key_of((number,)), self.entry(number))
        store.near[key_of((0,))].used = True
        self.put(store, key_of((3,)), self.entry(3))
        assert self.kept(store) == [0, 2, 3]
        for number in (4, 5):  # a use counts once
            self.put(store, key_of((number,)), self.entry(number))
        assert self.kept(store) == [3, 4, 5]

    def test_where_all_were_used_the_oldest_goes(self) -> None:
        store, _ = self.stores(maxsize=3)
        for number in range(3):
            self.put(store, key_of((number,)), self.entry(number))
            store.near[key_of((number,))].used = True
        self.put(store, key_of((3,)), self.entry(3))
        assert self.kept(store) == [1, 2, 3]

    def test_a_value_too_old_to_be_put_drives_out_the_one_before_it(self) -> None:
        store, _ = self.stores()
        self.put(store, key_of((1,)), self.entry("old", 10))
        late = self.entry("late", 5)
        self.advance(6)
        self.put(store, key_of((1,)), late)
        assert store.get(key_of((1,))) is None
        assert len(store) == 0

    def test_a_value_s_destructor_may_use_the_store(self) -> None:
        store, _ = self.stores(maxsize=1)
        seen: list[int] = []

        class Value:
            def __del__(self) -> None:
                seen.append(len(store))

        self.put(store, key_of((1,)), self.entry(Value()))
        put = Asked(lambda: self.put(store, key_of((2,)), self.entry(2)))
        put.answer()
        assert len(seen) == 1
        assert self.kept(store) == [2]

    @settings(deadline=None)
    @given(
        st.integers(1, 4),
        st.lists(st.tuples(st.sampled_from(["put", "use", "delete", "clear", "wait"]), st.integers(0, 5))),
    )
    def test_what_is_near_is_what_is_kept(self, maxsize: int, steps: list[tuple[str, int]]) -> None:
        store, _ = self.stores(maxsize=maxsize)
        until: dict[Key, float] = {}
        for number, (step, argument) in enumerate(steps):
            key = key_of((argument,))
            if step == "put":
                self.put(store, key, self.entry(number, 1 + argument))
                until[key] = self.clock() + 1 + argument
            elif step == "use" and key in store.near:
                store.near[key].used = True
            elif step == "delete":
                store.delete(key)
                until.pop(key, None)
            elif step == "clear":
                store.clear()
                until.clear()
            else:
                self.advance(1)
            useful = {each for each, end in until.items() if self.clock() < end}
            assert len(store) == len(store.near) <= maxsize
            assert store.near.keys() <= useful
            assert store.near.keys() == useful or len(useful) > len(store)
            if step == "put":
                assert key in store.near
