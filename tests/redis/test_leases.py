"""One producer in the cluster for each topic: who makes the messages, when another takes over, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pushdemo.redis import producer as redis_producer
from pushdemo.redis import reader as redis_reader
from pushdemo.redis import renewals as redis_renewals
from pushdemo.redis.connection import Call
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.producer import RedisProducer
from pushdemo.redis.topic import LeaseLostError, RedisTopic
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import threads, wait_until

INTERVAL = 0.02


class Member(Node):
    """A node whose topic has a source that says which node it runs on."""

    def __init__(self, server: RedisServer, space: str, name: str, interval: float = INTERVAL) -> None:
        super().__init__(server.url, space)
        self.server = server
        self.name = name
        self.made = 0
        self.runs = 0
        self.closed = threading.Event()
        self.news = self.topic(history=1000)
        made = self.backend.producer(self.news, self._source, interval, around=nullcontext)
        assert isinstance(made, RedisProducer)
        self.producer = self.news.producer = made
        self.start()

    def _source(self) -> Iterator[str]:
        self.runs += 1
        try:
            while True:
                self.made += 1
                yield f"{self.name}{self.made}"
        finally:
            self.closed.set()

    @property
    def leads(self) -> bool:
        return self.producer.lease is not None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


Members = Callable[..., Member]


@pytest.fixture
def member(shared: RedisServer) -> Iterator[Members]:
    """Makes members of one cluster."""
    space, made = namespace(), list[Member]()

    def member(name: str, server: RedisServer = shared, **options: Any) -> Member:
        made.append(Member(server, space, name, **options))
        return made[-1]

    yield member
    for each in made:
        each.close()


def grow(topic: RedisTopic, by: int = 5) -> None:
    """Wait for so many messages more."""
    before = topic.number
    wait_until(lambda: topic.number >= before + by, what="messages")


def whole(topic: RedisTopic) -> list[str]:
    """All that a client has been told from the first message on; fails for a gap or a repeat in the numbers."""
    position, numbers = topic.oldest(), []
    while (message := topic.following(position)[0]) is not None:
        position = message.position
        numbers.append(message.number)
    assert numbers == list(range(1, len(numbers) + 1))
    return [str(entry) for entry in entries(topic, topic.oldest())]


def test_one_node_makes_the_messages_for_all(member: Members) -> None:
    nodes = [member(name) for name in "abc"]
    for node in nodes:
        node.news.join()
    for node in nodes:
        grow(node.news, 10)
    assert sum(node.leads for node in nodes) == 1
    assert sorted(node.runs for node in nodes) == [0, 0, 1]
    (leader,) = (node for node in nodes if node.leads)
    made = whole(leader.news)
    assert made == [f"{leader.name}{number}" for number in range(1, len(made) + 1)]


def test_a_node_without_clients_does_not_compete(member: Members) -> None:
    idle, busy = member("i"), member("b")
    busy.news.join()
    grow(busy.news)
    assert busy.leads
    assert not idle.leads
    assert idle.runs == 0


@pytest.fixture
def unending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is not given back is never another node's, and no source ends by itself."""
    monkeypatch.setattr(redis_renewals, "LEASE_TIME", 3600)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals turn often, and nothing but they and publishers run scripts."""
    monkeypatch.setattr(redis_renewals, "BEAT", 0.02)
    monkeypatch.setattr(redis_reader, "LOOK", 3600)


def test_when_the_last_client_of_its_node_leaves_another_node_takes_over(member: Members, unending: None) -> None:
    first, second = member("a"), member("b")
    first.producer._linger = 3600.0
    first.news.join()
    grow(first.news)
    second.news.join()
    first.news.leave()
    wait_until(lambda: second.leads, what="the other node")
    assert first.closed.wait(20)
    grow(second.news)
    assert {text[0] for text in whole(second.news)} == {"a", "b"}


def test_a_client_that_comes_right_back_finds_the_same_run(member: Members) -> None:
    node = member("a")
    node.news.join()
    grow(node.news)
    node.news.leave()
    node.news.join()
    grow(node.news)
    assert node.runs == 1


def test_who_comes_when_nobody_has_listened_for_long_is_not_shown_the_old_message(member: Members) -> None:
    node = member("a")
    node.producer._linger = 0.0
    node.news.join()
    grow(node.news)
    node.news.leave()
    wait_until(lambda: not node.leads, what="the end of the lease")
    old = node.news.head
    wait_until(lambda: not node.producer.fresh, what="the age of the message")
    node.news.join()
    assert node.news.newest() >= old


def test_a_node_that_stops_gives_its_lease_back(member: Members, unending: None) -> None:
    first, second = member("a"), member("b")
    first.news.join()
    grow(first.news)
    second.news.join()
    first.close()
    wait_until(lambda: second.leads, what="the other node")
    grow(second.news)
    whole(second.news)


def test_when_its_linger_is_over_a_node_gives_its_lease_back(
    shared: RedisServer, member: Members, unending: None
) -> None:
    node = member("a")
    node.producer._linger = 0.0
    node.news.join()
    grow(node.news)
    assert shared.client.hexists(node.news.key, "holder")
    node.news.leave()
    wait_until(lambda: not shared.client.hexists(node.news.key, "holder"), what="the end of the lease")


def test_a_node_that_has_left_a_topic_forgets_that_another_has_made_its_messages(member: Members, quick: None) -> None:
    """Else who comes when nobody has listened for long would be shown the old message."""
    leader, other = member("a"), member("b")
    leader.news.join()
    grow(leader.news)
    other.news.join()
    wait_until(lambda: other.producer.fresh and other.news.number, what="the other's lease")
    other.news.leave()
    leader.producer._linger = 0.0
    leader.news.leave()
    wait_until(lambda: not leader.leads and not other.producer.fresh, what="the age of the message")


def given_back(node: Member) -> None:
    """Wait until others may have the node's lease."""
    wait_until(lambda: node.producer.lease and not node.producer.has_lease, what="the offer")
    wait_until(lambda: not node.server.client.hexists(node.news.key, "holder"), what="the end of the lease")


def test_a_node_that_comes_back_before_another_has_its_lease_goes_on_under_the_same_one(
    member: Members, quick: None, unending: None
) -> None:
    first, second = member("a"), member("b")
    first.producer._linger = second.producer._linger = 3600.0
    first.news.join()
    grow(first.news)
    lease = first.producer.lease
    assert lease is not None
    for _ in range(3):
        first.news.leave()
        given_back(first)
        first.news.join()
        wait_until(lambda: first.producer.has_lease, what="the lease")
        grow(first.news)
        assert first.producer.lease == lease
    assert (first.runs, first.backend._leases.lost) == (1, 0)
    made = whole(first.news)
    assert made == [f"a{number}" for number in range(1, len(made) + 1)], "nothing that was made is lost"
    first.news.leave()
    given_back(first)
    second.news.join()
    wait_until(lambda: second.leads, what="the other node")
    assert second.producer.lease == lease._replace(fence=lease.fence + 1)
    second.news.leave()
    given_back(second)
    first.news.join()
    wait_until(lambda: first.producer.has_lease, what="the lease")
    assert first.producer.lease == lease._replace(fence=lease.fence + 2)


def take(node: Member) -> Call:
    leases = node.backend._leases
    return node.producer.taking(leases._take, leases.node, leases._prefix)


@pytest.mark.parametrize("moment", ["after the question", "within it"])
def test_a_lease_of_the_life_before_is_not_gone_on_with(
    fragile: RedisServer, member: Members, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    node = member("a", interval=1000.0, server=fragile)
    node.producer._linger = 3600.0
    news, known = node.news, node.news.known
    news.join()
    grow(news, 1)
    lease = node.producer.lease
    assert lease is not None
    news.leave()
    given_back(node)

    def flush() -> None:
        monkeypatch.undo()
        fragile.client.flushall()
        news.catch_up()
        fragile.client.hset(news.key, "fence", lease.fence)  # somebody else's, in the new life

    def known_after_a_flush() -> Any:
        flush()
        return known()

    if moment == "within it":
        monkeypatch.setattr(news, "known", known_after_a_flush)
    call = take(node)
    if moment != "within it":
        flush()
    assert news.epoch != lease.epoch
    assert node.backend._link.run(call)[4] == lease.fence + 1


# -- offers


@pytest.mark.heavy
def test_a_lease_that_was_offered_while_redis_was_away_is_offered_until_redis_takes_it(
    fragile: RedisServer, member: Members, unending: None
) -> None:
    first, second = member("a", server=fragile), member("b", server=fragile)
    first.producer._linger = 3600.0
    first.news.join()
    grow(first.news)
    second.news.join()
    fragile.kill()
    first.news.leave()
    wait_until(lambda: first.producer.lease and not first.producer.has_lease, what="the offer")
    fragile.start()
    wait_until(lambda: second.leads, what="the other node")
    grow(second.news)


@pytest.mark.parametrize("how", ["refused", "unreachable"])
def test_an_offer_is_made_again_by_a_node_that_has_no_leases_any_more(
    shared: RedisServer, member: Members, quick: None, unending: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    node = member("a")
    leases, ask, turns = node.backend._leases, node.backend._link.ask, Turns(node)
    node.producer._linger = 0.0
    node.news.join()
    grow(node.news)

    def fail(calls: Sequence[Call]) -> list[Any]:
        if how == "unreachable" and any(call.script is leases._offer for call in calls):
            raise RedisUnavailableError
        return [RedisUnavailableError() if call.script is leases._offer else ask([call])[0] for call in calls]

    with monkeypatch.context() as patched:
        patched.setattr(node.backend._link, "ask", fail)
        node.news.leave()
        wait_until(lambda: not leases._all(), what="the end of the source")
        turns.wait(3)
        assert shared.client.hexists(node.news.key, "holder")
    wait_until(lambda: not shared.client.hexists(node.news.key, "holder"), what="the end of the lease")
    wait_until(lambda: leases._beat not in leases._renewals._beats, what="the rest")


# -- how often Redis is asked


@pytest.mark.parametrize("trouble", [False, True])
def test_beats_come_at_their_interval_however_they_end(monkeypatch: pytest.MonkeyPatch, trouble: bool) -> None:
    monkeypatch.setattr(redis_renewals, "BEAT", 0.05)
    renewals, times = redis_renewals.Renewals(), list[float]()

    def beat() -> None:
        times.append(time.monotonic())
        if trouble:
            raise RedisUnavailableError

    renewals.add(beat)
    wait_until(lambda: len(times) >= 8, what="beats")
    renewals.close()
    assert times[7] - times[0] >= 6 * 0.05


def test_a_beat_that_raises_ends_neither_the_others_nor_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_renewals, "BEAT", 0.01)
    renewals, beats = redis_renewals.Renewals(), list[str]()

    def wrong() -> None:
        beats.append("wrong")
        raise KeyError

    renewals.add(wrong)
    renewals.add(lambda: beats.append("right"))
    wait_until(lambda: min(beats.count("wrong"), beats.count("right")) >= 3, what="beats of both")
    renewals.close()
    assert "the renewal of a lease met an error" in caplog.text


class Turns:
    """Counts how often a node's renewals turn."""

    def __init__(self, node: Node) -> None:
        self.count = 0
        node.backend._leases._renewals.add(self._beat)

    def wait(self, turns: int) -> None:
        goal = self.count + turns
        wait_until(lambda: self.count >= goal, what="turns of the renewals")

    def _beat(self) -> None:
        self.count += 1


def test_a_node_that_clients_have_left_does_not_ask_for_leases(
    shared: RedisServer, member: Members, quick: None
) -> None:
    node = member("a")
    turns = Turns(node)
    node.producer._linger = 0.0
    node.news.join()
    grow(node.news)
    node.news.leave()
    wait_until(lambda: not node.leads, what="the end of the lease")
    turns.wait(3)
    before = scripts_run(shared)
    turns.wait(10)
    assert scripts_run(shared) == before


def test_nobody_asks_for_the_lease_of_a_topic_that_has_ended(shared: RedisServer, member: Members, quick: None) -> None:
    nodes = [member("a", interval=1000.0), member("b", interval=1000.0)]
    for node in nodes:
        node.news.join()
    wait_until(lambda: any(node.leads for node in nodes), what="a leader")
    nodes[0].news.end()
    wait_until(lambda: nodes[1].news.ended, what="the end on the other node")
    wait_until(lambda: not any(node.leads for node in nodes), what="the end of the lease")
    turns = [Turns(node) for node in nodes]
    for each in turns:
        each.wait(3)
    before = scripts_run(shared)
    for each in turns:
        each.wait(10)
    assert scripts_run(shared) == before


def test_a_message_that_redis_does_not_take_is_tried_again_with_a_rest_in_between(
    fragile: RedisServer, member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_producer, "_AGAIN", 0.1)
    node = member("a", server=fragile)
    node.news.join()
    grow(node.news)
    fragile.kill()
    wait_until(lambda: node.backend.trouble, what="the trouble")
    append, times = node.news.append, list[float]()

    def counted(*args: Any) -> Any:
        times.append(time.monotonic())
        return append(*args)

    monkeypatch.setattr(node.news, "append", counted)
    wait_until(lambda: len(times) >= 6, what="tries")
    assert times[5] - times[0] >= 5 * 0.09


def refuse(*args: Any) -> Any:
    raise RedisUnavailableError


def test_what_redis_has_not_taken_from_a_run_is_not_published_by_the_next(
    member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = member("a")
    node.producer._linger = 0.0
    node.news.join()
    grow(node.news)
    with monkeypatch.context() as patched:
        patched.setattr(node.news, "append", refuse)
        lost, *_ = wait_until(lambda: node.producer._unsaid, what="what is not taken")
        node.news.leave()
        wait_until(lambda: not node.producer.running, what="the end of the run")
    assert node.closed.is_set()
    node.news.join()
    grow(node.news)
    assert node.runs == 2
    assert lost.decode() not in whole(node.news)


def test_the_end_that_redis_has_not_taken_from_a_run_is_told_when_the_next_would_begin(
    shared: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, runs = Node(shared.url, namespace()), []

    def source() -> Iterator[str]:
        runs.append(1)
        yield "a"

    topic = node.topic()
    producer = topic.producer = node.backend.producer(topic, source, None, around=nullcontext)
    assert isinstance(producer, RedisProducer)
    producer._linger = 0.0
    node.start()
    append = topic.append
    with monkeypatch.context() as patched:
        patched.setattr(topic, "append", lambda *args: (refuse if "end" in args else append)(*args))
        topic.join()
        wait_until(lambda: producer._unsaid, what="what is not taken")
        topic.leave()
        wait_until(lambda: not producer.running, what="the end of the run")
    topic.join()
    wait_until(lambda: topic.ended, what="the end")
    assert entries(topic) == ["a"]
    assert runs == [1]
    node.close()


def scripts_run(server: RedisServer) -> int:
    calls: int = server.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    return calls


@pytest.mark.parametrize("heard", [True, False])
def test_the_next_producer_keeps_the_beat(member: Members, monkeypatch: pytest.MonkeyPatch, heard: bool) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 3600)
    first, second = member("a", interval=1000.0), member("b", interval=1000.0)
    if not heard:  # the news of the last message
        first.news.channel = "nowhere"
    first.news.join()
    grow(first.news, 1)
    second.news.join()
    first.close()
    wait_until(lambda: second.leads, what="the other node")
    assert second.producer.fresh
    assert second.made == 0


def test_nothing_is_published_under_an_old_lease(shared: RedisServer, member: Members) -> None:
    first, second = member("a"), member("b")
    first.news.join()
    grow(first.news)
    old = first.producer.lease
    assert old is not None
    first.close()
    second.news.join()
    wait_until(lambda: second.leads, what="the other node")
    with pytest.raises(LeaseLostError):
        second.news.append(b"late", "message", old)
    grow(second.news)
    assert "late" not in whole(second.news)


@pytest.mark.heavy
def test_a_lease_that_ran_out_unnoticed_is_lost_once_another_has_it(shared: RedisServer, member: Members) -> None:
    first, second = member("a", interval=0.3), member("b")
    first.news.join()
    grow(first.news, 1)
    other = first.backend._leases._prefix + "other"  # a node that takes over
    shared.client.set(other, 1, px=500)
    shared.client.hincrby(first.news.key, "fence", 1)
    shared.client.hset(first.news.key, "holder", "other")
    wait_until(lambda: not first.leads, what="the loss")
    second.news.join()
    wait_until(lambda: first.leads or second.leads, what="a producer")
    grow(first.news)
    whole(first.news)


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path, durable=True) as server:
        yield server


@pytest.fixture
def pair(fragile: RedisServer) -> Iterator[list[Member]]:
    """Two members with a client each, at a Redis that the test harms."""
    space = namespace()
    nodes = [Member(fragile, space, name) for name in "ab"]
    for node in nodes:
        node.news.join()
    for node in nodes:
        grow(node.news)
    yield nodes
    for node in nodes:
        node.close()


@pytest.mark.heavy
def test_while_redis_is_gone_the_source_rests_and_then_goes_on(fragile: RedisServer, pair: list[Member]) -> None:
    first, second = pair
    fragile.kill()
    wait_until(lambda: first.backend.trouble and second.backend.trouble, what="the trouble")
    fragile.start()
    for node in pair:
        grow(node.news, 10)
    wait_until(lambda: first.news.number == second.news.number, what="the same messages at both")
    both = [whole(first.news), whole(second.news)]
    known = min(map(len, both))
    assert known >= 10
    assert both[0][:known] == both[1][:known]
    assert first.made + second.made <= first.news.number + 2, "nothing but the value at hand was made meanwhile"


def test_after_a_flush_there_is_one_producer_again(fragile: RedisServer, pair: list[Member]) -> None:
    epoch, positions = pair[0].news.epoch, [node.news.head for node in pair]
    fragile.client.flushall()
    wait_until(lambda: all(node.news.epoch != epoch for node in pair), what="the new life")
    for node in pair:
        grow(node.news)
    assert sum(node.leads for node in pair) == 1
    assert pair[0].news.epoch == pair[1].news.epoch
    for node, position in zip(pair, positions, strict=True):
        told = entries(node.news, position)
        # What the stream still had when the life before was forgotten is a reset; what it no longer had is a gap.
        assert told[0] in ("(reset)", "(gap)")
        assert not {"(reset)", "(gap)"} & set(told[1:])


def test_a_lease_of_the_life_before_a_flush_is_not_taken_for_one_of_the_new_life(
    fragile: RedisServer, member: Members
) -> None:
    """Fences begin at 1 in each life. A leader that has nothing to publish for long must notice all the same."""
    node = member("a", interval=1000.0, server=fragile)
    node.news.join()
    grow(node.news, 1)
    epoch = node.news.epoch
    fragile.client.flushall()
    node.news.catch_up()  # before the next beat, which would find out too
    wait_until(lambda: node.news.epoch != epoch and node.news.number == 1, what="the first message of the new life")


def test_a_new_life_that_is_found_in_the_middle_of_publishing_ends_the_lease(
    fragile: RedisServer, member: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = member("a", server=fragile)
    news, known = node.news, node.news.known
    news.join()
    grow(news)
    lease = node.producer.lease
    assert lease is not None
    node.producer._linger = 0.0
    news.leave()
    wait_until(lambda: not node.leads, what="the end of the lease")

    def known_after_a_flush() -> Any:
        monkeypatch.undo()
        fragile.client.flushall()
        news.catch_up()
        fragile.client.hset(news.key, "fence", lease.fence)  # somebody else's, in the new life
        return known()

    monkeypatch.setattr(news, "known", known_after_a_flush)
    with pytest.raises(LeaseLostError):
        news.append(b"late", "message", lease)
    assert news.number == 0


def test_a_source_that_ends_right_after_its_topic_has_been_ended_elsewhere_ends_without_an_error(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    space = namespace()
    node, other = (Node(shared.url, space) for _ in range(2))
    topic, ended = node.topic(), threading.Event()

    def source() -> Iterator[str]:
        yield "a"
        other.topic().end()
        ended.set()

    topic.producer = node.backend.producer(topic, source, None, around=nullcontext)
    node.start()
    topic.join()
    assert ended.wait(20)
    wait_until(lambda: not threads("pushdemo-source-news"), what="the end of the source's thread")
    assert entries(topic) == ["a"]
    assert topic.ended
    assert not caplog.records
    for each in (node, other):
        each.close()


def test_a_source_that_ends_ends_the_topic_on_all_nodes_and_is_not_run_again(shared: RedisServer) -> None:
    space, runs = namespace(), []

    def source() -> Iterator[str]:
        runs.append(1)
        yield from "abc"

    nodes = [Node(shared.url, space) for _ in range(2)]
    for node in nodes:
        topic = node.topic()
        topic.producer = node.backend.producer(topic, source, None, around=nullcontext)
        node.start()
    topics = [node.topics["news"] for node in nodes]
    for topic in topics:
        topic.begin()
        topic.join()
    for topic in topics:
        wait_until(lambda topic=topic: topic.ended, what="the end")  # type: ignore[misc]
        assert entries(topic, topic.oldest()) == ["a", "b", "c"]
    assert runs == [1]


def test_a_failing_source_is_told_on_every_node(shared: RedisServer) -> None:
    space = namespace()

    def source() -> str:
        raise OSError("no news")

    nodes = [Node(shared.url, space) for _ in range(2)]
    for node in nodes:
        topic = node.topic()
        topic.producer = node.backend.producer(topic, source, 1000.0, around=nullcontext)
        node.start()
    topics = [node.topics["news"] for node in nodes]
    for topic in topics:
        topic.begin()
    for topic in topics:  # both know the topic's life before there is anything in it
        topic.join()
    for topic in topics:
        wait_until(lambda topic=topic: topic.head, what="the notice")  # type: ignore[misc]
        assert entries(topic) == ["(failing)"]
