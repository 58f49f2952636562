"""The demo's rooms: two visitors in two rooms, and a third window that is in both."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pushdemo.demo import main
from pushdemo.demo.rooms import Rate
from tests.fixtureapps import hostile
from tests.support import chromium, port_of, require, serving, wait_until

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 60.0  # seconds: a browser on a busy machine takes its time


class Window:
    """One window, in one room."""

    def __init__(self, chrome: Any, site: str, room: str) -> None:
        chrome.switch_to.new_window("window")
        self.chrome = chrome
        self.handle = chrome.current_window_handle
        chrome.get(f"{site}/rooms/{room}")
        self.wait(lambda: self.text("state") == "Live")

    def text(self, id: str) -> str:
        self.chrome.switch_to.window(self.handle)
        return str(self.chrome.execute_script("return document.getElementById(arguments[0]).textContent", id))

    def say(self, name: str, text: str) -> None:
        self.chrome.switch_to.window(self.handle)
        field = self.chrome.find_element(By.ID, "name")
        field.clear()
        field.send_keys(name)
        self.chrome.find_element(By.ID, "text").send_keys(text, Keys.ENTER)
        self.wait(lambda: self.chrome.find_element(By.ID, "text").get_property("value") == "")

    def said(self) -> list[str]:
        self.chrome.switch_to.window(self.handle)
        script = "return [...document.querySelectorAll('#said li')].map(li => [...li.children].map(e => e.textContent))"
        return [": ".join(parts) for parts in self.chrome.execute_script(script)]

    def wait(self, condition: Callable[[], Any]) -> None:
        wait_until(condition, BOUND, "what the window must show")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def site() -> Iterator[str]:
    app = main()
    app.registry["pushdemo.demo.rate"] = Rate(clock=lambda: 0.0)  # a slow browser is allowed no more than a fast one
    with serving(app) as server:
        yield f"http://127.0.0.1:{port_of(server)}"


@pytest.fixture
def enter(chrome: Any, site: str) -> Iterator[Callable[[str], Window]]:
    """Opens a window in a room; all but the first are closed in the end, and that one is empty again."""
    chrome.get_log("browser")
    yield lambda room: Window(chrome, site, room)
    first, *others = chrome.window_handles
    for handle in others:
        chrome.switch_to.window(handle)
        chrome.close()
    chrome.switch_to.window(first)
    chrome.get("about:blank")


def test_each_room_hears_its_own_and_says_how_many_are_there(enter: Callable[[str], Window], chrome: Any) -> None:
    lobby, kitchen, also_lobby = enter("lobby"), enter("kitchen"), enter("lobby")
    lobby.say("Ann", "Who is there?")
    also_lobby.wait(lambda: also_lobby.said() == ["Ann: Who is there?"])
    also_lobby.say("Ben", "It is me")
    kitchen.say("Cem", "Soup")
    for window in (lobby, also_lobby):
        window.wait(lambda window=window: window.said() == ["Ann: Who is there?", "Ben: It is me"])
        window.wait(lambda window=window: window.text("there") == "2 are here")
    kitchen.wait(lambda: kitchen.said() == ["Cem: Soup"])
    kitchen.wait(lambda: kitchen.text("there") == "You alone are here")
    late = enter("lobby")
    late.wait(lambda: late.said() == ["Ann: Who is there?", "Ben: It is me"])
    lobby.wait(lambda: lobby.text("there") == "3 are here")
    assert chrome.get_log("browser") == []


def test_what_is_said_is_text_and_too_much_is_told(enter: Callable[[str], Window], chrome: Any) -> None:
    room = enter("lobby")
    for text in hostile.TEXTS[:5]:
        room.say("Ann", text)
    room.wait(lambda: room.said() == [f"Ann: {text}" for text in hostile.TEXTS[:5]])
    assert chrome.execute_script("return document.querySelectorAll('#said li :not(strong, span)').length") == 0
    assert chrome.execute_script("return window.executed ?? null") is None
    chrome.find_element(By.ID, "text").send_keys("once more", Keys.ENTER)
    room.wait(lambda: room.text("why") == "Not said: That was a lot at once. Wait a moment.")
    assert chrome.find_element(By.ID, "text").get_property("value") == "once more", "it can be sent again"


def test_the_front_page_leads_to_a_room(enter: Callable[[str], Window], chrome: Any, site: str) -> None:
    chrome.get(site + "/")
    chrome.find_element(By.LINK_TEXT, "Say something").click()
    wait_until(lambda: chrome.current_url == f"{site}/rooms/lobby", BOUND, "the room")


def test_eight_tabs_of_the_front_page_have_one_connection_and_a_room_still_works(
    enter: Callable[[str], Window], chrome: Any, site: str
) -> None:
    """A browser has six connections to a host: with one for each tab, what is said would wait for ever."""
    tabs = []
    for _ in range(8):
        chrome.switch_to.new_window("window")
        tabs.append(chrome.current_window_handle)
        chrome.get(site + "/")
    messages = "return document.querySelectorAll('#container > li').length"
    for tab in tabs:
        chrome.switch_to.window(tab)
        wait_until(lambda: chrome.execute_script(messages), BOUND, "a message in each tab")
    with urllib.request.urlopen(
        urllib.request.Request(site + "/status", headers={"Accept": "application/json"})
    ) as answer:
        clients = {topic["topic"]: topic["clients"] for topic in json.load(answer)["topics"]}
    assert clients["server"] == 1
    room = enter("lobby")
    room.say("Ann", "There is room")
    room.wait(lambda: room.said() == ["Ann: There is room"])
