"""docs/topics.md: its application runs as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from webtest import TestApp

from tests.support import ROOT

CHAPTER = (ROOT / "docs" / "topics.md").read_text(encoding="utf-8")
POLICY = """
class Policy:
    def authenticated_userid(self, request):
        return request.params.get("user")


def includeme(config):
    config.set_security_policy(Policy())
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestApp]:
    """The chapter's application, in which everyone is who they say."""
    found = re.search(r"\*\*chat.py\*\*\n\n```python\n(.*?)```", CHAPTER, re.DOTALL)
    assert found
    (tmp_path / "chat_of_chapter.py").write_text(found[1], encoding="utf-8")
    (tmp_path / "policy_of_chapter.py").write_text(POLICY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"pyramid.includes": "policy_of_chapter", "pushdemo.longpoll.timeout": "0.05"}
    made = TestApp(importlib.import_module("chat_of_chapter").main({}, **settings))
    yield made
    made.app.registry["pushdemo.topics"].close()
    for name in ("chat_of_chapter", "policy_of_chapter"):
        sys.modules.pop(name, None)


def contents(app: TestApp, path: str) -> list[object]:
    return [message["content"] for message in app.get(path, {"transport": "longpoll"}).json["messages"]]


def test_a_room_shows_what_has_been_said_there_and_nowhere_else(app: TestApp) -> None:
    for text in ("one", "two"):
        app.post("/rooms/7", {"text": text})
    assert contents(app, "/rooms/7") == ["one", "two"]
    assert contents(app, "/rooms/8") == []


def test_a_user_is_brought_the_common_and_the_personal_topic(app: TestApp) -> None:
    catalog = app.app.registry["pushdemo.topics"]
    catalog["news"].publish("for all")
    for user in ("ann@example.org", "bob"):
        catalog.publish(catalog.refer("orders.{user}", {"user": user}), {"of": user})
    answer = app.get("/orders", {"transport": "longpoll", "user": "ann@example.org"}).json
    assert [(message["topic"], message["content"]) for message in answer["messages"]] == [
        ("news", "for all"),
        ("orders.~ann%40example%2Eorg", {"of": "ann@example.org"}),
    ]


def test_a_visitor_without_a_name_is_refused(app: TestApp) -> None:
    app.get("/orders", status=403)
