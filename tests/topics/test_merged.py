"""Several topics on one connection: names, one id that covers all, and every message of each once."""

from __future__ import annotations

import gc
import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.catalog import Catalog
from pushdemo.topics.content import BOUNDARY
from pushdemo.topics.merged import MergedTopic
from pushdemo.topics.message import Message
from pushdemo.topics.topic import EARLIEST, Topic
from pushdemo.transports import jsonlines
from tests.readers import END, FAILING, STREAMS, TRANSPORTS, Event, Pushing, pushing, told
from tests.support import PATIENCE, wait_until

LONG = 1000.0  # seconds, where a test must see nothing of what comes when they are over
HISTORY = 20
OWN = ("multipart", "sse&ids=topic", "jsonlines", "longpoll")  # each message has its topic's own id


@pytest.fixture(params=[*TRANSPORTS, "sse&ids=topic"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site() -> Iterator[Pushing]:
    """Three topics at one address, without sources."""
    with pushing({"heartbeat": LONG, "longpoll.timeout": LONG, "history": HISTORY}, a={}, b={}, c={}) as running:
        yield running


def publish(site: Pushing, *words: str) -> None:
    """`a1` is published to the topic a, and so on."""
    for word in words:
        site.topics[word[0]].publish(word)


def words(events: list[Event]) -> list[str]:
    """The contents of events that are messages under their topics' names, with ids that cover these topics."""
    for event in events:
        assert event.kind == "message"
        assert event.topic == event.content[0]
        assert f"{event.topic}:" in event.id
    return [event.content for event in events]


def names_in(id: str) -> list[str]:
    return [part.partition(":")[0] for part in id.split(",")]


# -- names and ids


def test_messages_bear_their_topics_name_in_the_order_in_which_they_came(site: Pushing, transport: str) -> None:
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        publish(site, "a1", "b1")
        assert words(reader.take(2)) == ["a1", "b1"]
        publish(site, "b2", "a2", "c1", "a3")
        events = reader.take(4)
        assert words(events) == ["b2", "a2", "c1", "a3"]
        assert all(names_in(event.id) == ["a", "b", "c"] for event in events)


def test_the_name_is_where_each_transport_has_it(site: Pushing) -> None:
    publish(site, "a1")
    raw = {}
    for name in TRANSPORTS:
        with site.reader(name, "/push") as reader:
            assert words(reader.take(1)) == ["a1"]
            raw[name] = reader.raw
    assert b"\r\nX-Topic: a\r\n" in raw["multipart"]
    assert b"\ntopic: a\n" in raw["sse"]
    assert b'"topic": "a"}\n' in raw["jsonlines"]
    assert b'"topic": "a"}]' in raw["longpoll"]


@pytest.mark.parametrize("path", ["/push?events=topic", "/push?events=topic&ids=topic", "/push/a?events=topic"])
def test_the_name_is_the_events_where_the_client_wants_that(site: Pushing, path: str) -> None:
    publish(site, "a1")
    with site.reader("sse", path) as reader:
        assert words(reader.take(1)) == ["a1"]
        assert b"\nevent: a\n" in reader.raw
        assert b"\ntopic: " not in reader.raw


def test_own_ids_are_the_topics_own(site: Pushing) -> None:
    publish(site, "a1", "b1", "a2")
    a, b, c = (site.topics[name].epoch for name in "abc")
    begin = f"a:{a}-0,b:{b}-0,c:{c}-0"
    raw = {}
    for name in OWN:
        with site.reader(name, "/push", last=EARLIEST) as reader:
            assert words(reader.take(3)) == ["a1", "b1", "a2"]
            assert reader.last == f"a:{a}-2,b:{b}-1,c:{c}-0"
            raw[name] = reader.raw.decode()
    assert f"--\r\nX-Last-Event-Id: {begin}\r\nContent-Type" in raw["multipart"].replace(BOUNDARY, "")
    assert f"X-Message-Id: {b}-1\r\nX-Topic: b\r\n" in raw["multipart"]
    assert f'{{"state": "begin", "last_event_id": "{begin}"}}\n' in raw["jsonlines"]
    assert f'{{"id": "{b}-1", "content": "b1", "topic": "b"}}\n' in raw["jsonlines"]
    assert f'id: {begin}\nevent: begin\ndata: {{"last_event_id": "{begin}"}}\n\n' in raw["sse&ids=topic"]
    assert f"id: {b}-1\ntopic: b\ndata: b1\n\n" in raw["sse&ids=topic"]
    assert f'{{"id": "{b}-1", "content": "b1", "topic": "b"}}' in raw["longpoll"]
    assert f'"last_event_id": "a:{a}-2,b:{b}-1,c:{c}-0"' in raw["longpoll"]


@pytest.mark.parametrize("query", ["ids=all", "events=", "ids=topic&events=name"])
def test_what_the_two_parameters_may_be_is_said(site: Pushing, query: str) -> None:
    with site.client(f"/push?{query}") as client:
        status, _, body = client.response()
    assert status == 400
    assert b": must be topic" in body


def test_the_ids_of_several_topics_resume_one_of_them(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1", "c1")
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        last = reader.take(3)[-1].id
    publish(site, "b2", "a2")
    with site.reader(transport, "/push?topic=b", last=last) as reader:
        assert reader.contents(1) == ["b2"]


def test_the_client_chooses_some_of_the_topics(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1", "c1")
    with site.reader(transport, "/push?topic=c&topic=a&topic=c") as reader:
        events = reader.take(2)
        assert words(events) == ["a1", "c1"]
        assert names_in(events[-1].id) == ["a", "c"]


def test_a_connection_with_one_topic_is_as_any_of_that_topic(site: Pushing, transport: str) -> None:
    publish(site, "a1")
    id = f"{site.topics['a'].epoch}-1"
    for path in ("/push?topic=a", "/push/a"):
        with site.reader(transport, path) as reader:
            assert reader.take(1) == [Event("message", id, "a1")]


def test_a_topic_that_the_view_does_not_offer_is_400(site: Pushing) -> None:
    for path in ("/push?topic=a&topic=weather", "/push/a?topic=b"):
        with site.client(path) as client:
            status, _, body = client.response()
        assert status == 400
        assert b"must be one of" in body


def test_a_picture_among_them_leaves_multipart_alone() -> None:
    with pushing(text={}, picture={"content_type": "image/png"}) as site:
        site.topics["picture"].publish(b"PNG")
        for name in ("sse", "jsonlines", "longpoll"):
            with site.client(f"/push?transport={name}") as client:
                assert client.response()[0] == 406
        with site.reader("multipart", "/push") as reader:
            (event,) = reader.take(1)
            assert (event.topic, event.content) == ("picture", "PNG")


def test_clients_of_the_same_merged_topic_share_the_bytes() -> None:
    topics = Catalog()
    for name in "ab":
        topics.add(Topic(name, content_type="text/plain"))
    one, other = (
        Subscription(topics.merged([topics[name] for name in names]), jsonlines, Pace()).cursors[0]
        for names in (["a", "b"], ["b", "a"])
    )
    assert one.topic is other.topic
    one.topic.join()
    topics["a"].publish("a1")
    message, _ = one.take()
    assert message
    assert other.take() == (message, False)
    one.topic.leave()


# -- where a client begins


def test_a_new_client_gets_the_newest_of_each(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1", "a2", "c1", "b2", "b3")
    with site.reader(transport, "/push") as reader:
        assert words(reader.take(3)) == ["a2", "c1", "b3"]
        publish(site, "a3")
        assert words(reader.take(1)) == ["a3"]


def test_earliest_brings_all_histories_as_they_came(site: Pushing, transport: str) -> None:
    came = [f"{random.Random(number).choice('abc')}{number}" for number in range(HISTORY)]
    publish(site, *came)
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        assert words(reader.take(HISTORY)) == came


def test_any_id_resumes_all_topics(site: Pushing, transport: str) -> None:
    came = [f"{random.Random(number).choice('abc')}{number}" for number in range(HISTORY)]
    publish(site, *came)
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        events = reader.take(HISTORY)
    publish(site, "b98", "a99")
    for number, event in enumerate(events):
        if transport == "longpoll" and event is not events[-1]:
            continue  # an answer is taken as a whole
        with site.reader(transport, "/push", last=event.id) as reader:
            assert words(reader.take(HISTORY + 1 - number)) == [*came[number + 1 :], "b98", "a99"]


def test_an_id_from_a_live_stream_resumes_as_well(site: Pushing, transport: str) -> None:
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        publish(site, "a1", "b1", "a2")
        first, _, last = reader.take(3)
    publish(site, "c1")
    if transport != "longpoll":  # an answer is taken as a whole
        with site.reader(transport, "/push", last=first.id) as reader:
            assert words(reader.take(3)) == ["b1", "a2", "c1"]
    with site.reader(transport, "/push", last=last.id) as reader:
        assert words(reader.take(1)) == ["c1"]


def test_one_topic_that_cannot_be_resumed_is_a_reset_and_the_others_go_on(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1")
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        last = reader.take(2)[-1].id
    publish(site, "b2", *[f"a{number}" for number in range(2, HISTORY + 3)], "b3")
    with site.reader(transport, "/push", last=last) as reader:
        reset, *events = reader.take(4)
        assert reset.kind == "reset"
        assert words(events) == ["b2", f"a{HISTORY + 2}", "b3"]
        publish(site, "a0")
        assert words(reader.take(1)) == ["a0"]


def test_an_id_that_lacks_a_topic_is_a_reset_with_its_newest(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1", "c1")
    with site.reader(transport, "/push?topic=a&topic=b", last=EARLIEST) as reader:
        last = reader.take(2)[0].id
    with site.reader(transport, "/push", last=last) as reader:
        reset, *events = reader.take(3)
        assert reset.kind == "reset"
        assert words(events) == ["b1", "c1"]


@pytest.mark.parametrize("last", ["lost", "a:b,b:c,c:", ",", ":", "a:x-1,a:y-1,b:earliest", "x" * 5000])
def test_any_other_id_is_a_reset(site: Pushing, transport: str, last: str) -> None:
    publish(site, "a1", "b1", "c1")
    with site.reader(transport, "/push", last=last) as reader:
        reset, *events = reader.take(4)
        assert reset.kind == "reset"
        assert words(events) == ["a1", "b1", "c1"]


@pytest.mark.parametrize("transport", [*STREAMS, "sse&ids=topic"], indirect=True)
def test_who_was_reset_before_any_message_goes_on_exactly(site: Pushing, transport: str) -> None:
    with site.reader(transport, "/push", last="lost") as reader:
        (reset,) = reader.take(1)
        assert reset.kind == "reset"
        reader.leave()
        publish(site, "a1", "b1", "a2")
        assert words(reader.take(3)) == ["a1", "b1", "a2"]


def test_who_is_cut_off_between_a_reset_and_the_backlog_is_reset_again(site: Pushing) -> None:
    """An id there would be that of a message which the client has yet to get."""
    publish(site, "a1", "b1")
    with site.reader("sse", "/push", last="lost") as reader:
        reset, *events = reader.take(3)
        assert (reset.kind, reset.id) == ("reset", "")
        assert words(events) == ["a1", "b1"]


# -- the ends of parts


def test_the_stream_ends_when_the_last_topic_has_ended(site: Pushing, transport: str) -> None:
    with site.reader(transport, "/push", last=EARLIEST) as reader:
        publish(site, "a1")
        assert words(reader.take(1)) == ["a1"]
        site.topics["a"].end()
        publish(site, "b1")
        assert words(reader.take(1)) == ["b1"]
        site.topics["b"].end()
        publish(site, "c1")
        site.topics["c"].end()
        *events, end = reader.rest()
        assert words(events) == ["c1"]
        assert end == END


def test_who_comes_to_ended_topics_gets_what_there_is_and_the_end(site: Pushing, transport: str) -> None:
    publish(site, "a1", "b1", "a2")
    for topic in site.topics.values():
        topic.end()
    for _ in range(2):
        with site.reader(transport, "/push") as reader:
            *events, end = reader.rest()
            assert words(events) == ["b1", "a2"]
            assert end == END
    wait_until(lambda: not any(topic.clients for topic in site.topics.values()))


def test_an_event_source_that_has_everything_is_told_not_to_come_back(site: Pushing) -> None:
    publish(site, "a1", "b1", "a2")
    with site.reader("sse", "/push", last=EARLIEST) as reader:
        first, _, last = reader.take(3)
    for topic in site.topics.values():
        topic.end()
    for id, status in ((first.id, 200), (last.id, 204)):
        with site.client("/push?transport=sse", f"Last-Event-ID: {id}") as client:
            assert client.head()[0] == status


def test_ended_topics_without_a_message_are_204_at_once(site: Pushing) -> None:
    for topic in site.topics.values():
        topic.end()
    with site.client("/push?transport=sse") as client:
        assert client.head()[0] == 204


def test_a_source_that_fails_is_told_beside_the_others(site: Pushing, transport: str) -> None:
    publish(site, "a1")
    site.topics["b"].notify("failing")
    with site.reader(transport, "/push") as reader:
        assert sorted(event.kind for event in reader.take(2)) == ["failing", "message"]
        if transport == "longpoll":
            reader.start()
            wait_until(lambda: site.topics["c"].clients)
        site.topics["c"].notify("failing")
        assert reader.take(1) == [FAILING]
        publish(site, "c1")
        assert words(reader.take(1)) == ["c1"]


@pytest.mark.parametrize(("name", "clients"), [("sse", 1), ("jsonlines", 3)])
def test_the_parts_have_a_client_while_the_connection_has_one(site: Pushing, name: str, clients: int) -> None:
    topics = site.topics.values()
    readers = [site.reader(name, "/push").join() for _ in range(3)]
    assert [topic.clients for topic in topics] == [clients] * 3
    for reader in readers:
        reader.leave()
    wait_until(lambda: [topic.clients for topic in topics] == [0, 0, 0])
    wait_until(lambda: [topic._listeners for topic in topics] == [(), (), ()])


def test_a_stream_in_a_thread_ends_when_the_application_stops() -> None:
    a, b = Topic("a", content_type="text/plain"), Topic("b", content_type="text/plain")
    stream = iter(Subscription(MergedTopic([a, b]), jsonlines, Pace(heartbeat=LONG)))
    next(stream)
    a.publish("a1")
    assert [event.content for event in events_of(next(stream))] == ["a1"]
    b.close()
    (last,) = stream
    assert json.loads(last)["state"] == "waiting"
    assert (a.clients, b.clients) == (0, 0)


def test_a_merged_topic_lives_while_it_has_clients() -> None:
    topics = Catalog()
    for name in "ab":
        topics.add(Topic(name))
    gc.disable()
    try:
        client = Subscription(topics.merged([topics["a"], topics["b"]]), jsonlines, Pace())
        client.open()
        assert len(topics._merged) == 1
        client.close()
        del client
        assert len(topics._merged) == 0
    finally:
        gc.enable()


# -- races


class Interrupted(Topic):
    """A topic in which something happens right behind a look that has found nothing."""

    behind: Callable[[], Any] | None = None

    def following(self, position: int) -> tuple[Message | None, bool]:
        found = super().following(position)
        if found[0] is None and self.behind:
            happen, self.behind = self.behind, None
            happen()
        return found


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Calls a function in another thread, which may have to wait for this one before it comes to its end."""
    threads: list[threading.Thread] = []

    def call(function: Callable[[], Any]) -> None:
        threads.append(threading.Thread(target=function))
        threads[-1].start()

    yield call
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


Elsewhere = Callable[[Callable[[], Any]], None]


def test_what_is_said_right_before_the_end_is_not_lost(elsewhere: Elsewhere) -> None:
    a, b = Interrupted("a", content_type="text/plain"), Topic("b")
    stream = iter(Subscription(MergedTopic([a, b]), jsonlines, Pace()))
    next(stream)

    def last_word_and_end() -> None:
        elsewhere(lambda: a.publish("last word"))
        wait_until(lambda: a.number)
        elsewhere(a.end)
        wait_until(lambda: a.ended)

    a.behind = last_word_and_end
    b.end()  # the merged topic looks what both have to say
    assert [event.content for event in events_of(b"".join(stream))] == ["last word", END.content]


def events_of(body: bytes) -> list[Event]:
    return told("jsonlines", b"HTTP/1.1 200 OK\r\n\r\n" + body)


def test_a_history_that_is_overrun_while_a_client_comes_back_is_a_reset(elsewhere: Elsewhere) -> None:
    a, b = Interrupted("a", content_type="text/plain", history=1), Topic("b")
    merged = MergedTopic([a, b])
    merged.join()
    a.publish("a1")
    last = merged.id_at(merged.head)
    a.publish("a2")

    def overrun() -> None:
        elsewhere(lambda: a.publish("a3"))
        wait_until(lambda: a.number == 3)

    a.behind = overrun  # when the merged topic has all that a has, and the client's a2 is yet to be looked up
    client = Subscription(merged, jsonlines, Pace(), last)
    _, *events = events_of(client.open())
    wait_until(lambda: merged.number == 3)
    while data := client.next():
        events += events_of(data)
    assert [event.content or event.kind for event in events] == ["reset", "a3"]
    client.close()
    merged.leave()


def test_a_part_that_overruns_its_history_is_a_reset_in_front_of_what_is_left(elsewhere: Elsewhere) -> None:
    a, b = Interrupted("a", content_type="text/plain", history=2), Topic("b", content_type="text/plain")
    merged = MergedTopic([a, b])
    merged.join()
    a.publish("a1")

    def overrun() -> None:
        for number in (2, 3, 4):
            elsewhere(partial(a.publish, f"a{number}"))
            wait_until(partial(lambda number: a.number == number, number))

    a.behind = overrun
    b.publish("b1")
    wait_until(lambda: merged.head == 4)
    entries = []
    for position in range(4):
        entry, _ = merged.following(position)
        assert entry
        entries.append(entry)
    assert [entry.body.decode() if entry.kind == "message" else entry.kind for entry in entries] == [
        "a1",
        "b1",
        "reset",
        "a4",
    ]
    client = Subscription(
        merged, jsonlines, Pace(), entries[2].id
    )  # who was cut off behind the reset has yet to get a4
    assert [event.content or event.kind for event in events_of(client.open())] == ["heartbeat", "reset", "a4"]
    client.close()
    merged.leave()


def longpoll_events(body: bytes) -> list[Event]:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    return told("longpoll", head.encode() + body)


def test_a_message_between_the_beginning_and_the_joining_of_the_first_client_is_not_lost() -> None:
    a, b = Topic("a", content_type="text/plain"), Topic("b", content_type="text/plain")
    poll = LongPoll([a, b], Pace())
    assert poll.open() is None
    a.publish("a1")
    poll.join()
    answer = poll.answer()
    assert answer
    assert [event.content for event in longpoll_events(answer)] == ["a1"]
    poll.close()


def test_the_id_of_a_poll_that_has_got_nothing_is_not_that_of_what_comes_meanwhile() -> None:
    a, b = Topic("a", content_type="text/plain"), Topic("b", content_type="text/plain")
    poll = LongPoll([a, b], Pace())
    assert poll.open() is None
    poll.join()
    a.publish("a1")
    assert f'"last_event_id": "a:{a.epoch}-0,b:{b.epoch}-0"' in poll.waiting().decode()
    poll.close()


# -- every message of each topic once, whatever happens


def with_own(last: str, event: Event) -> str:
    """The id to come back with: an event's own, if it covers all topics, or that in its place among the others."""
    if ":" in event.id:
        return event.id
    ids = dict(part.split(":") for part in last.split(",") if ":" in part)
    return ",".join(f"{name}:{id}" for name, id in (ids | {event.topic: event.id}).items())


class Follower:
    """A client that is cut off again and again; keeps what it has got."""

    def __init__(self, topics: Catalog, names: str, chance: random.Random) -> None:
        self.topics = topics
        self.names = names
        self.chance = chance
        self.last = EARLIEST
        self.got: list[str] = []
        self.connections = 0

    def connect(self, until: Callable[[], bool]) -> None:
        """One connection, by a stream or a long poll, which takes a few entries at most."""
        self.connections += 1
        parts = [self.topics[name] for name in self.names]
        if self.chance.random() < 0.3:
            poll = LongPoll(parts, Pace(longpoll_timeout=0.01), self.last)
            body = poll.open() or poll.wait()
            self.take(longpoll_events(body))
            self.last = json.loads(body)["last_event_id"]
            poll.close()
            return
        topics: Any = parts if self.chance.random() < 0.5 else self.topics.merged(parts)
        stream = iter(Subscription(topics, jsonlines, Pace(heartbeat=0.01), self.last, names="topic"))
        for _ in range(self.chance.randrange(1, 8)):
            self.take(events_of(next(stream)))
            if until():
                break
        stream.close()  # type: ignore[attr-defined]

    def take(self, events: list[Event]) -> None:
        for event in events:
            if event.kind == "message":
                self.got.append(event.content)
                self.last = with_own(self.last, event)
            elif event.kind == "begin":
                self.last = event.id
            else:
                assert event.kind == "heartbeat"


def test_every_client_gets_every_number_of_every_topic_once_while_threads_publish() -> None:
    """Eight clients of different sets of topics, cut off hundreds of times, and six threads that publish."""
    count, topics = 500, Catalog()
    for name in "abc":
        topics.add(Topic(name, content_type="text/plain", history=2 * count))

    def publish(name: str, writer: int) -> None:
        chance = random.Random(f"{name}{writer}")
        for number in range(count):
            topics[name].publish(f"{name}{writer}.{number}")
            if chance.random() < 0.5:
                threading.Event().wait(chance.random() / 200)

    def follow(follower: Follower) -> None:
        whole = 2 * count * len(follower.names)
        while len(follower.got) < whole:
            follower.connect(lambda: len(follower.got) == whole)

    sets = ["ab", "bc", "abc", "abc", "ac", "ab", "abc", "abc"]
    followers = [Follower(topics, names, random.Random(number)) for number, names in enumerate(sets)]
    threads = [threading.Thread(target=publish, args=(name, writer)) for name in "abc" for writer in range(2)]
    threads += [threading.Thread(target=follow, args=(follower,)) for follower in followers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive()
    for follower in followers:
        assert len(follower.got) == len(set(follower.got)) == 2 * count * len(follower.names)
        for name in follower.names:
            for writer in range(2):
                own = [word for word in follower.got if word.startswith(f"{name}{writer}.")]
                assert own == [f"{name}{writer}.{number}" for number in range(count)]
    assert sum(follower.connections for follower in followers) > 500
    assert [topic.clients for topic in topics.values()] == [0, 0, 0]


# What may happen: a message in a topic, a failing source, a cut connection; what is read in between is at most `n`.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from("abc")),
        st.tuples(st.just("fail"), st.sampled_from("abc")),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("cut"), st.just(0)),
    ),
    max_size=60,
)


class Reading:
    """A client of three topics that checks what it is told: every number in turn, or a reset before a gap."""

    def __init__(self, topics: Catalog, *, merged: bool) -> None:
        self.topics = topics
        self.merged = merged
        self.last = EARLIEST
        self.client: Subscription | None = None
        self.got: dict[str, int] = {}  # the number of the last message of each topic, once it is known where one begins
        self.missing: set[str] = set()  # topics in which a gap is no surprise: a reset has been told

    def read(self, entries: int) -> None:
        """Connect, if need be, and take up to so many entries beside those that come with the connection."""
        if self.client is None:
            if self.last == EARLIEST:
                self.got.clear()
            listened: Any = (
                self.topics.merged([self.topics[name] for name in "abc"]) if self.merged else list(self.topics.values())
            )
            self.client = Subscription(listened, jsonlines, Pace(), self.last, names="topic")
            self.take(self.client.open())
            # What there was has come, or is not in the history any more: from here on nothing may be left out.
            self.got = {name: topic.number for name, topic in self.topics.items()} | self.got
        for _ in range(entries):
            self.take(self.client.next() or b"")

    def take(self, data: bytes) -> None:
        for event in events_of(data):
            if event.kind == "reset":
                self.missing = set("abc")
            elif event.kind == "message":
                before, number = self.got.get(event.topic), int(event.content[1:])
                assert before is None or number == before + 1 or (number > before and event.topic in self.missing)
                self.got[event.topic] = number
                self.missing.discard(event.topic)
            if event.id:
                self.last = with_own(self.last, event)

    def cut(self) -> None:
        if self.client:
            self.client.close()
            self.client = None


@settings(deadline=None)
@given(STEPS, st.integers(1, 6), st.booleans())
def test_in_any_order_of_things_a_message_comes_once_or_there_is_a_reset(
    steps: list[tuple[str, Any]], history: int, merged: bool
) -> None:
    topics = Catalog()
    for name in "abc":
        topics.add(Topic(name, content_type="text/plain", history=history))
    reading = Reading(topics, merged=merged)
    for what, argument in [*steps, ("cut", 0), ("read", 100)]:
        if what == "publish":
            topics[argument].publish(f"{argument}{topics[argument].number + 1}")
        elif what == "fail":
            topics[argument].notify("failing")
        elif what == "cut":
            reading.cut()
        else:
            reading.read(argument)
    for name, topic in topics.items():
        assert reading.got[name] == topic.number or name in reading.missing
    reading.cut()
    assert [topic.clients for topic in topics.values()] == [0, 0, 0]
