"""The catalog: which topics are declared, when one is made and forgotten, and that no message is lost meanwhile."""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pushdemo.topics.catalog import FOREVER, Catalog, Declaration, Figures, SourceLimitError, TopicLimitError
from pushdemo.topics.message import Message
from pushdemo.topics.pattern import Pattern, Reference, topic
from pushdemo.topics.pool import Call, SourcePool
from pushdemo.topics.producer import Producer
from pushdemo.topics.topic import EARLIEST, Topic
from tests.support import PATIENCE, in_child, threads, wait_until

LIFETIME = 60.0


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def declaration(pattern: str, lifetime: float = LIFETIME, **options: Any) -> Declaration:
    def make(reference: Reference) -> Topic:
        return Topic(reference.name, content_type="text/plain", pattern=pattern)

    return Declaration(Pattern(pattern), make, "text/plain", lifetime=lifetime, **options)


def cataloged(clock: Callable[[], float], *patterns: str, limit: int = 100) -> Catalog:
    catalog = Catalog(limit=limit, clock=clock, pool=Asleep())
    for pattern in patterns:
        catalog.declare(declaration(pattern))
    return catalog


class Asleep(SourcePool):
    """A pool that never calls: a test sweeps the catalog itself."""

    def call_at(self, due: float, function: Callable[[], None]) -> Call:
        return Call(due, function)


@pytest.fixture
def rooms(clock: Clock) -> Catalog:
    """A catalog with rooms, at most three of them at once."""
    return cataloged(clock, "room.{id}", "news", limit=3)


def room(id: object) -> Reference:
    return topic("room.{id}", id=str(id))


def names(catalog: Catalog) -> list[str]:
    """The ids of the rooms that live."""
    return sorted(name.removeprefix("room.~") for name in catalog if name.startswith("room."))


def after(topic: Topic, position: int) -> list[str]:
    """What a cursor is given."""
    found = []
    while (message := topic.following(position)[0]) is not None:
        found.append(message.body.decode())
        position = message.position
    return found


# -- what is declared


@pytest.mark.parametrize(
    "use",
    [
        lambda rooms: rooms.refer("weather"),
        lambda rooms: rooms.pattern("weather"),
        lambda rooms: rooms.refer_all(["news", "weather"], {}),
        lambda rooms: rooms.refer(topic("weather")),
    ],
)
def test_an_undeclared_pattern_names_what_there_is(rooms: Catalog, use: Callable[[Catalog], Any]) -> None:
    with pytest.raises(KeyError, match=r"no topic weather; there are: room.\{id\}, news"):
        use(rooms)


def test_a_pattern_is_declared_by_its_text_and_not_by_a_name_that_it_makes(rooms: Catalog) -> None:
    rooms.open(room(1))
    for text in ("room.~1", "room.{name}", "room.1"):
        with pytest.raises(KeyError, match="no topic"):
            rooms.refer(text, {})


def test_patterns_that_differ_in_placeholders_alone_are_one(rooms: Catalog) -> None:
    with pytest.raises(ValueError, match=r"there is a topic room.\{id\} already"):
        rooms.declare(declaration("room.{name}"))


def test_each_of_several_topics_takes_its_own_values(clock: Clock) -> None:
    catalog = cataloged(clock, "news", "a.{x}", "b.{x}.{y}")
    found = catalog.refer_all(["news", "a.{x}", "b.{x}.{y}", topic("a.{x}", x="z")], {"x": 1, "y": 2})
    assert [reference.name for reference in found] == ["news", "a.~1", "b.~1.~2", "a.~z"]
    with pytest.raises(TypeError, match="lacks y"):
        catalog.refer_all(["a.{x}", "b.{x}.{y}"], {"x": 1})
    with pytest.raises(TypeError, match=r"a.\{x\}, news: there is no placeholder z"):
        catalog.refer_all(["a.{x}", "news"], {"x": 1, "z": 2})
    with pytest.raises(TypeError, match="no topic: there is no placeholder z"):
        catalog.refer_all([], {"z": 2})
    with pytest.raises(TypeError, match="a topic is a name, a pattern or a reference, not None"):
        catalog.refer_all([None], {})  # type: ignore[list-item]


def test_a_reference_takes_no_further_values(rooms: Catalog) -> None:
    assert rooms.refer(room(1)) == room(1)
    with pytest.raises(TypeError, match="has its values already"):
        rooms.refer(room(1), {"id": 2})


def test_a_topic_that_somebody_has_made_can_be_added() -> None:
    catalog = Catalog()
    made = catalog.add(Topic("news"))
    assert list(catalog) == ["news"]
    assert ("news" in catalog, "weather" in catalog) == (True, False)
    assert catalog["news"] is made
    with pytest.raises(KeyError, match="no topic weather; there are: news"):
        catalog["weather"]
    with pytest.raises(ValueError, match="there is a topic news already"):
        catalog.add(Topic("news"))


# -- the life of a topic


def test_a_topic_is_made_once_and_is_one_for_client_and_publisher(rooms: Catalog) -> None:
    assert names(rooms) == []
    message = rooms.publish(room(1), "hello")
    assert message
    assert rooms.open(room(1)).following(0)[0] is message
    assert rooms.find(room(2)) is None
    assert names(rooms) == ["1"]


def test_a_topic_is_forgotten_when_its_lifetime_is_over(rooms: Catalog, clock: Clock) -> None:
    rooms.publish(room(1), "a")
    clock.now += LIFETIME - 1
    rooms.sweep()
    assert names(rooms) == ["1"]
    clock.now += 1
    rooms.sweep()
    assert names(rooms) == []


def test_a_short_lifetime_is_kept_beside_a_long_one(clock: Clock) -> None:
    catalog = Catalog(clock=clock, pool=Asleep())
    catalog.declare(declaration("order.{id}", lifetime=3600))
    catalog.declare(declaration("room.{id}", lifetime=LIFETIME))
    catalog.publish(topic("order.{id}", id="1"), "a")
    catalog.publish(room(1), "a")
    planned = catalog._sweep_call
    assert planned
    assert planned.due == clock.now + LIFETIME
    clock.now += 1
    catalog.publish(topic("order.{id}", id="2"), "a")
    catalog.publish(room(2), "a")
    assert catalog._sweep_call is planned, "not planned anew for each message"


@pytest.mark.parametrize("use", [lambda rooms: rooms.publish(room(1), "b"), lambda rooms: rooms.open(room(1))])
def test_a_client_or_a_message_begins_the_lifetime_anew(
    rooms: Catalog, clock: Clock, use: Callable[[Catalog], Any]
) -> None:
    rooms.publish(room(1), "a")
    clock.now += LIFETIME - 1
    use(rooms)
    clock.now += LIFETIME - 1
    rooms.sweep()
    assert names(rooms) == ["1"]


def test_a_topic_with_a_client_lives_on_and_its_lifetime_begins_when_the_last_leaves(
    rooms: Catalog, clock: Clock
) -> None:
    there = rooms.open(room(1))
    for _ in range(2):
        there.join()
    clock.now += 10 * LIFETIME
    there.leave()
    rooms.sweep()
    assert names(rooms) == ["1"]
    there.leave()
    clock.now += LIFETIME - 1
    rooms.sweep()
    assert names(rooms) == ["1"]
    clock.now += 1
    rooms.sweep()
    assert names(rooms) == []


def test_a_name_of_the_applications_own_lives_on(rooms: Catalog, clock: Clock) -> None:
    clock.now += 100 * LIFETIME
    rooms.sweep()
    assert "news" not in rooms, "this one has a lifetime"
    rooms.declare(declaration("weather", lifetime=FOREVER))
    life = rooms["weather"].epoch
    clock.now += 100 * LIFETIME
    rooms.sweep()
    assert rooms.open(topic("weather")).epoch == life


def test_a_forgotten_topic_leaves_no_memory_and_another_life_follows(rooms: Catalog, clock: Clock) -> None:
    first = rooms.open(room(1))
    last = first.publish("a").id
    memory = weakref.ref(first)
    clock.now += LIFETIME
    gc.disable()
    try:
        rooms.sweep()
        del first
        assert memory() is None, "it takes no garbage collection"
    finally:
        gc.enable()
    second = rooms.open(room(1))
    assert second.begin(last).reset
    assert second.number == 0


def test_a_topic_that_somebody_refers_to_is_not_made_twice(rooms: Catalog, clock: Clock) -> None:
    held = rooms.open(room(1))
    clock.now += LIFETIME
    rooms.sweep()
    assert names(rooms) == []
    assert rooms.find(room(1)) is held
    assert rooms.open(room(1)) is held
    assert names(rooms) == ["1"]


def test_a_client_that_joins_a_forgotten_topic_makes_it_live_again(rooms: Catalog, clock: Clock) -> None:
    held = rooms.open(room(1))
    position = held.begin().position
    clock.now += LIFETIME
    rooms.sweep()
    held.join()
    assert names(rooms) == ["1"]
    rooms.publish(room(1), "a")
    assert after(held, position) == ["a"]
    clock.now += LIFETIME
    rooms.sweep()
    assert names(rooms) == ["1"]


def test_what_else_is_kept_for_a_topic_is_let_go_with_it(clock: Clock) -> None:
    catalog, forgotten = Catalog(clock=clock, pool=Asleep()), []
    catalog.declare(declaration("room.{id}", forget=lambda topic: forgotten.append(topic.name)))
    catalog.publish(room(1), "a")
    clock.now += LIFETIME
    catalog.sweep()
    catalog.sweep()
    assert forgotten == ["room.~1"]


def test_an_end_is_remembered_for_the_lifetime(rooms: Catalog, clock: Clock) -> None:
    rooms.publish(room(1), "a")
    rooms.open(room(1)).end()
    clock.now += LIFETIME - 1
    late = rooms.open(room(1))
    assert (late.ended, after(late, late.begin().position)) == (True, ["a"])
    del late
    clock.now += LIFETIME
    rooms.sweep()
    assert not rooms.open(room(1)).ended


# -- how many


def test_the_longest_idle_topic_makes_room_for_a_new_one(rooms: Catalog, clock: Clock) -> None:
    for id in "abc":
        clock.now += 1
        rooms.publish(room(id), "x")
    rooms.publish(room("a"), "y")
    rooms.publish(room("d"), "x")
    assert names(rooms) == ["a", "c", "d"]
    rooms.open(room("c")).join()
    rooms.publish(room("e"), "x")
    rooms.publish(room("f"), "x")
    assert names(rooms) == ["c", "e", "f"]


def test_the_longest_idle_is_found_over_all_patterns(clock: Clock) -> None:
    catalog = cataloged(clock, "a.{x}", "b.{x}", limit=2)
    for pattern in ("b.{x}", "a.{x}", "a.{x}"):
        clock.now += 1
        catalog.publish(topic(pattern, x=int(clock.now)), "x")
    assert sorted(catalog) == ["a.~1002", "a.~1003"]


def test_where_no_topic_is_idle_a_client_is_refused_and_a_message_dropped(
    rooms: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [rooms.open(room(id)) for id in "abc"]
    for client in clients:
        client.join()
    with pytest.raises(TopicLimitError, match=r"all 3 topics .* \(pushdemo.topics.limit\)"):
        rooms.open_for_client(room("d"))
    with caplog.at_level(logging.WARNING, "pushdemo"):
        assert rooms.publish(room("d"), "x") is None
        (said,) = caplog.messages
        assert [rooms.publish(room("d"), "x") for _ in range(4)] == [None] * 4
    assert caplog.messages == [said]
    assert "room.{id}" in said
    assert rooms.figures()[0].dropped == 5
    assert rooms.publish(room("a"), "x"), "topics that live go on"
    clients[0].leave()
    assert rooms.publish(room("d"), "x")


def test_names_without_a_lifetime_take_no_room(clock: Clock) -> None:
    catalog = cataloged(clock, "room.{id}", limit=1)
    for name in "abc":
        catalog.declare(declaration(name, lifetime=FOREVER))
    catalog.publish(room(1), "x")
    assert sorted(catalog) == ["a", "b", "c", "room.~1"]


def test_figures_are_by_pattern_and_outlive_the_topics(rooms: Catalog, clock: Clock) -> None:
    for id in "aab":
        rooms.publish(room(id), "x")
    for _ in range(2):
        rooms.open(room("a")).join()
    expected = Figures("room.{id}", "text/plain", 2, 1, 0, 2, 2, 3, 0, False)
    assert rooms.figures()[0] == expected
    clock.now += LIFETIME
    rooms.sweep()
    assert rooms.figures()[0] == expected._replace(topics=1, idle=0, forgotten=1)


def test_a_topic_that_lives_again_is_counted_once(rooms: Catalog, clock: Clock) -> None:
    held = rooms.open(room("a"))
    held.publish("x")
    clock.now += LIFETIME
    rooms.sweep()
    held.join()
    figures = rooms.figures()[0]
    assert (figures.topics, figures.published) == (1, 1)


def test_a_closed_catalog_closes_all_of_its_topics(rooms: Catalog) -> None:
    there = rooms.open(room(1))
    rooms.close()
    assert there.closed


def test_a_closed_catalog_leaves_no_thread_that_waits_for_a_lifetime() -> None:
    catalog = Catalog()
    catalog.declare(declaration("room.{id}", lifetime=3600))
    catalog.publish(room(1), "a")
    there = catalog.open(room(2))
    there.join()
    assert threads("pushdemo-sources")
    catalog.close()
    wait_until(lambda: not threads("pushdemo-sources"), what="the end of the pool")
    there.leave()
    assert not threads("pushdemo-sources"), "nothing is forgotten any more"


# -- sources


@pytest.fixture
def sourced() -> Iterator[Catalog]:
    """Topics whose source says its value, in a real pool and real time."""
    catalog = Catalog(pool=SourcePool(limit=1))

    def equip(topic: Topic, values: Any) -> Producer:
        def source() -> Iterator[str]:
            while True:
                yield values["symbol"]

        return Producer(topic, source, 0.01, pool=catalog.pool, linger=0.0)

    catalog.declare(declaration("price.{symbol}", 0.05, equip=equip))
    yield catalog
    catalog.close()


def test_the_source_of_a_pattern_is_called_with_its_values(sourced: Catalog) -> None:
    prices = [sourced.open(topic("price.{symbol}", symbol=symbol)) for symbol in ("ABC", "X/Y")]
    for price in prices:
        price.join()
        assert price.wait(2, PATIENCE)
    assert [set(after(price, 0)) for price in prices] == [{"ABC"}, {"X/Y"}]


@pytest.mark.heavy
def test_a_topic_is_forgotten_by_the_pool_with_its_producer_and_its_threads(sourced: Catalog) -> None:
    price = sourced.open(topic("price.{symbol}", symbol="ABC"))
    price.join()
    assert price.wait(0, PATIENCE)
    price.leave()
    memory = weakref.ref(price)
    del price
    wait_until(lambda: not len(sourced), what="the end of the lifetime")
    wait_until(lambda: (gc.collect(), memory())[1] is None, what="the end of the topic")
    assert not sourced.pool.busy


def test_a_source_runs_again_for_a_topic_that_lives_again(sourced: Catalog) -> None:
    held = sourced.open(topic("price.{symbol}", symbol="ABC"))
    wait_until(lambda: not len(sourced), what="the end of the lifetime")
    held.join()
    assert held.wait(2, PATIENCE)


def test_a_client_of_a_further_source_is_refused_when_its_threads_are_all_kept(sourced: Catalog) -> None:
    release = threading.Event()
    assert sourced.pool.begin_apart(release.wait, "slow")
    try:
        with pytest.raises(SourceLimitError, match=r"all 1 threads .* \(pushdemo.sources.limit\)"):
            sourced.open_for_client(topic("price.{symbol}", symbol="ABC"))
    finally:
        release.set()
    wait_until(lambda: not sourced.pool.full, what="the end of the slow source")
    assert sourced.open_for_client(topic("price.{symbol}", symbol="ABC"))


# -- forks


def test_topics_begin_another_life_in_a_forked_process(rooms: Catalog, clock: Clock) -> None:
    there = rooms.open(room(1))
    there.join()
    life = there.epoch

    def child() -> tuple[bool, list[str], list[str]]:
        before = names(rooms)
        clock.now += LIFETIME
        rooms.sweep()
        return there.epoch == life, before, names(rooms)

    assert in_child(child) == (False, ["1"], [])
    assert (there.epoch, names(rooms)) == (life, ["1"])


# -- every message in the topic that a client joins, whatever happens at once


class Life(RuleBasedStateMachine):
    """Clients, publishers, the clean-up and the limit, in any order; time passes when it is told to."""

    IDS = "abcd"
    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.catalog = cataloged(self.clock, "room.{id}", limit=self.LIMIT)
        self.opened: dict[str, Topic] = {}  # by clients that have yet to join
        # Of the clients: id, topic, position, and what they have still to get.
        self.clients: list[tuple[str, Topic, int, list[str]]] = []
        self.waiting: dict[str, tuple[int, list[str]]] = {}  # where those that have yet to join begin
        self.said = 0

    @rule(id=st.sampled_from(IDS))
    def open(self, id: str) -> None:
        """A client has asked where to begin."""
        if id in self.opened:
            return
        try:
            topic = self.catalog.open(room(id))
        except TopicLimitError:
            assert len({known for known, *_ in self.clients}) >= self.LIMIT, "an idle one could have made room"
            assert id not in {known for known, *_ in self.clients}
            return
        for known, other, *_ in self.clients:
            assert (known != id) or other is topic, "there are two of one name"
        self.opened[id] = topic
        self.waiting[id] = (topic.head, [])

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.opened)))
        topic = self.opened.pop(id)
        topic.join()
        position, expected = self.waiting.pop(id)
        self.clients.append((id, topic, position, expected))

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        """A client leaves before it has joined."""
        id = data.draw(st.sampled_from(sorted(self.opened)))
        del self.opened[id], self.waiting[id]

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.clients) - 1))
        _, topic, position, expected = self.clients.pop(number)
        assert after(topic, position) == expected
        topic.leave()

    @rule(id=st.sampled_from(IDS))
    def publish(self, id: str) -> None:
        self.said += 1
        text = str(self.said)
        if self.catalog.publish(room(id), text) is None:
            assert id not in self.opened
            assert id not in {known for known, *_ in self.clients}
            return
        for known, _, _, expected in self.clients:
            if known == id:
                expected.append(text)
        if id in self.waiting:
            self.waiting[id][1].append(text)

    @rule(seconds=st.sampled_from([1.0, LIFETIME / 2, LIFETIME]))
    def pass_(self, seconds: float) -> None:
        self.clock.now += seconds
        self.catalog.sweep()
        for id in names(self.catalog):
            there = self.catalog[f"room.~{id}"]
            assert there.clients or there.used + LIFETIME > self.clock.now

    @invariant()
    def each_client_gets_all(self) -> None:
        for _, there, position, expected in self.clients:
            assert after(there, position) == expected

    @invariant()
    def no_more_live_than_may(self) -> None:
        occupied = {id for id, *_ in self.clients}
        assert set(names(self.catalog)) >= occupied
        assert len(names(self.catalog)) <= max(self.LIMIT, len(occupied) + len(self.opened))

    @invariant()
    def the_figures_are_right(self) -> None:
        (figures,) = self.catalog.figures()
        assert figures.topics == len(names(self.catalog))
        assert figures.clients == len(self.clients)


TestLife = Life.TestCase
TestLife.settings = settings(TestLife.settings, deadline=None, stateful_step_count=60)


def test_no_message_is_lost_between_clients_publishers_and_the_clean_up() -> None:
    """Each client publishes a word of its own once it has joined, and must be given it by the topic that it has.

    Eight threads come and go in five rooms of which two may live, each for a moment, while two others sweep and open.
    """
    catalog = Catalog(limit=2, pool=Asleep())
    catalog.declare(declaration("room.{id}", lifetime=0.0005))
    over = threading.Event()
    found: list[tuple[int, bool]] = []

    def visit(number: int) -> None:
        chance = random.Random(number)
        for turn in range(300):
            reference = room(chance.randrange(5))
            try:
                there = catalog.open(reference)
            except TopicLimitError:
                continue
            position = there.begin().position
            nap(chance)
            there.join()
            nap(chance)
            word = f"{number}.{turn}"
            message: Message | None = catalog.publish(reference, word)
            found.append((turn, message is not None and word in after(there, position)))
            nap(chance)
            there.leave()

    def disturb() -> None:
        chance = random.Random("disturb")
        while not over.is_set():
            catalog.sweep()
            catalog.publish(room(chance.randrange(5)), "noise")
            nap(chance)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    others = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in visitors + others:
        thread.start()
    for thread in visitors:
        thread.join(3 * PATIENCE)
    over.set()
    for thread in others:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in visitors)
    assert len(found) > 500
    assert [turn for turn, whole in found if not whole] == []
    assert sum(figures.clients for figures in catalog.figures()) == 0


def nap(chance: random.Random) -> None:
    """Let other threads go on, in a third of all cases."""
    if chance.random() < 0.3:
        threading.Event().wait(chance.random() / 1000)


@pytest.mark.heavy
def test_a_hundred_thousand_topics_come_and_go_and_leave_no_memory() -> None:
    clock = Clock()
    catalog = cataloged(clock, "room.{id}", limit=200_000)
    sizes = []
    for _ in range(3):
        for number in range(100_000):
            catalog.publish(room(number), "a message")
        clock.now += LIFETIME
        while len(catalog):
            catalog.sweep()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what Python has given back
        sizes.append(resident())
    assert sizes[2] <= sizes[0] * 1.05, f"resident memory grew: {sizes} kB"


def resident() -> int:
    """Resident memory in kB, as Linux has it."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_earliest_of_a_topic_that_is_made_for_it_is_nothing(rooms: Catalog) -> None:
    there = rooms.open(room(1))
    assert after(there, there.begin(EARLIEST).position) == []
