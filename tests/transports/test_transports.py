"""One suite, four instances: what every transport owes its clients, over real sockets."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import count

import pytest

from pushdemo import transports
from pushdemo.delivery.subscription import LongPoll, Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import longpoll
from tests.readers import END, FAILING, STREAMS, TRANSPORTS, Event, Pushing, hang_up, pushing, told
from tests.support import ROOT, Client, wait_until

LONG = 1000.0  # seconds, where a test must see nothing of what comes when they are over
HISTORY = 20

TYPES = {
    "multipart": "multipart/x-mixed-replace",
    "sse": "text/event-stream",
    "jsonlines": "application/x-ndjson",
    "longpoll": "application/json",
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site() -> Iterator[Pushing]:
    """A server that says nothing of its own accord."""
    with pushing({"heartbeat": LONG, "longpoll.timeout": LONG}) as running:
        yield running


def add(site: Pushing, content_type: str = "text/plain", history: int = HISTORY) -> Topic:
    """A topic more."""
    return site.topics.add(Topic(f"news-{len(site.topics)}", content_type=content_type, history=history))


@pytest.fixture
def news(site: Pushing) -> Topic:
    return add(site)


def address(topic: Topic) -> str:
    return f"/push/{topic.name}"


def publish(topic: Topic, *numbers: int) -> None:
    for number in numbers:
        topic.publish(str(number))


def numbered(topic: Topic, *numbers: int) -> list[Event]:
    """The events of the messages that `publish` has made, where their contents are their numbers."""
    return [Event("message", f"{topic.epoch}-{number}", str(number)) for number in numbers]


# -- order and ids


def test_messages_come_in_order_with_their_ids(site: Pushing, news: Topic, transport: str) -> None:
    with site.reader(transport, address(news)) as reader:
        publish(news, 1)
        assert reader.take(1) == numbered(news, 1)
        for number in range(2, 50):
            publish(news, number)
            assert reader.take(1) == numbered(news, number)


def test_a_new_client_gets_the_newest_at_once(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1, 2, 3)
    with site.reader(transport, address(news)) as reader:
        assert reader.take(1) == numbered(news, 3)
        publish(news, 4)
        assert reader.take(1) == numbered(news, 4)


def test_earliest_brings_the_whole_history(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, *range(1, HISTORY + 6))
    with site.reader(transport, address(news), last="earliest") as reader:
        assert reader.take(HISTORY) == numbered(news, *range(6, HISTORY + 6))


def test_earliest_of_nothing_is_the_first_that_comes(site: Pushing, news: Topic, transport: str) -> None:
    with site.reader(transport, address(news), last="earliest") as reader:
        reader.start()
        wait_until(lambda: news.clients)
        publish(news, 1, 2)
        assert reader.take(2) == numbered(news, 1, 2)


@pytest.mark.parametrize("by", ["header", "query", "both"])
def test_a_client_goes_on_behind_its_last_event_id(site: Pushing, news: Topic, transport: str, by: str) -> None:
    publish(news, *range(1, 8))
    header = (f"Last-Event-ID: {news.epoch}-3",) if by != "query" else ()
    # The header is what an EventSource knows; the query is what it was made with, which may be older.
    last = {"header": None, "query": f"{news.epoch}-3", "both": f"{news.epoch}-1"}[by]
    with site.reader(transport, address(news), *header, last=last) as reader:
        assert reader.take(4) == numbered(news, 4, 5, 6, 7)


@pytest.mark.parametrize(
    "query",
    [
        "lastEventId={}",
        "lastEventID={}",
        "Last-Event-ID={}",
        "last_event_id=&lastEventId={}",
        "lastEventId={}&last_event_id=",
        "last_event_id=earlier&lastEventId={}",
        "lastEventId=earlier&last_event_id={}",
    ],
)
def test_the_last_event_id_may_have_the_names_that_other_clients_give_it(
    site: Pushing, news: Topic, transport: str, query: str
) -> None:
    publish(news, *range(1, 6))
    with site.reader(transport, f"{address(news)}?{query.format(f'{news.epoch}-3')}") as reader:
        assert reader.take(2) == numbered(news, 4, 5)


def test_a_client_that_has_everything_is_given_what_comes_next(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1)
    with site.reader(transport, address(news), last=f"{news.epoch}-1") as reader:
        reader.start()
        wait_until(lambda: news.clients)
        publish(news, 2)
        assert reader.take(1) == numbered(news, 2)


def test_an_id_that_the_history_just_reaches_is_no_gap(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, *range(1, HISTORY + 6))
    with site.reader(transport, address(news), last=f"{news.epoch}-5") as reader:
        assert reader.take(HISTORY) == numbered(news, *range(6, HISTORY + 6))


@pytest.mark.parametrize("behind", [False, True])
def test_text_of_any_size_comes_whole(site: Pushing, news: Topic, transport: str, behind: bool) -> None:
    texts = ["x" * size for size in (0, 1, 100_000, 2_000_000)]
    with site.reader(transport, address(news), last="earliest") as reader:
        if behind:
            reader.start()
        for text in texts:
            news.publish(text)
        assert reader.contents(len(texts)) == texts


# -- no gap and no repeat


@pytest.mark.heavy
@pytest.mark.parametrize("times", [250, pytest.param(1_000, marks=pytest.mark.heavy)])
def test_nothing_is_missed_or_repeated_over_reconnects(site: Pushing, transport: str, times: int) -> None:
    """A client that is cut off at any byte, and knows no more than the id of the last message that it has whole."""
    rng = random.Random(transport)
    topic = add(site, history=10_000)
    numbers = count(1)
    got: list[Event] = []
    last, sent = "earliest", 0

    def publish_some() -> int:
        some = rng.randrange(3)
        for _ in range(some):
            topic.publish(f"message {next(numbers)}")
        return some

    for _ in range(times):
        sent += publish_some()
        header, query = ("", f"&last_event_id={last}") if rng.random() < 0.5 else (f"Last-Event-ID: {last}", "")
        client = Client(site.port)
        path, version = f"{address(topic)}?transport={transport}{query}", rng.choice(["1.0", "1.1"])
        client.get(path, *filter(None, [header]), version=version)
        sent += publish_some()
        raw, cut, step = b"", rng.randrange(1500), rng.choice([100, 65_536])
        heard: list[Event] = []
        events: list[Event] = []
        while len(raw) < cut and len(got) + len(events) < sent:
            data = client.sock.recv(min(step, cut - len(raw)))
            raw += data
            heard = told(transport, raw)
            events = [event for event in heard if event.kind not in ("heartbeat", "begin")]
            if transport == "longpoll" and events:
                break
        hang_up(client.sock, rudely=rng.random() < 0.5)
        got += events
        last = next((event.id for event in reversed(heard) if event.id), last)
    with site.reader(transport, address(topic), last=last) as reader:
        got += reader.take(sent - len(got))
    assert sent > times
    assert got == [Event("message", f"{topic.epoch}-{n}", f"message {n}") for n in range(1, sent + 1)]


def test_who_has_to_catch_up_leaves_nothing_behind_in_the_history(site: Pushing) -> None:
    """Else 100 clients at 100 places of a history of 100 would have it kept 5,000 times."""
    topic = add(site, history=100)
    publish(topic, *range(1, 101))
    for number in range(100):
        with site.reader("longpoll", address(topic), last=f"{topic.epoch}-{number}") as reader:
            assert len(reader.take(100 - number)) == 100 - number
    newest, _ = topic.following(99)
    assert newest
    assert sum(map(len, newest.forms.values())) < 1000


# -- reset


@pytest.mark.parametrize(
    "last",
    [
        "{epoch}-1",
        "0123abcd-3",
        "{epoch}-9999",
        "{epoch}-",
        "{epoch}",
        "1",
        "-1",
        "x:y,z:",
        "%00",
        "9" * 5000,
        "{epoch}-" + "9" * 5000,
    ],
)
def test_an_id_that_cannot_be_resumed_is_said_once(site: Pushing, news: Topic, transport: str, last: str) -> None:
    publish(news, *range(1, HISTORY + 6))
    with site.reader(transport, address(news), last=last.format(epoch=news.epoch)) as reader:
        reset, message = reader.take(2)
        assert reset.kind == "reset"
        assert [message] == numbered(news, HISTORY + 5)
        publish(news, HISTORY + 6)
        assert reader.take(1) == numbered(news, HISTORY + 6)


def test_a_reset_without_a_message_is_said_once(site: Pushing, news: Topic, transport: str) -> None:
    with site.reader(transport, address(news), last="0123abcd-3") as reader:
        reader.start()
        wait_until(lambda: news.clients)
        publish(news, 1)
        reset, message = reader.take(2)
        assert reset.kind == "reset"
        assert [message] == numbered(news, 1)
        publish(news, 2)
        assert reader.take(1) == numbered(news, 2)


@pytest.mark.parametrize("transport", STREAMS, indirect=True)
def test_who_was_reset_before_any_message_goes_on_exactly(site: Pushing, news: Topic, transport: str) -> None:
    with site.reader(transport, address(news), last="0123abcd-3") as reader:
        assert reader.take(1) == [Event("reset", f"{news.epoch}-0")]
        reader.leave()
        publish(news, 1, 2)
        assert reader.take(2) == numbered(news, 1, 2)


# -- heartbeats


@pytest.mark.heavy
def test_a_quiet_connection_is_kept_alive_and_a_busy_one_is_left_alone() -> None:
    """All transports at once: it takes a few seconds of real time."""
    with pushing({"heartbeat": 0.8, "longpoll.timeout": 0.8}) as site:
        news = site.topics["news"]
        news.publish("first")
        readers = [site.reader(name) for name in TRANSPORTS]
        assert [reader.next().content for reader in readers] == ["first"] * 4
        for number in range(30):
            news.publish(str(number))
            news.wait(news.head, 0.05)  # nothing else comes: this is a pause
        for reader in readers:
            events = [reader.next(heartbeats=True) for _ in range(30)]
            assert [event.content for event in events] == list(map(str, range(30)))
        for reader in readers:
            assert reader.next(heartbeats=True) == Event("heartbeat")
        news.publish("last")
        for reader in readers:
            assert reader.contents(1) == ["last"]
            reader.leave()


# -- who ends a stream


class Moody:
    """A source whose second and third call fail."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls in (2, 3):
            raise RuntimeError("a secret of the source's")
        return str(self.calls)


def test_a_failing_source_is_told_once(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    name = f"moody-{transport}"  # one of its own, as equal lines of the log are written once a second
    topic = {name: {"source": Moody(), "interval": 0.05}}
    with pushing(**topic) as site, site.reader(transport, f"/push/{name}") as reader:
        first, failing, next_one = reader.take(3)
        assert (first.content, failing, next_one.content) == ("1", FAILING, "4")
        assert b"secret" not in reader.raw
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.exc_info is not None for record in errors] == [True]


def test_a_source_that_has_never_made_anything_is_told_to_fail(site: Pushing, news: Topic, transport: str) -> None:
    news.notify("failing")
    with site.reader(transport, address(news)) as reader:
        (failing,) = reader.take(1)
        assert failing._replace(id="") == FAILING  # a multipart header has the id where the stream begins as well
        publish(news, 1)
        assert reader.take(1) == numbered(news, 1)


@pytest.mark.parametrize("asks", ["", "&ids=topic"])
def test_an_eventsource_is_told_where_it_begins_by_an_id_alone(site: Pushing, news: Topic, asks: str) -> None:
    """A script that reads by itself asks for `ids=topic`, and is told by an event."""
    id = news.id_at(0)
    told = f'id: {id}\nevent: begin\ndata: {{"last_event_id": "{id}"}}\n\n' if asks else f"id: {id}\n\n"
    with site.client(f"{address(news)}?transport=sse{asks}") as client:
        assert client.head()[0] == 200
        assert client.chunk().decode() == f"retry: 3000\n{told}"


def test_a_finished_source_ends_the_stream(transport: str) -> None:
    with pushing(news={"source": lambda: (yield from "abc"), "interval": 0}) as site:
        with site.reader(transport, last="earliest") as reader:
            *messages, end = reader.rest()
            assert [event.content for event in messages] == ["a", "b", "c"]
            assert end == END
        with site.reader(transport) as reader:  # who comes later
            assert [event.content for event in reader.rest()] == ["c", END.content]


def test_the_connection_of_an_ended_stream_is_closed(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1)
    with site.reader(transport, address(news)) as reader:
        assert reader.take(1) == numbered(news, 1)
        news.end()
        assert reader.rest() == [END]
        if transport != "longpoll":
            assert reader.client
            assert reader.client.sock.recv(1) == b""


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_an_event_source_that_has_everything_is_told_not_to_come_back(
    site: Pushing, news: Topic, messages: int
) -> None:
    publish(news, *range(1, messages + 1))
    news.end()
    path = f"{address(news)}?transport=sse"
    for last in range(messages):
        with site.client(path, f"Last-Event-ID: {news.epoch}-{last}") as client:
            assert client.head()[0] == 200
    headers = [f"Last-Event-ID: {news.epoch}-{messages}"] if messages else []
    with site.client(path, *headers) as client:
        status, fields = client.head()
        assert status == 204
        assert fields["cache-control"] == "no-store, no-transform"
        assert fields["vary"] == "Accept"


def test_a_source_that_fails_and_is_given_up_is_over_all_the_same(site: Pushing, news: Topic) -> None:
    publish(news, 1)
    news.notify("failing")
    news.end()
    with site.client(f"{address(news)}?transport=sse", f"Last-Event-ID: {news.epoch}-1") as client:
        assert client.head()[0] == 204


def test_no_transport_but_sse_is_answered_204(site: Pushing, news: Topic) -> None:
    publish(news, 1)
    news.end()
    for name in ("multipart", "jsonlines", "longpoll"):
        with site.reader(name, address(news), last=f"{news.epoch}-1") as reader:
            assert reader.rest() == [END]


def test_a_server_that_stops_says_when_to_come_back() -> None:
    with pushing() as site:
        site.topics["news"].publish("first")
        readers = [site.reader(name) for name in TRANSPORTS for _ in range(5)]
        for reader in readers:
            assert reader.contents(1) == ["first"]
            if reader.transport == "longpoll":
                reader.start()
        wait_until(lambda: site.topics["news"].clients == len(readers))
        site.server.stop()
        events = [reader.rest() for reader in readers]
        for reader in readers:
            reader.leave()
    hints = [event.content for (event,) in events]
    assert {event.kind for (event,) in events} == {"retry"}
    assert all(0 < hint <= 2000 for hint in hints)
    assert len(set(hints)) > 1, "they would all come back at once"


def test_a_full_house_is_503_before_anything_is_held(transport: str) -> None:
    with pushing({"max_clients": 1}) as site, site.reader("sse").join():
        with site.client(f"/push/news?transport={transport}") as client:
            status, headers, body = client.response()
        assert status == 503
        assert int(headers["retry-after"]) > 0
        assert b"all 1 places for clients are taken (pushdemo.max_clients)" in body
        assert site.topics["news"].clients == 1


# -- what is asked for


def headers_of(site: Pushing, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str]]:
    with site.client(path, *headers, method=method) as client:
        return client.head()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "multipart/x-mixed-replace"),
        ("*/*", "multipart/x-mixed-replace"),
        ("multipart/x-mixed-replace", "multipart/x-mixed-replace"),
        ("multipart/*", "multipart/x-mixed-replace"),
        ("text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/jsonl", "application/jsonl"),
        ("application/jsonl, application/x-ndjson;q=0.9", "application/jsonl"),
        ("application/jsonl;q=0.8, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/*", "application/x-ndjson"),
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "application/json"),
        ("text/event-stream;q=0.3, application/json;q=0.7", "application/json"),
        ("text/event-stream;q=0.7, application/json;q=0.3", "text/event-stream"),
        ("application/json;q=0.5, application/x-ndjson;q=0.5", "application/x-ndjson"),
        ("multipart/x-mixed-replace;q=0, */*", "text/event-stream"),
        ("*/*;q=0.5, application/json;q=0.4", "multipart/x-mixed-replace"),
        ("not a media type", "multipart/x-mixed-replace"),
    ],
)
def test_accept_chooses_the_transport(site: Pushing, news: Topic, accept: str | None, expected: str) -> None:
    publish(news, 1)
    status, headers = headers_of(site, address(news), *([f"Accept: {accept}"] if accept else []))
    assert status == 200
    assert headers["content-type"].partition(";")[0] == expected
    assert headers["vary"] == "Accept"


def test_the_query_beats_accept(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1)
    for accept in TYPES.values():
        _, headers = headers_of(site, f"{address(news)}?transport={transport}", f"Accept: {accept}")
        assert headers["content-type"].partition(";")[0] == TYPES[transport]


@pytest.mark.parametrize("accept", ["image/webp", "text/html", "application/xml", "*/*;q=0", "text/event-stream;q=0"])
def test_what_does_not_fit_is_406_and_lists_what_there_is(site: Pushing, news: Topic, accept: str) -> None:
    with site.client(address(news), f"Accept: {accept}") as client:
        status, headers, body = client.response()
    assert status == 406
    assert headers["vary"] == "Accept"
    for name, media_type in TYPES.items():
        assert f"{media_type} (transport={name})" in body.decode()
    assert news.clients == 0


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("transport=carrier-pigeon", "transport=carrier-pigeon: must be one of multipart, sse, jsonlines, longpoll"),
        ("transport=", "transport=: must be one of multipart, sse, jsonlines, longpoll"),
        ("topic=weather", "topic=weather: must be one of news-"),
        ("topic=", "topic=: must be one of news-"),
        ("transport=%FF", "UTF-8"),
        ("last_event_id=%FF&transport=sse", "UTF-8"),
    ],
)
def test_a_wrong_query_is_400_and_says_what_would_do(site: Pushing, news: Topic, query: str, reason: str) -> None:
    with site.client(f"{address(news)}?{query}", "Accept: text/plain, */*") as client:
        status, headers, body = client.response()
    assert status == 400
    assert reason in body.decode()
    assert headers["vary"] == "Accept"
    assert news.clients == 0


def test_what_the_query_said_is_not_markup_in_the_answer(site: Pushing, news: Topic) -> None:
    with site.client(f"{address(news)}?transport=%3Cscript%3E", "Accept: text/html") as client:
        status, headers, body = client.response()
    assert (status, headers["content-type"]) == (400, "text/html; charset=UTF-8")
    assert b"<script>" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_another_method_is_405(site: Pushing, news: Topic, method: str) -> None:
    status, headers = headers_of(site, address(news), "Content-Length: 0", method=method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD, OPTIONS"


def test_head_is_the_headers_alone(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1)
    with site.client(f"{address(news)}?transport={transport}", "Connection: close", method="HEAD") as client:
        status, headers = client.head()
        assert client.rest() == b""
    assert status == 200
    assert headers["content-type"].partition(";")[0] == TYPES[transport]
    assert news.clients == 0


def test_no_transport_is_kept_compressed_or_collected_on_the_way(site: Pushing, news: Topic, transport: str) -> None:
    publish(news, 1)
    _, headers = headers_of(site, f"{address(news)}?transport={transport}")
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


# -- what a topic is, and what a transport carries


@pytest.mark.parametrize("content_type", ["image/svg+xml", "image/png", "application/octet-stream"])
def test_a_picture_comes_as_multipart_and_by_nothing_else(site: Pushing, content_type: str) -> None:
    topic = add(site, content_type=content_type)
    topic.publish(b"<svg/>")
    for name in ("sse", "jsonlines", "longpoll"):
        for path, accept in ((f"{address(topic)}?transport={name}", "*/*"), (address(topic), TYPES[name])):
            with site.client(path, f"Accept: {accept}") as client:
                status, _, body = client.response()
            assert status == 406
            assert f"{topic.name} comes as multipart/x-mixed-replace (transport=multipart)" in body.decode()
    with site.reader("multipart", address(topic)) as reader:
        assert reader.contents(1) == ["<svg/>"]
        assert f"Content-Type: {content_type}\r\n".encode() in reader.raw


@pytest.mark.parametrize("content_type", ["application/json", "application/geo+json"])
def test_a_json_topic_brings_values(site: Pushing, transport: str, content_type: str) -> None:
    topic = add(site, content_type=content_type)
    values = [{"a": [1, 2.5, None, True, "é\n\u2028\x00"]}, "text", 0, None, []]
    for value in values:
        topic.publish(value)
    with site.reader(transport, address(topic), last="earliest") as reader:
        contents = reader.contents(len(values))
    if transport in ("multipart", "sse"):
        contents = [json.loads(content) for content in contents]
    assert contents == values


def test_json_that_was_made_elsewhere_is_still_one_line(site: Pushing, transport: str) -> None:
    topic = add(site, content_type="application/json")
    value = {"a": [1, {"b": "c\nd"}], "e": None}
    topic.publish(json.dumps(value, indent=2).encode())
    topic.publish(json.dumps(value, indent=2).replace("\n", "\r\n").encode())
    with site.reader(transport, address(topic), last="earliest") as reader:
        contents = reader.contents(2)
    assert [json.loads(c) if isinstance(c, str) else c for c in contents] == [value, value]


# -- docs/transports.md


DOCUMENT = (ROOT / "docs" / "transports.md").read_text(encoding="utf-8")
TEXTS = ("2026-11-21 09:51", "2026-11-21 09:52")


@pytest.fixture
def told_of() -> Topic:
    """The topic of the document, when its client comes back: with messages up to the number 7."""
    topic = Topic("server")
    topic.epoch = "1f6ac0de"
    for _ in range(6):
        topic.publish("before")
    topic.publish(TEXTS[0])
    return topic


def block(transport: str) -> str:
    """The document's example."""
    return re.split("```[a-z]*\n", DOCUMENT.partition(f"\n**`{transport}`**")[2])[1].partition("```")[0]


@pytest.mark.parametrize("name", STREAMS)
def test_the_document_has_the_streams_byte_for_byte(told_of: Topic, name: str) -> None:
    pieces = iter(Subscription(told_of, transports.STREAMS[name], Pace(heartbeat=0.01), "0123abcd-3"))
    data = next(pieces) + next(pieces)
    told_of.notify("failing")
    told_of.publish(TEXTS[1])
    told_of.end()
    found = (data + b"".join(pieces)).decode()
    assert name != "multipart" or "\n" not in found.replace("\r\n", "")
    assert found.replace("\r\n", "\n").replace(transports.multipart.BOUNDARY, "BOUNDARY") == block(name)


def test_the_document_has_the_long_polls_byte_for_byte(told_of: Topic) -> None:
    found: list[str] = []

    def poll(last: str) -> str:
        client = LongPoll(told_of, Pace(longpoll_timeout=0.01), last)
        body = client.open() or client.wait()
        client.close()
        found.append(body.decode())
        return str(json.loads(body)["last_event_id"])

    last = poll("0123abcd-3")
    last = poll(last)
    waiting = LongPoll(told_of, Pace(), last)
    assert waiting.open() is None
    waiting.join()
    told_of.notify("failing")
    found.append((waiting.answer() or b"").decode())
    waiting.close()
    told_of.publish(TEXTS[1])
    told_of.end()
    poll(poll(last))
    assert "".join(f"{answer}\n" for answer in found) == block("longpoll")


def test_the_document_has_all_notices() -> None:
    rows = {line for line in DOCUMENT.splitlines() if line.startswith("| ")}
    for name, kind in transports.STREAMS.items():
        notices = [kind.notice("heartbeat"), kind.notice("reset"), kind.notice("failing"), kind.retry(1500)]
        for notice in notices:
            first = notice.decode().splitlines()[0]
            assert any(f"`{first}`" in row for row in rows), (name, first)
    answer = longpoll.answer("waiting", reset=True, failing=True, retry=1500).decode()
    for field in ('"reset": true', '"failing": true', '"retry": 1500'):
        assert field in answer
        assert any(f"`{field}`" in row for row in rows)
