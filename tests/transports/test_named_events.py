"""The name that a publisher has given an event, by each transport."""

from __future__ import annotations

import json

import pytest

from pushdemo.topics.message import Message
from pushdemo.transports import jsonlines, longpoll, multipart, sse
from pushdemo.transports.base import Names


def message(event: str = "alarm") -> Message:
    return Message(1, 1, "e-1", b"text", "text/plain", topic="news", event=event)


def test_a_part_bears_it_as_a_header_line() -> None:
    head = multipart.encode(message()).partition(b"\r\n\r\n")[0].splitlines()
    assert b"X-Event: alarm" in head
    assert b"X-Event" not in multipart.encode(message(""))


def test_a_line_and_an_answer_bear_it_as_a_member() -> None:
    line = json.loads(jsonlines.encode(message()))
    assert line == {"id": "e-1", "content": "text", "event": "alarm"}
    assert json.loads(longpoll.answer("ready", [message()]))["messages"] == [line]
    assert "event" not in json.loads(jsonlines.encode(message("")))


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ("", ["id: e-1", "event: alarm", "data: text"]),
        ("topic", ["id: e-1", "event: alarm", "topic: news", "data: text"]),
        ("event", ["id: e-1", "event: alarm", "topic: news", "data: text"]),
    ],
)
def test_an_event_keeps_it_before_its_topics_name(names: Names, fields: list[str]) -> None:
    assert sorted(sse.encode(message(), names).decode().split()) == sorted(" ".join(fields).split())
