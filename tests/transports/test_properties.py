"""Whatever goes into a message comes out of decoders that know nothing of pushdemo, however the network tears it.

Events are read by httpx-sse and sseclient-py, multipart by the standard library's email, the others by its json, XML by
its ElementTree.
"""

from __future__ import annotations

import email.policy
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from email.parser import BytesFeedParser
from itertools import pairwise
from typing import Any, NamedTuple
from xml.etree import ElementTree

import httpx
import httpx_sse
import pytest
import sseclient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pushdemo import transports
from pushdemo.topics import content
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import STREAMS, Names, StreamTransport, longpoll, multipart, sse

# A transport's own signs, and what readers are known to trip over: line breaks of Python that no format knows, a byte
# order mark, NUL, a character of four bytes.
SIGNS = [
    "\r\n",
    "\r",
    "\n",
    "\n\n",
    " ",
    ":",
    "data: x",
    "\nid: 7\nevent: end\ndata: forged\n\n",
    "\x00",
    "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
    "\ufeff",
    "𝄞",
    "--",
    "\r\n--",
    multipart.BOUNDARY[:-1],
    '"}\n{"state": "done"}\n',
    "</message>",
    "]]>",
    "&#13;",
]
TEXT = (
    st.lists(st.text(max_size=20) | st.sampled_from(SIGNS), max_size=8)
    .map("".join)
    .filter(lambda text: multipart.BOUNDARY not in text)  # which no message can hold
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
TEXTS = st.lists(TEXT, min_size=1, max_size=5)
VALUES = st.lists(VALUE, min_size=1, max_size=5)
unhurried = settings(deadline=None, max_examples=40)  # a noisy machine takes its time
CUTS = st.lists(st.integers(0, 2000), max_size=20)


class Part(NamedTuple):
    """A message as a decoder has it; `topic` is empty where it comes from a single one."""

    id: str
    content: Any
    topic: str = ""


def published(content_type: str, values: Sequence[Any]) -> list[Message]:
    """The topic's messages of these values."""
    topic = Topic("news", content_type=content_type, history=len(values))
    return [topic.publish(value) for value in values]


def stream(transport: StreamTransport, messages: Iterable[Message], names: Names = "") -> bytes:
    """All that a stream can have, around and between the messages."""
    format = transports.format_of(transport, names)
    parts = [transport.preamble(3000), transport.notice("heartbeat")]
    for message in messages:
        parts += [
            format.encode(message),
            transport.notice("heartbeat"),
            transport.notice("heartbeat"),
        ]
    return b"".join([*parts, transport.notice("end")])


def torn(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The same bytes as a network may bring them."""
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    yield from (data[begin:end] for begin, end in pairwise(places))


# -- decoders


def by_httpx_sse(chunks: Iterable[bytes]) -> list[Part]:
    response = httpx.Response(200, headers={"Content-Type": sse.response_type}, content=iter(list(chunks)))
    events = list(httpx_sse.EventSource(response).iter_sse())
    assert events.pop().event == "end"
    return [Part(event.id, event.data, "" if event.event == "message" else event.event) for event in events]


class Chunks:
    """A response as sseclient-py wants it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def close(self) -> None:
        pass


def by_sseclient(chunks: Iterable[bytes]) -> list[Part]:
    source: Any = Chunks(chunks)
    events: Any = list(sseclient.SSEClient(source).events())
    assert events.pop().event == "end"
    return [Part(event.id, event.data, "" if event.event == "message" else event.event) for event in events]


def by_email(chunks: Iterable[bytes]) -> list[Part]:
    parser = BytesFeedParser(policy=email.policy.HTTP)
    parser.feed(f"Content-Type: {multipart.response_type}\r\n\r\n".encode())
    for chunk in chunks:
        parser.feed(chunk)
    whole = parser.close()
    assert not whole.defects
    assert whole.epilogue == "", "the stream has come to its end"
    payload: Any = whole.get_payload()
    *parts, last = payload
    assert not last.get_payload(), "the boundary line that was sent ahead opens an empty one"
    found = []
    for part in parts:
        body = part.get_payload(decode=True)
        assert int(part["Content-Length"]) == len(body)
        assert not part.defects
        found.append(Part(part["X-Message-Id"], body, part["X-Topic"] or ""))
    return found


def by_json_lines(chunks: Iterable[bytes]) -> list[Part]:
    lines = [json.loads(line) for line in io.BytesIO(b"".join(chunks))]
    assert lines.pop() == {"state": "done"}
    return [Part(**line) for line in lines if line != {"state": "heartbeat"}]


def by_json(messages: Sequence[Message], *, named: bool = False) -> list[Part]:
    answer = json.loads(longpoll.answer("ready", messages, last_event_id=messages[-1].id, named=named))
    assert answer["last_event_id"] == messages[-1].id
    return [Part(**message) for message in answer["messages"]]


def as_parts(messages: Iterable[Message], contents: Iterable[Any]) -> list[Part]:
    return [Part(message.id, value) for message, value in zip(messages, contents, strict=True)]


def lines(text: str) -> str:
    """A text as an event brings it: the format has one kind of line break."""
    return re.sub("\r\n|\r", "\n", text)


def xml_text(document: str | bytes) -> str:
    root = ElementTree.fromstring(document)
    assert root.tag == "message"
    return root.text or ""


def carried(text: str) -> str:
    """What of a text XML can carry: section 2.2 of XML 1.0, production Char."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


# -- texts


@unhurried
@given(TEXTS, CUTS)
@example(["", "\n", "\r\n", " leading", "trailing "], [])
def test_plain_text(texts: list[str], cuts: list[int]) -> None:
    messages = published("text/plain", texts)
    events = list(torn(stream(sse, messages), cuts))
    assert by_httpx_sse(events) == as_parts(messages, map(lines, texts))
    assert by_sseclient(events) == as_parts(messages, map(lines, texts))
    parts = torn(stream(multipart, messages), cuts)
    assert by_email(parts) == as_parts(messages, (text.encode() for text in texts))
    assert by_json_lines([stream(STREAMS["jsonlines"], messages)]) == as_parts(messages, texts)
    assert by_json(messages) == as_parts(messages, texts)


@unhurried
@given(TEXTS, CUTS)
def test_text_in_xml(texts: list[str], cuts: list[int]) -> None:
    messages = published(content.XML, texts)
    expected = as_parts(messages, map(carried, texts))
    events = list(torn(stream(sse, messages), cuts))
    found = [
        by_httpx_sse(events),
        by_sseclient(events),
        by_email(torn(stream(multipart, messages), cuts)),
        by_json_lines([stream(STREAMS["jsonlines"], messages)]),
        by_json(messages),
    ]
    for parts in found:
        assert [part._replace(content=xml_text(part.content)) for part in parts] == expected


@unhurried
@given(VALUES, CUTS)
def test_json_values(values: list[Any], cuts: list[int]) -> None:
    messages = published("application/json", values)
    expected = as_parts(messages, values)
    events = list(torn(stream(sse, messages), cuts))
    for parts in (by_httpx_sse(events), by_sseclient(events), by_email(torn(stream(multipart, messages), cuts))):
        assert [part._replace(content=json.loads(part.content)) for part in parts] == expected
    assert by_json_lines([stream(STREAMS["jsonlines"], messages)]) == expected
    assert by_json(messages) == expected


@unhurried
@given(VALUES, st.sampled_from([None, 0, 2, 8]), CUTS)
def test_json_that_was_made_elsewhere(values: list[Any], indent: int | None, cuts: list[int]) -> None:
    made = [json.dumps(value, indent=indent, ensure_ascii=False) for value in values]
    messages = published("application/json", [text.replace("\n", "\r\n").encode() for text in made])
    expected = as_parts(messages, values)
    events = list(torn(stream(sse, messages), cuts))
    assert [part._replace(content=json.loads(part.content)) for part in by_httpx_sse(events)] == expected
    assert by_json_lines([stream(STREAMS["jsonlines"], messages)]) == expected
    assert by_json(messages) == expected


@unhurried
@given(VALUE, st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le"]))
@example("", "utf-16-le")
def test_json_in_another_encoding_is_refused_before_anyone_stumbles_over_it(value: Any, encoding: str) -> None:
    with pytest.raises(ValueError, match="not a body of type application/json in UTF-8"):
        published("application/json", [json.dumps(value).encode(encoding)])


@unhurried
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), CUTS)
@example([b"", b"\r\n", b"--", b"\x00\xff", b"\r\n\r\n--\r"], [])
def test_bytes_in_multipart(bodies: list[bytes], cuts: list[int]) -> None:
    messages = published("image/png", bodies)
    assert by_email(torn(stream(multipart, messages), cuts)) == as_parts(messages, bodies)


@unhurried
@given(TEXTS, CUTS, st.from_regex(r"[A-Za-z0-9_.-]{1,100}", fullmatch=True))
def test_the_topics_name(texts: list[str], cuts: list[int], name: str) -> None:
    alone = published("text/plain", texts)
    messages = [Message(m.position, m.number, f"{name}:{m.id}", m.body, m.content_type, topic=name) for m in alone]
    expected = [Part(message.id, text, name) for message, text in zip(messages, texts, strict=True)]
    as_lines = [part._replace(content=lines(part.content)) for part in expected]
    if name != "message":  # no topic has that name: it is what an event without one is called
        events = list(torn(stream(sse, messages, "event"), cuts))
        assert by_httpx_sse(events) == as_lines
        assert by_sseclient(events) == as_lines
    found = by_email(torn(stream(multipart, messages, "topic"), cuts))
    assert [part._replace(content=part.content.decode()) for part in found] == expected
    assert by_json_lines([stream(STREAMS["jsonlines"], messages, "topic")]) == expected
    assert by_json(messages, named=True) == expected


# -- the fields of an event


IDS = st.text(st.characters(blacklist_characters="\0\r\n", blacklist_categories=["Cs"]), min_size=1)


@unhurried
@given(IDS, TEXT)
def test_every_field_of_an_event(id: str, data: str) -> None:
    made = sse.event(data, id=id, event="name", topic="news")
    response = httpx.Response(200, headers={"Content-Type": sse.response_type}, content=made)
    (event,) = httpx_sse.EventSource(response).iter_sse()
    assert (event.id, event.event, event.data) == (id, "name", lines(data))


@unhurried
@given(TEXT, st.sampled_from(["\r", "\n", "\r\n"]), TEXT)
def test_an_id_or_a_name_of_several_lines_is_refused(before: str, line_break: str, behind: str) -> None:
    for field in ({"id": f"{before}{line_break}{behind}"}, {"event": f"{before}{line_break}{behind}"}):
        with pytest.raises(ValueError, match="cannot carry a line break"):
            sse.event("data", **field)  # type: ignore[arg-type]


@unhurried
@given(TEXT, TEXT)
def test_an_id_with_nul_is_refused(before: str, behind: str) -> None:
    with pytest.raises(ValueError, match="cannot carry a line break or NUL"):
        sse.event("data", id=f"{before}\0{behind}")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "a:b", "a,b", "", "reset", "failing", "end", "error", "open", "message"]
)
def test_a_name_that_some_transport_could_not_carry_is_no_topics(name: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Topic(name)


def test_the_notices_of_an_event_stream_are_events_but_for_the_heartbeat() -> None:
    """httpx-sse takes each empty line behind a first id for an event: a heartbeat has none."""
    (message,) = published("text/plain", ["text"])
    kinds: list[transports.Notice] = ["heartbeat", "reset", "heartbeat", "failing", "end"]
    data = sse.encode(message) + b"".join(map(sse.notice, kinds))
    response = httpx.Response(200, headers={"Content-Type": sse.response_type}, content=data + sse.retry(1234))
    first, *events = httpx_sse.EventSource(response).iter_sse()
    assert (first.event, first.data) == ("message", "text")
    assert [(event.event, event.json()["last_event_id"]) for event in events] == [
        ("reset", None),
        ("failing", None),
        ("end", None),
    ]
