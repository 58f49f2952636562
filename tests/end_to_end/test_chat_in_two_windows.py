"""A chat in two windows of Chromium: another application than the demo, with the add-on's real front end and server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.fixtureapps import chat, hostile
from tests.support import chromium, port_of, require, serving

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 60  # seconds


class Window:
    """One browser, whose visitor has a name."""

    def __init__(self, chrome: Any, site: str) -> None:
        self.chrome = chrome
        self.site = site

    def enter(self, name: str, word: str = "") -> None:
        self.chrome.get(f"{self.site}/login")
        self.chrome.find_element(By.NAME, "name").send_keys(name)
        self.chrome.find_element(By.NAME, "word").send_keys(word, Keys.ENTER)
        self.wait(lambda: self.chrome.current_url.endswith("/lobby"))
        self.wait(self.live)

    def live(self) -> bool:
        return bool(self.chrome.find_element(By.ID, "state").text == "live")

    def say(self, text: str) -> None:
        self.chrome.find_element(By.NAME, "text").send_keys(text, Keys.ENTER)

    def said(self) -> list[str]:
        script = "return Array.from(document.querySelectorAll('#said li'), item => item.textContent)"
        return list(self.chrome.execute_script(script))

    def wait(self, true: Callable[[], Any]) -> None:
        WebDriverWait(self.chrome, BOUND, poll_frequency=0.02).until(lambda _: true())

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.chrome.get_log("browser")]


@contextmanager
def windows(site: str) -> Iterator[tuple[Window, Window]]:
    """Two browsers, each with cookies of its own."""
    with chromium() as first, chromium() as second:
        yield Window(first, site), Window(second, site)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Window, Window]]:
    """Two visitors in the lobby."""
    with serving(chat.main()) as server, windows(f"http://127.0.0.1:{port_of(server)}") as (first, second):
        first.enter("Left")
        second.enter("Right", chat.WORD)
        yield first, second


def test_each_sees_what_the_other_says(both: tuple[Window, Window]) -> None:
    left, right = both
    left.say("Who is there?")
    right.wait(lambda: right.said() == ["Left: Who is there?"])
    right.say("It is me.")
    expected = ["Left: Who is there?", "@Right: It is me."]
    for window in both:
        window.wait(lambda window=window: window.said() == expected)
    assert left.complaints() == right.complaints() == []


def test_what_is_said_is_text_and_is_never_executed(both: tuple[Window, Window]) -> None:
    left, right = both
    before = len(right.said())
    for text in hostile.TEXTS:
        left.say(text)
        left.wait(lambda: left.chrome.find_element(By.NAME, "text").get_property("value") == "")
    for window in both:
        window.wait(lambda window=window: len(window.said()) == before + len(hostile.TEXTS))
        assert window.said()[before:] == [f"Left: {text}" for text in hostile.TEXTS]
        assert window.chrome.execute_script("return document.querySelectorAll('#said li *').length") == 0
        assert window.chrome.execute_script("return window.executed === undefined")
        assert window.complaints() == []


def test_who_comes_later_reads_what_was_said(both: tuple[Window, Window]) -> None:
    left, right = both
    left.say("before the reload")
    right.wait(lambda: right.said()[-1] == "Left: before the reload")
    before = right.said()
    right.chrome.refresh()
    right.wait(lambda: right.said() == before)


def test_the_rooms_are_apart_and_one_is_guarded(both: tuple[Window, Window]) -> None:
    left, right = both
    left.chrome.get(f"{left.site}/staff")
    assert "403" in left.chrome.find_element(By.TAG_NAME, "body").text
    assert any("403" in complaint for complaint in left.complaints())  # the page itself, as it must
    right.chrome.get(f"{right.site}/staff")
    right.wait(right.live)
    right.say("among us")
    right.wait(lambda: right.said() == ["@Right: among us"])
    left.chrome.get(f"{left.site}/lobby")
    left.wait(left.said)
    assert "@Right: among us" not in left.said()
    script = "return fetch('/staff/messages', {cache: 'no-store'}).then(answer => answer.status)"
    assert left.chrome.execute_script(script) == 403
