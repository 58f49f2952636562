"""The rooms: their pages, what visitors may say and how often, and who is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from pyramid.router import Router
from webtest import TestApp

from pushdemo.demo import main
from pushdemo.demo.rooms import LONGEST_NAME, LONGEST_TEXT, MESSAGES, Rate, there
from tests.demo.samples import Clock


@pytest.fixture
def demo() -> Iterator[Router]:
    demo = main(**{"pushdemo.longpoll.timeout": "0.3"})
    yield demo
    demo.registry["pushdemo.topics"].close()


@pytest.fixture
def app(demo: Router) -> TestApp:
    return TestApp(demo)


def said(app: TestApp, room: str) -> list[str]:
    """What a visitor who comes now reads."""
    answer = app.get(f"/rooms/{room}/stream?transport=longpoll").json
    contents = [message["content"] for message in answer["messages"] if message["topic"].startswith("room.")]
    return [ElementTree.fromstring(content).text or "" for content in contents]


def say(app: TestApp, room: str, name: str = "Ann", text: str = "Hello", **expected: Any) -> Any:
    """Fill in the page's form and send it as its script does."""
    form = app.get(f"/rooms/{room}").forms["say"]
    form["name"], form["text"] = name, text
    return form.submit(headers={"Accept": "text/plain"}, **expected)


def test_what_is_said_is_read_in_its_room_alone(app: TestApp) -> None:
    assert say(app, "lobby", text="<b>one</b>").status_int == 204
    say(app, "kitchen", name="Ben", text="two")
    assert said(app, "lobby") == ["Ann: <b>one</b>"]
    assert said(app, "kitchen") == ["Ben: two"]


def test_a_form_without_a_script_leads_back_to_the_page(app: TestApp) -> None:
    form = app.get("/rooms/lobby").forms["say"]
    form["name"], form["text"] = "Ann", "Hello"
    assert form.submit(headers={"Accept": "text/html"}).location == "http://localhost/rooms/lobby"


def test_a_post_of_another_site_is_refused(app: TestApp) -> None:
    answer = app.post("/rooms/lobby", {"name": "Ann", "text": "Hello"}, headers={"Accept": "text/plain"}, status=400)
    assert "CSRF" in answer.text
    assert said(app, "lobby") == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("", "Hello", f"A name has 1 to {LONGEST_NAME} characters"),
        (" \t", "Hello", f"A name has 1 to {LONGEST_NAME} characters"),
        ("x" * (LONGEST_NAME + 1), "Hello", f"A name has 1 to {LONGEST_NAME} characters"),
        ("Ann: Ben", "Hello", "and no colon"),
        ("Ann", "\n", f"A message has 1 to {LONGEST_TEXT} characters"),
        ("Ann", "x" * (LONGEST_TEXT + 1), f"A message has 1 to {LONGEST_TEXT} characters"),
    ],
)
def test_what_cannot_be_said_is_refused_and_says_why(app: TestApp, name: str, text: str, words: str) -> None:
    assert words in say(app, "lobby", name, text, status=400).text
    assert said(app, "lobby") == []


def test_a_file_is_nothing_that_can_be_said(app: TestApp) -> None:
    token = app.get("/rooms/lobby").forms[0]["csrf_token"].value
    fields = {"name": "Ann", "csrf_token": token}
    answer = app.post("/rooms/lobby", fields, upload_files=[("text", "a.txt", b"Hello")], status=400)
    assert "A message has 1 to" in answer.text


def test_line_breaks_do_not_make_a_message_look_like_two(app: TestApp) -> None:
    say(app, "lobby", text="one\r\nBen: two")
    assert said(app, "lobby") == ["Ann: one Ben: two"]


def test_who_says_too_much_at_once_is_told_when_to_go_on(app: TestApp) -> None:
    answers = [say(app, "lobby", status="*") for _ in range(8)]
    assert [answer.status_int for answer in answers] == [204] * 5 + [429] * 3
    assert int(answers[-1].headers["Retry-After"]) in (1, 2, 3)


@pytest.mark.parametrize("room", ["a/b", "x" * (LONGEST_NAME + 1), "{room}", "~lobby", " ", "<b>", ".."])
def test_a_name_that_no_room_can_have_is_not_there(app: TestApp, room: str) -> None:
    app.get("/rooms/" + quote(room), status=404)


@pytest.mark.parametrize("room", ["lobby", "Room 7", "Küche", "a.b", "x" * LONGEST_NAME])
def test_a_room_is_there_when_it_is_first_visited(app: TestApp, room: str) -> None:
    assert app.get("/rooms/" + quote(room)).html.h1.text == f"Room “{room}”"
    say(app, quote(room))
    assert said(app, quote(room)) == ["Ann: Hello"]


def test_rooms_lead_to_the_first_or_to_the_one_that_is_named(app: TestApp) -> None:
    assert app.get("/rooms").location == "http://localhost/rooms/lobby"
    assert app.get("/rooms?room=Room 7").location == "http://localhost/rooms/Room%207"


def test_the_count_is_of_those_who_listen(demo: Router) -> None:
    topics, backend = (demo.registry[f"pushdemo.{part}"] for part in ("topics", "backend"))
    assert there(topics, backend, "lobby") == 0
    topic = topics.open(topics.refer(MESSAGES, {"room": "lobby"}))
    topic.join()
    assert there(topics, backend, "lobby") == 1
    assert there(topics, backend, "kitchen") == 0
    topic.leave()
    assert there(topics, backend, "lobby") == 0


def test_a_visitor_may_say_a_burst_and_then_one_in_a_time() -> None:
    clock = Clock()
    rate = Rate(burst=3, seconds=2.0, clock=clock)
    assert [rate.wait("ann") for _ in range(4)] == [0, 0, 0, 2.0]
    assert rate.wait("ben") == 0
    clock.now += 2.0
    assert [rate.wait("ann") for _ in range(2)] == [0, 2.0]
    clock.now += 1000
    assert [rate.wait("ann") for _ in range(4)] == [0, 0, 0, 2.0]


def test_the_visitors_that_are_remembered_are_bounded() -> None:
    rate = Rate(burst=1, limit=2, clock=Clock())
    assert [rate.wait(visitor) > 0 for visitor in ("ann", "ben", "cem", "ann", "cem")] == [False] * 4 + [True]
