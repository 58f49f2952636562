"""What push.js makes of the bytes of each wire format, wherever the network tears them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.static.engines import Engine, Node, Watch
from tests.static.formats import STREAMS, Sent, poll
from tests.static.scripts import HARD, answers, never, says, whole
from tests.static.wire import Exchange, Script, Wire


def expected(sent: list[Sent]) -> list[dict[str, Any]]:
    return [{"id": s.id, "content": s.content} | ({"topic": s.topic} if s.topic else {}) for s in sent]


def without_topics(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An EventSource hides the topic where the stream has not begun with the ids of its topics."""
    return [{key: value for key, value in message.items() if key != "topic"} for message in messages]


def received(watch: Watch) -> list[dict[str, Any]]:
    wanted = ("id", "content", "topic")
    return [{key: m[key] for key in wanted if m.get(key) is not None} for m in watch.messages]


def everything(transport: str) -> Script:
    """Answers with all that a stream can have."""

    def script(exchange: Exchange) -> None:
        exchange.stream(STREAMS[transport].content_type, whole(transport))
        exchange.end()

    return script


@pytest.mark.heavy
@pytest.mark.parametrize("transport", ["multipart", "jsonlines"])
def test_a_stream_torn_at_any_byte_is_read_whole(node: Node, wire: Wire, transport: str) -> None:
    url = wire.on(f"/torn-{transport}", everything(transport))
    data = whole(transport)
    for at in range(1, len(data)):
        watch = node.subscribe(f"{url}?tear={at}", transport=transport)
        watch.state("ended")
        assert (received(watch), watch.resets) == (expected(HARD), 1), f"torn in front of {data[at:]!r}"
    assert len(wire.requests) == len(data) - 1


def test_a_stream_that_comes_byte_by_byte_is_read_whole(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    url = wire.on(f"/bytes-{transport}", everything(transport))
    watch = engine.subscribe(f"{url}?tear=each", transport=transport)
    watch.state("ended")
    assert received(watch) == (without_topics(expected(HARD)) if transport == "sse" else expected(HARD))
    assert watch.resets == 1
    assert [state["state"] for state in watch.states] == ["connecting", "live", "failing", "ended"]


def test_a_part_that_is_neither_text_nor_json_comes_as_its_bytes(node: Node, wire: Wire) -> None:
    picture = b"\x89PNG\r\n--3f9a0c--\r\n\x00\xff"
    part = b"Content-Type: image/png\r\nContent-Length: %d\r\nX-Message-Id: e-1\r\n\r\n%b\r\n--3f9a0c\r\n"
    url = wire.on("/png", says("multipart", part % (len(picture), picture), STREAMS["multipart"].end))
    watch = node.subscribe(f"{url}?tear=each")
    watch.state("ended")
    assert bytes(watch.messages[0]["content"]) == picture


@pytest.mark.parametrize("content_type", ["text/csv; charset=UTF-8", "application/atom+xml", "application/javascript"])
def test_what_is_text_on_the_other_transports_is_text_in_a_part(node: Node, wire: Wire, content_type: str) -> None:
    part = f"Content-Type: {content_type}\r\nContent-Length: 2\r\nX-Message-Id: e-1\r\n\r\n42\r\n--3f9a0c\r\n".encode()
    watch = node.subscribe(wire.on("/type", says("multipart", part, STREAMS["multipart"].end)))
    watch.state("ended")
    assert [message["content"] for message in watch.messages] == ["42"]


TEXTS = ["42", "true", "null", '"quoted"', '{"a": [1]}', " 7", "", "<b>", "\ufeffmarked", "plain"]


def test_a_text_stays_a_text_whatever_it_reads_as(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    sent = [Sent(f"e-{number}", text) for number, text in enumerate(TEXTS)]
    url = wire.on(f"/texts-{transport}", says(transport, *map(form.message, sent), form.end))
    watch = engine.subscribe(url, transport=transport, text=True)
    watch.state("ended")
    assert received(watch) == expected(sent)


def test_texts_and_values_share_a_connection(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    sent = [Sent("e-1", "42", topic="news"), Sent("f-2", 42, topic="figures"), Sent("f-3", ["42"], topic="figures")]
    parts = [form.begin("news:e-0,figures:f-1"), *map(form.message, sent), form.end]
    url = wire.on(f"/mixed-{transport}", says(transport, *parts))
    watch = engine.subscribe(url, transport=transport, text=["news"])
    watch.state("ended")
    assert received(watch) == expected(sent)


def test_a_message_is_delivered_before_the_next_byte_behind_it(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    data = STREAMS[transport].message(HARD[0])
    url = wire.on(f"/prompt-{transport}", says(transport, data, end=False))
    watch = engine.subscribe(url, transport=transport).until(lambda watch: watch.messages)
    assert watch.messages[0]["lastEventId"] == "e-1"
    watch.close()


def test_long_polls_bring_what_comes_and_go_on_behind_it(engine: Engine, wire: Wire) -> None:
    url = wire.on(
        "/polls",
        answers(poll("ready", HARD[0], HARD[2])),
        answers(poll("ready", HARD[3], reset=True)),
        answers(poll("waiting", last_event_id="e-9", retry=1)),
        answers(poll("done", last_event_id="e-9")),
        never,
    )
    watch = engine.subscribe(url, transport="longpoll")
    watch.state("ended")
    assert received(watch) == expected([HARD[0], HARD[2], HARD[3]])
    assert watch.resets == 1
    assert [request.last_event_id for request in wire.requests] == ["", "e-3", "e-4", "e-9"]
    assert {request.headers["Accept"] for request in wire.requests} == {"application/json"}


def test_a_failing_source_is_told_until_a_message_comes(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    parts = [form.failing, form.heartbeat, form.message(HARD[0])]
    watch = engine.subscribe(wire.on(f"/failing-{transport}", says(transport, *parts, end=False)), transport=transport)
    watch.until(lambda watch: watch.messages)
    assert [state["state"] for state in watch.states] == ["connecting", "live", "failing", "live"]
    watch.close()


def test_a_source_that_works_again_is_told_before_a_message_comes(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    parts = [form.failing, form.working, form.heartbeat]
    watch = engine.subscribe(wire.on(f"/working-{transport}", says(transport, *parts, end=False)), transport=transport)
    watch.until(lambda watch: len(watch.states) == 4)
    assert [state["state"] for state in watch.states] == ["connecting", "live", "failing", "live"]
    assert not watch.messages
    watch.close()


def parts(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


@pytest.mark.parametrize(
    "content_type", ['multipart/x-mixed-replace; boundary="b c"', "Multipart/X-Mixed-Replace;BOUNDARY=b"]
)
def test_the_boundary_is_read_as_mime_has_it(node: Node, wire: Wire, content_type: str) -> None:
    boundary = "b c" if '"' in content_type else "b"

    def mime(exchange: Exchange) -> None:
        body = parts(
            "what stands before is no part", f"--{boundary}", "content-length:2", "X-MESSAGE-ID:  e-1", "", "42"
        )
        exchange.stream(content_type, body, parts(f"--{boundary}--"))
        exchange.end()

    watch = node.subscribe(wire.on("/mime", mime, never))
    watch.state("ended")
    assert received(watch) == [{"id": "e-1", "content": "42"}], "a part without a type is plain text"


@pytest.mark.parametrize("content_type", ["application/problem+json", "Application/JSON ;charset=utf-8"])
def test_a_part_of_any_json_type_is_its_value(node: Node, wire: Wire, content_type: str) -> None:
    part = parts(f"Content-Type: {content_type}", "Content-Length: 2", "X-Message-Id: e-1", "", "42", "--3f9a0c")
    watch = node.subscribe(wire.on("/json", says("multipart", part, STREAMS["multipart"].end)))
    watch.state("ended")
    assert received(watch) == [{"id": "e-1", "content": 42}]


def test_a_stream_without_its_boundary_is_no_stream(node: Node, wire: Wire) -> None:
    def bare(exchange: Exchange) -> None:
        exchange.stream("multipart/x-mixed-replace", b"--b\r\n")
        exchange.end()

    watch = node.subscribe(wire.on("/bare", bare, says("multipart", STREAMS["multipart"].end)))
    watch.state("ended")
    assert watch.state("waiting")["reason"] == "no boundary in multipart/x-mixed-replace"


def test_what_stands_where_the_boundary_must_ends_the_connection(node: Node, wire: Wire) -> None:
    part = parts("Content-Length: 2", "X-Message-Id: e-1", "", "42" + "7" * 100, "--3f9a0c")
    watch = node.subscribe(wire.on("/wrong", says("multipart", part), says("multipart", STREAMS["multipart"].end)))
    watch.state("ended")
    assert watch.state("waiting")["reason"] == "expected the boundary, got " + "7" * 60


def test_an_end_whose_part_was_announced_is_the_end(node: Node, wire: Wire) -> None:
    announced = parts("Content-Type: application/xml", "") + STREAMS["multipart"].end.removeprefix(b"\r\n")
    watch = node.subscribe(wire.on("/announced", says("multipart", announced), never))
    watch.state("ended")
    assert watch.messages == []


def test_polls_tell_that_the_source_fails_and_then_of_the_message(node: Node, wire: Wire) -> None:
    url = wire.on(
        "/failing-polls",
        answers(poll("failing", failing=True)),
        answers(poll("ready", HARD[0])),
        answers(poll("ready", HARD[3], failing=True)),
        answers(poll("done")),
    )
    watch = node.subscribe(url, transport="longpoll")
    watch.state("ended")
    told = [state["state"] for state in watch.states if state["state"] not in ("connecting", "waiting")]
    assert told == ["live", "failing", "live", "failing", "ended"]


@pytest.mark.heavy
def test_a_long_line_takes_as_long_as_its_bytes(node: Node, wire: Wire) -> None:
    """A reader that joins what it has with each piece that comes takes 22 s for 64 MB."""
    text = "x" * 64_000_000
    form = STREAMS["jsonlines"]
    url = wire.on("/long", says("jsonlines", form.message(Sent("e-1", text)), form.end), never)
    began = time.monotonic()
    watch = node.subscribe(url, transport="jsonlines", closeAfter="e-1", heartbeat=60_000)
    watch.until(lambda watch: watch.messages)
    assert watch.messages[0]["content"] == text
    assert time.monotonic() - began < 10
