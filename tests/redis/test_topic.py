"""Topics at a real redis-server: the contract of every topic, the mirrors of several nodes, and what goes wrong."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

import tests.topics.test_topic as contract
from pushdemo import memorize
from pushdemo.cache.functions import Caches
from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.redis import reader as redis_reader
from pushdemo.redis.connection import Link
from pushdemo.redis.listener import Listener
from pushdemo.redis.pool import RedisUnavailableError
from pushdemo.redis.topic import RedisTopic
from pushdemo.topics.topic import EARLIEST
from pushdemo.transports import jsonlines
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import PATIENCE, threads, wait_until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server for tests that leave it as it is."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


# -- the contract of every topic

OTHERS = ("forked",)  # tests of lives in a process
CONTRACT = [
    test
    for name, test in vars(contract).items()
    if name.startswith("test_") and callable(test) and not any(other in name for other in OTHERS)
]


class TestContract:
    """Each test of test_topics.py again, on topics of which each is a Redis Stream of its own."""

    @pytest.fixture(autouse=True)
    def _topics(self, shared: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        links: list[Link] = []

        def topic(**options: Any) -> RedisTopic:
            links.append(Link(shared.url, namespace()))
            return RedisTopic(links[-1], "news", content_type="text/plain", **options)

        monkeypatch.setattr(contract, "topic", topic)
        yield
        for link in links:
            link.close()


def _adopt() -> None:
    for test in CONTRACT:
        setattr(TestContract, test.__name__, staticmethod(test))


_adopt()


# -- several nodes


class Cluster:
    """Nodes that share one namespace of a redis-server, each with the topic `news`."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.space = namespace()
        self.nodes: list[Node] = []
        self.links: list[Link] = []

    def node(self, history: int = 100) -> RedisTopic:
        """The topic on one node more, with a client there."""
        node = Node(self.server.url, self.space)
        topic = node.topic(history=history)
        self.nodes.append(node.start(listening=True))
        return topic

    def stranger(self, name: str = "news", url: str = "") -> RedisTopic:
        """The topic in a process that publishes, and hears no news."""
        self.links.append(Link(url or self.server.url, self.space))
        return RedisTopic(self.links[-1], name, content_type="text/plain")

    def mute(self) -> RedisTopic:
        """A stranger whose news reach nobody."""
        topic = self.stranger()
        topic.channel = "nowhere"
        return topic

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        for link in self.links:
            link.close()


@pytest.fixture
def cluster(shared: RedisServer) -> Iterator[Cluster]:
    cluster = Cluster(shared)
    yield cluster
    cluster.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server for a test that harms it."""
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def fragile(server: RedisServer) -> Iterator[Cluster]:
    cluster = Cluster(server)
    yield cluster
    cluster.close()


def reach(topic: RedisTopic, number: int) -> None:
    wait_until(lambda: topic.number == number, what=f"message {number}")


def ids(topic: RedisTopic, position: int = 0) -> list[str]:
    found = []
    while (message := topic.following(position)[0]) is not None:
        found.append(message.id)
        position = message.position
    return found


def test_every_node_has_the_messages_of_all_in_one_order(cluster: Cluster) -> None:
    here, there = cluster.node(history=1000), cluster.node(history=1000)

    def publish(topic: RedisTopic) -> None:
        for number in range(100):
            topic.publish(f"{number}")

    threads = [threading.Thread(target=publish, args=(topic,)) for topic in (here, there, here)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for topic in (here, there):
        reach(topic, 300)
    assert ids(here) == ids(there) == [f"{here.epoch}-{number}" for number in range(1, 301)]
    assert entries(here) == entries(there)


def test_listeners_on_other_nodes_are_told(cluster: Cluster) -> None:
    here, there = cluster.node(), cluster.node()
    told = threading.Event()
    there.listen(lambda topic: told.set())
    here.publish("a")
    assert told.wait(PATIENCE)
    assert entries(there) == ["a"]


def test_a_notice_and_the_end_are_told_on_every_node(cluster: Cluster) -> None:
    here, there = cluster.node(), cluster.node()
    here.publish("a")
    here.notify("failing")
    here.end()
    wait_until(lambda: there.ended, what="the end")
    assert entries(there) == ["a", "(failing)"]
    with pytest.raises(RuntimeError, match="topic news has ended"):
        there.publish("b")


@pytest.mark.parametrize("event", ["price of x", "x k end"])
def test_an_event_s_name_may_have_spaces_on_every_node(cluster: Cluster, event: str) -> None:
    here, there = cluster.node(), cluster.node()
    here.publish("a", event=event)
    here.publish("b")
    for topic in (here, there):
        reach(topic, 2)
        assert not topic.ended
        first, second = topic._history
        assert (first.kind, first.event, first.body) == ("message", event, b"a")
        assert (second.kind, second.event, second.body) == ("message", "", b"b")


def test_a_node_that_comes_later_has_the_history_before_its_first_client(cluster: Cluster) -> None:
    here = cluster.node(history=3)
    given = [here.publish(text).id for text in "abcde"]
    there = cluster.node(history=3)
    assert entries(there, there.begin(EARLIEST).position) == ["c", "d", "e"]
    assert entries(there, there.begin().position) == ["e"]
    assert entries(there, there.begin(given[2]).position) == ["d", "e"]
    assert there.begin(given[2]).reset is False
    assert there.begin(given[0]).reset is True


def test_an_ended_topic_is_ended_for_a_node_that_comes_later(cluster: Cluster) -> None:
    here = cluster.node()
    here.publish("a")
    here.end()
    there = cluster.node()
    assert there.ended
    assert entries(there, there.begin(EARLIEST).position) == ["a"]


def test_an_id_that_this_node_has_not_heard_of_yet_is_resumed_behind(cluster: Cluster) -> None:
    here, deaf = cluster.node(), cluster.stranger()
    first = here.publish("a")
    assert deaf.begin(first.id).reset is False
    second = here.publish("b")
    begun = deaf.begin(second.id)
    assert (begun.reset, entries(deaf, begun.position)) == (False, [])


def test_messages_say_when_they_came_on_whichever_node(cluster: Cluster) -> None:
    here = cluster.node()
    first = here.publish("a")
    there = cluster.node()
    found, _ = there.following(there.begin().position)
    assert found is not None
    assert found.time == pytest.approx(first.time, abs=1)


def test_the_stream_is_bounded_as_the_history_is(cluster: Cluster) -> None:
    here = cluster.node(history=5)
    for number in range(20):
        here.publish(f"{number}")
    assert cluster.server.client.xlen(here.stream) == 5


def test_a_message_asked_for_again_with_its_nonce_is_published_once(cluster: Cluster) -> None:
    here = cluster.node()
    for _ in range(2):
        here.append(b"a", "message", nonce="one")
    assert entries(here) == ["a"]


def test_one_connection_reads_all_topics_of_a_process(fragile: Cluster) -> None:
    here, there = (Node(fragile.server.url, fragile.space) for _ in range(2))
    for node in (here, there):
        for number in range(20):
            node.topic(f"topic-{number}")
        fragile.nodes.append(node.start(listening=True))
    for topic in here.topics.values():
        topic.publish("a")
    for topic in there.topics.values():
        reach(topic, 1)
    names = [client["name"] for client in fragile.server.client.client_list()]
    assert names.count("pushdemo-reader") == 2, "one for each process"


def test_clients_of_two_topics_on_one_connection_resume_on_another_node(cluster: Cluster) -> None:
    from pushdemo.topics.merged import MergedTopic

    parts = []
    for _ in range(2):
        node = Node(cluster.server.url, cluster.space)
        parts.append([node.topic("one"), node.topic("two")])
        cluster.nodes.append(node.start())
    here, there = MergedTopic(parts[0]), MergedTopic(parts[1])
    parts[0][0].publish("a")
    parts[0][1].publish("b")
    here.join()
    last = here.id_at(here.head)
    begun = there.begin(last)
    there.join()
    assert (begun.reset, begun.backlog) == (False, ())
    parts[0][0].publish("c")
    assert there.wait(begun.position, PATIENCE)
    message, _ = there.following(begun.position)
    assert message is not None
    assert (message.body, message.topic) == (b"c", "one")
    for topic in (here, there):
        topic.leave()


# -- what goes wrong


@pytest.mark.heavy
def test_after_a_flush_every_client_is_told_of_a_reset_and_goes_on(
    fragile: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 0.5)
    here, there = fragile.node(), fragile.node()
    last = here.publish("before")
    reach(there, 1)
    epoch = here.epoch
    fragile.server.client.flushall()
    wait_until(lambda: epoch not in (here.epoch, there.epoch), what="the new epoch")
    assert here.publish("after").number == 1
    reach(there, 1)
    assert here.epoch == there.epoch
    assert entries(here, 1) == entries(there, 1) == ["(reset)", "after"]
    assert there.begin(last.id).reset is True


def test_a_message_right_after_a_flush_is_in_the_new_life(fragile: Cluster) -> None:
    here, there = fragile.node(), fragile.node()
    for text in "abc":
        last = here.publish(text)
    reach(there, 3)
    fragile.server.client.flushall()
    fresh = there.publish("after")
    assert fresh.number == 1
    assert fresh.id.partition("-")[0] != last.id.partition("-")[0]
    here.catch_up()
    assert entries(here, 3) == ["(reset)", "after"]


def test_a_redis_that_went_back_to_an_older_copy_gives_no_number_twice(fragile: Cluster) -> None:
    here = fragile.node()
    here.publish("a")
    client, keys = fragile.server.client, [here.key, here.stream]
    copy = [client.dump(key) for key in keys]
    old = here.publish("b")
    for key, value in zip(keys, copy, strict=True):
        assert value is not None
        client.restore(key, 0, value, replace=True)  # type: ignore[arg-type]
    new = here.publish("c")
    assert new.id != old.id
    assert new.id.partition("-")[0] != old.id.partition("-")[0]
    assert entries(here, old.position) == ["(reset)", "c"]


def test_an_older_copy_that_others_have_gone_on_from_is_noticed(fragile: Cluster) -> None:
    here = fragile.node()
    here.publish("a")
    client, keys = fragile.server.client, [here.key, here.stream]
    copy = [client.dump(key) for key in keys]
    epoch, last = here.epoch, here.publish("b")
    for key, value in zip(keys, copy, strict=True):
        assert value is not None
        client.restore(key, 0, value, replace=True)  # type: ignore[arg-type]
    other = fragile.stranger()
    for text in "xyz":  # it has never heard of b
        other.publish(text)
    wait_until(lambda: here.epoch != epoch, what="the new life")
    assert entries(here, last.position)[0] == "(reset)"


def test_what_has_left_the_stream_while_a_node_was_cut_off_is_a_reset(fragile: Cluster) -> None:
    here = fragile.node(history=5)
    link = Link(fragile.server.url, fragile.space)
    there = RedisTopic(link, "news", content_type="text/plain", history=5)
    here.publish("0")
    there.catch_up()
    for number in range(1, 21):
        here.publish(f"{number}")
    there.catch_up()
    assert entries(there, 1) == ["(gap)", "20"]
    assert entries(there, there.head - 5) == ["16", "17", "18", "19", "20"]
    link.close()


def test_who_comes_back_with_the_id_of_a_reset_gets_the_message_after_it(fragile: Cluster) -> None:
    here = fragile.node(history=5)
    there = fragile.stranger()
    here.publish("0")
    there.catch_up()
    before = there.head
    for number in range(1, 21):
        here.publish(f"{number}")
    there.catch_up()
    reset, _ = there.following(before)
    assert reset is not None
    begun = there.begin(reset.id)
    assert (reset.kind, begun.reset, entries(there, begun.position)) == ("reset", False, ["16", "17", "18", "19", "20"])


def test_a_notice_that_comes_right_before_a_message_of_ones_own_is_not_passed_over(cluster: Cluster) -> None:
    here, other = cluster.node(), cluster.stranger()
    here.publish("a")
    other.catch_up()
    here.notify("failing")
    before = other.head
    other.publish("b")
    assert entries(other, before) == ["(failing)", "b"]


@pytest.mark.heavy
def test_the_end_of_the_connection_that_hears_the_news_is_no_trouble(
    fragile: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    here, other = fragile.node(), fragile.stranger()
    for number in range(1, 4):
        wait_until(lambda: fragile.server.client.pubsub_numsub(here.channel)[0][1] == 1, what="the reader")
        fragile.server.client.client_kill_filter(_type="pubsub", skipme=True)
        last = other.publish("a")
        assert not here.begin(last.id).reset
        reach(here, number)
    assert not caplog.records


def test_a_user_without_channels_hears_the_news_by_looking(fragile: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    fragile.server.client.execute_command("ACL", "SETUSER", "old", "on", ">pw", "~*", "resetchannels", "+@all")
    node = Node(f"redis://old:pw@127.0.0.1:{fragile.server.port}/0", fragile.space)
    fragile.nodes.append(node)
    topic, other = node.topic(), fragile.stranger()
    node.start()
    topic.join()
    other.publish("a")
    reach(topic, 1)
    assert topic.publish("b").number == 2
    other.catch_up()
    assert other.number == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "channels" in line


def test_news_that_were_lost_are_made_up_for_by_the_next(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 3600)
    here, lost, other = cluster.node(), cluster.mute(), cluster.stranger()
    other.publish("a")
    reach(here, 1)
    lost.publish("b")
    lost.notify("failing")
    assert here.number == 1
    other.publish("c")
    reach(here, 3)
    lost.notify("failing")
    lost.notify("failing")
    other.notify("failing")
    wait_until(lambda: here.head == 7, what="the last notice")
    assert entries(here) == ["a", "b", "(failing)", "c", "(failing)", "(failing)", "(failing)"]


@pytest.mark.heavy
def test_news_that_were_lost_are_made_up_for_by_a_look(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 0.1)
    here = cluster.node()
    told = threading.Event()
    here.listen(lambda _: told.set())
    cluster.mute().publish("a")
    assert told.wait(PATIENCE)
    assert entries(here) == ["a"]


def test_a_new_life_is_news(fragile: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 3600)
    here, other = fragile.node(), fragile.stranger()
    other.publish("a")
    reach(here, 1)
    before = here.head
    fragile.server.client.flushall()
    other.publish("b")
    wait_until(lambda: here.epoch == other.epoch, what="the new life")
    assert entries(here, before) == ["(reset)", "b"]


@pytest.mark.heavy
def test_a_new_life_in_which_nothing_has_been_said_is_told(fragile: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 0.1)
    here, told = fragile.node(), threading.Event()
    last = here.publish("a")
    here.listen(lambda _: told.set())
    fragile.server.client.flushall()
    assert told.wait(PATIENCE)
    assert entries(here, last.position) == ["(reset)"]


def test_an_ended_topic_is_not_ended_in_its_next_life(fragile: Cluster) -> None:
    here = fragile.node()
    here.publish("a")
    here.end()
    assert here.ended
    before = here.head
    fragile.server.client.flushall()
    fragile.stranger().publish("b")
    wait_until(lambda: here.number == 1 and not here.ended, what="the new life")
    assert entries(here, before) == ["(reset)", "b"]
    assert here.publish("c").number == 2


def test_whoever_publishes_into_a_life_that_has_ended_tells_its_listeners_of_the_end(fragile: Cluster) -> None:
    mute, late, told = fragile.mute(), fragile.stranger(), threading.Event()
    late.publish("a")
    late.listen(lambda _: told.set())
    fragile.server.client.flushall()
    mute.end()
    with pytest.raises(RuntimeError, match="has ended"):
        late.publish("b")
    assert told.is_set()
    assert late.ended


def test_the_age_of_what_is_found_in_the_stream_counts(cluster: Cluster) -> None:
    """A message that was made an hour ago by a source that makes one a minute is not what a new client should see."""
    client, writer = cluster.server.client, cluster.stranger()
    seconds, _ = client.time()
    client.hset(writer.key, mapping={"epoch": "cafe", "number": 1, "notices": 0, "nonce": "x"})
    fields = {"n": "x", "p": "", "t": (seconds - 3600) * 1000, "b": "a"}
    client.xadd(writer.stream, fields, id="1-0")  # type: ignore[arg-type]
    here = cluster.node()
    found, _ = here.following(0)
    assert found is not None
    assert found.time == pytest.approx(here.clock() - 3600, abs=PATIENCE)


def test_while_the_reader_s_connection_ends_each_time_it_is_opened_again_with_a_rest_in_between(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reader, "_AGAIN", 0.1)
    opened: list[float] = []
    opens = Listener.open

    def counted(listener: Listener, channels: Any) -> None:
        opens(listener, channels)
        opened.append(time.monotonic())
        listener.close()

    monkeypatch.setattr(Listener, "open", counted)
    node = Node(cluster.server.url, cluster.space)
    cluster.nodes.append(node.start())
    wait_until(lambda: len(opened) >= 6, what="tries")
    assert opened[5] - opened[0] >= 4 * 0.09


def test_while_redis_is_gone_the_reader_tries_it_with_a_rest_in_between(
    fragile: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reader, "_AGAIN", 0.1)
    fragile.server.kill()
    tried: list[float] = []
    opens = Listener.open

    def counted(listener: Listener, channels: Any) -> None:
        if threading.current_thread() in threads("pushdemo-redis-reader"):
            tried.append(time.monotonic())
        opens(listener, channels)

    monkeypatch.setattr(Listener, "open", counted)
    fragile.node()
    wait_until(lambda: len(tried) >= 6, what="tries")
    assert tried[5] - tried[0] >= 5 * 0.09


@pytest.mark.heavy
def test_a_silent_reader_asks_redis_once_a_second_whether_it_is_there(fragile: Cluster) -> None:
    client = fragile.server.client
    fragile.node()
    before, began = commands_run(client), time.monotonic()
    wait_until(lambda: commands_run(client) > before, what="a ping")
    wait_until(lambda: commands_run(client) > before + 1, what="another ping")
    assert time.monotonic() - began > 0.9


def commands_run(client: Any) -> int:
    calls: int = client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]
    return calls


def test_what_is_not_for_this_application_is_passed_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_reader, "LOOK", 3600)
    here = cluster.node()
    cluster.stranger(url=cluster.server.url[:-1] + "1").publish("another database's")
    cluster.stranger("unknown").publish("another's")
    assert cluster.server.client.publish(here.channel, b"what is this?") == 1
    cluster.stranger().publish("a")
    reach(here, 1)
    assert entries(here) == ["a"]
    assert not caplog.records


def test_killing_every_connection_loses_nothing(fragile: Cluster) -> None:
    here, there = fragile.node(), fragile.node()
    for number in range(1, 21):
        fragile.server.kill_connections()
        published = None
        while published is None:
            try:
                published = here.publish(f"{number}")
            except RedisUnavailableError:
                continue
        assert published.number == number
    reach(there, 20)
    assert entries(there) == [f"{number}" for number in range(1, 21)]


@pytest.mark.heavy
def test_a_redis_that_sleeps_longer_than_any_timeout_loses_nothing_and_only_one_caller_waits_for_it(
    fragile: Cluster,
) -> None:
    """Else each request that needs it would hold a thread of the server for seconds, and pages would wait for those."""
    here, there = fragile.node(), fragile.node()
    link = here._link
    here.publish("a")
    reach(there, 1)

    def ask() -> None:
        with suppress(RedisUnavailableError):
            link.command("PING")

    threads = [threading.Thread(target=lambda: fragile.server.client.execute_command("DEBUG", "SLEEP", "3.3"))]
    threads[0].start()
    while not link.trouble:
        ask()
    threads.append(threading.Thread(target=ask))
    threads[1].start()
    wait_until(link._trying.locked, what="the one that tries")
    for _ in range(100):
        ask()
        assert here.begin("deadbeef-7").reset
    assert threads[1].is_alive(), "it still waits for its first answer"
    for thread in threads:
        thread.join(PATIENCE)
    wait_until(lambda: not there_is_trouble(fragile), what="Redis")
    here.publish("b")
    reach(there, 2)
    assert entries(there) == ["a", "b"]


def test_a_message_that_redis_has_taken_is_no_error_where_those_before_it_cannot_be_read(fragile: Cluster) -> None:
    here = fragile.node()
    deaf = fragile.stranger()
    deaf.catch_up()
    here.publish("a")
    fragile.server.client.execute_command("ACL", "SETUSER", "default", "-xrange")
    assert deaf.publish("b").id == f"{deaf.epoch}-2"
    fragile.server.client.execute_command("ACL", "SETUSER", "default", "+xrange")
    deaf.catch_up()
    assert entries(deaf) == ["a", "b"]


def there_is_trouble(cluster: Cluster) -> bool:
    return any(node.backend.trouble for node in cluster.nodes)


@pytest.mark.heavy
@pytest.mark.parametrize("durable", [pytest.param(True, marks=pytest.mark.heavy), False])
def test_a_redis_killed_and_restarted(tmp_path: Path, durable: bool, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(tmp_path, durable=durable) as server:
        cluster = Cluster(server)
        here, there = cluster.node(), cluster.node()
        here.publish("a")
        reach(there, 1)
        server.kill()
        wait_until(lambda: all(node.backend.trouble for node in cluster.nodes), what="the trouble")
        with pytest.raises(RedisUnavailableError, match="is not reachable"):
            here.publish("lost")
        assert entries(there, there.begin().position) == ["a"], "clients keep what they have"
        server.start()
        wait_until(lambda: not there_is_trouble(cluster), what="the end of the trouble")
        here.publish("b")
        wait_until(lambda: entries(there)[-1:] == ["b"], what="the message")
        assert entries(there, 1) == (["b"] if durable else ["(reset)", "b"])
        cluster.close()
    lines = [record.getMessage() for record in caplog.records if "not reachable" in record.getMessage()]
    assert len(lines) <= 2 * len(cluster.nodes), "once a node when Redis goes, and once at most at the end of the test"


def test_an_application_starts_without_redis_and_is_filled_when_it_comes(tmp_path: Path) -> None:
    with redis_server(tmp_path, durable=True) as server:
        cluster = Cluster(server)
        first = cluster.node()
        for text in "abc":
            first.publish(text)
        server.kill()
        late = cluster.node()
        assert cluster.nodes[-1].backend.trouble
        waiting = late.begin().position
        server.start()
        reach(late, 3)
        assert entries(late, waiting) == ["(gap)", "c"], "as any client that comes to a running topic"
        assert entries(late, late.begin(EARLIEST).position) == ["a", "b", "c"]
        cluster.close()


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server that has everything when it is started again."""
    with redis_server(tmp_path, durable=True) as server:
        yield server


@pytest.mark.heavy
def test_clients_of_a_node_that_is_cut_off_are_told_once_and_so_is_the_end_of_it(lasting: RedisServer) -> None:
    server = lasting
    node = Node(server.url, namespace(), stale=0.3)
    topic, unheard = node.topic(), node.topic("unheard")
    node.start()
    topic.join()
    topic.publish("a")
    server.kill()
    wait_until(lambda: entries(topic) == ["a", "(failing)"], what="the notice")
    begun = topic.begin()
    assert entries(topic, begun.position) == ["a", "(failing)"], "who comes now is told too"
    server.start()
    wait_until(lambda: "(working)" in entries(topic), what="the end of it")
    topic.publish("b")
    assert entries(topic)[:3] == ["a", "(failing)", "(working)"]
    assert entries(topic)[-1] == "b"
    assert entries(unheard) == []


@pytest.mark.heavy
def test_a_short_absence_is_not_worth_telling(lasting: RedisServer) -> None:
    server = lasting
    node = Node(server.url, namespace(), stale=3600.0)
    topic = node.topic()
    node.start(listening=True)
    server.kill()
    wait_until(lambda: node.backend.trouble, what="the trouble")
    server.start()
    wait_until(lambda: not node.backend.trouble and topic.current, what="the end of the trouble")
    assert "(working)" not in entries(topic)
    assert "(failing)" not in entries(topic)


def test_trouble_is_logged_once_and_so_is_its_end(fragile: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pushdemo"):
        here = fragile.node()
        fragile.server.kill()
        for _ in range(5):
            with pytest.raises(RedisUnavailableError):
                here.publish("a")
        fragile.server.start()
        wait_until(lambda: len(caplog.records) > 1, what="the line that it is back")
        assert not there_is_trouble(fragile)
    said = [record.getMessage().partition(" (")[0] for record in caplog.records]
    address = f"127.0.0.1:{fragile.server.port}"
    assert said == [f"Redis at {address} is not reachable", f"Redis at {address} is back"]


def test_an_answer_from_before_redis_went_is_not_taken_for_its_return(server: RedisServer) -> None:
    link = Link(server.url)

    def answered_when_it_has_gone() -> Any:
        answer = link.command("PING")
        server.kill()
        with pytest.raises(RedisUnavailableError):
            link.command("PING")
        return answer

    assert link.attempt(answered_when_it_has_gone)
    assert link.trouble
    link.close()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("harm", "repair", "error"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OutOfMemoryError"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "ReadOnlyError"),
    ],
    ids=["full", "read-only"],
)
def test_a_full_or_read_only_redis_is_a_clear_error_and_one_line_in_the_log(
    fragile: Cluster, caplog: pytest.LogCaptureFixture, harm: tuple[str, ...], repair: tuple[str, ...], error: str
) -> None:
    here, there = fragile.node(), fragile.node()
    here.publish("a")
    reach(there, 1)
    fragile.server.client.execute_command(*harm)
    for _ in range(20):
        with pytest.raises(RedisUnavailableError, match=f"refuses: {error}"):
            here.publish("b")
    assert entries(here) == ["a"]
    assert there_is_trouble(fragile) == (error == "ReadOnlyError"), "a full one must not end all nodes' readiness"
    assert any(node.backend.warning for node in fragile.nodes) == (error == "OutOfMemoryError")
    refusals = [record for record in caplog.records if "refuses" in record.getMessage()]
    assert len(refusals) == 1, [record.getMessage() for record in refusals]
    fragile.server.client.execute_command(*repair)
    here.publish("c")
    reach(there, 2)
    assert entries(there) == ["a", "c"]


def test_a_topic_that_a_full_redis_has_no_room_for_does_not_keep_the_others_from_being_read(fragile: Cluster) -> None:
    fragile.node().publish("a")
    fragile.server.client.config_set("maxmemory", "1")
    node = Node(fragile.server.url, fragile.space)
    fragile.nodes.append(node)
    node.topic("another")
    known = node.topic()
    node.start(listening=True)
    assert entries(known, known.begin().position) == ["a"]
    fragile.server.client.config_set("maxmemory", "0")
    fragile.stranger().publish("b")
    reach(known, 2)


@pytest.mark.parametrize(
    "url",
    ["redis://h:port/0", "redis://localhost/0?socket_timeout=soon", "redis://localhost/0?nonsense=1"],
)
def test_a_url_that_will_not_do_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="not a URL that the redis package can use"):
        Link(url)


def test_a_password_is_never_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(tmp_path) as server:
        node = Node(f"redis://user:swordfish@127.0.0.1:{server.port}/0", namespace())
        node.topic()
        with caplog.at_level(logging.DEBUG):
            node.start()
            assert node.backend.trouble
            node.close()
    assert "swordfish" not in caplog.text + repr(node.backend) + node.backend.trouble


@pytest.mark.heavy
def test_a_short_socket_timeout_in_the_url_does_not_end_the_reader(shared: RedisServer) -> None:
    node = Node(f"{shared.url}?socket_timeout=0.2", namespace())
    topic = node.topic()
    node.start(listening=True)
    pings = shared.client.info("commandstats")["cmdstat_ping"]["calls"]  # redis-server was waited for with one
    wait_until(lambda: shared.client.info("commandstats")["cmdstat_ping"]["calls"] > pings + 1, what="two silences")
    with closing(Link(shared.url, node.backend.namespace)) as link:
        RedisTopic(link, "news", content_type="text/plain").publish("a")
    reach(topic, 1)
    assert not node.backend.trouble


def test_a_user_who_may_do_no_more_than_the_docs_say_will_do(server: RedisServer) -> None:
    line = re.search(r"^ *user pushdemo (.*)$", Path("docs/deploy.md").read_text(), re.MULTILINE)
    assert line
    server.client.execute_command("ACL", "SETUSER", "pushdemo", *line[1].split())
    node = Node(f"redis://pushdemo:password@127.0.0.1:{server.port}/0", "pushdemo")
    topic = node.topic()
    node.start(listening=True)
    with closing(Link(server.url, "pushdemo")) as link:
        RedisTopic(link, "news", content_type="text/plain").publish("a")
    reach(topic, 1)
    topic.publish("b")
    caches = Caches(store=node.backend.store)
    with caches.active():
        assert minute() == minute()
        minute.clear()
    topic.leave()
    topic.producer = node.backend.producer(topic, lambda: "c", 0.05, around=nullcontext)
    topic.join()
    wait_until(lambda: topic.number > 3, what="messages of the source")
    topic.leave()
    node.close()
    assert not server.client.acl_log()


@memorize(60)
def minute() -> str:
    return time.strftime("%H:%M")


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(tmp_path, "--unixsocket", str(path)) as server:
        here, there = Node(f"unix://{path}", "x"), Node(server.url, "x")
        for node in (here, there):
            node.topic()
            node.start(listening=True)
        here.topics["news"].publish("a")
        reach(there.topics["news"], 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda topic: topic.publish("b"), {"content": "b"}), (lambda topic: topic.end(), {"state": "done"})],
    ids=["message", "end"],
)
def test_a_stream_iterated_in_a_thread_gets_what_another_node_publishes(
    cluster: Cluster, change: Callable[[RedisTopic], Any], expected: dict[str, str]
) -> None:
    here, there = cluster.node(), cluster.node()
    here.publish("a")
    reach(there, 1)
    stream = iter(Subscription(there, jsonlines, Pace()))
    assert b'"a"' in next(stream)
    change(here)
    following = json.loads(next(stream))
    following.pop("id", None)
    assert following == expected
