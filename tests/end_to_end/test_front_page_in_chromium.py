"""The front page and `/primes` in Chromium, against a real `pserve`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from tests.fixtureapps import hostile
from tests.support import Client, Pserve, chromium, pserve, require, wait_until

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 60.0  # seconds: a browser on a busy machine takes its time
LONGEST_LIST = 200  # of static/home.js
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def chrome(browser: Any) -> Any:
    """The browser, rid of the page of the test before, which asks for its server for ever, and of its complaints."""
    browser.get("about:blank")
    console(browser)
    return browser


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Pserve]:
    """The demo with hostile texts, many a second."""
    app = {"use": "call:tests.fixtureapps.hostile:main", "pushdemo.interval": 0.02}
    with pserve(tmp_path, app) as running:
        yield running


class Page:
    """The front page as its reader sees it."""

    def __init__(self, driver: Any, running: Pserve) -> None:
        self.driver = driver
        driver.get(running.url + "/")

    def texts(self) -> list[str]:
        """The messages in the list, from the top."""
        script = "return [...document.querySelectorAll('#container > li > :first-child')].map(e => e.textContent)"
        return self.driver.execute_script(script)  # type: ignore[no-any-return]

    def numbers(self) -> list[int]:
        """The messages' numbers, from the top."""
        items = self.driver.execute_script(
            "return [...document.querySelectorAll('#container > li')].map(e => e.textContent)"
        )
        return [int(re.search(r"#(\d+)", item)[1]) for item in items if "#" in item]  # type: ignore[index]

    def state(self) -> str:
        return str(self.driver.find_element(By.ID, "state").get_attribute("data-state"))

    def wait(self, condition: Any, what: str) -> None:
        wait_until(lambda: condition(self), BOUND, what)


def console(driver: Any) -> list[str]:
    """What the browser has complained about since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_messages_appear_newest_first_and_the_console_is_silent(chrome: Any, tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 0.2}) as running:
        page = Page(chrome, running)
        page.wait(lambda page: len(page.texts()) >= 4, "four messages")
        assert page.state() == "live"
        numbers = page.numbers()
        assert numbers == list(range(numbers[0], 0, -1))
        assert all(re.fullmatch(DATE, text) for text in page.texts())
        assert console(chrome) == []


def test_a_row_has_one_clock_and_a_badge_that_says_how_old_the_cached_data_is(chrome: Any, tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 1, "pushdemo.memorize.duration": 600}) as running:
        page = Page(chrome, running)
        page.wait(lambda page: len(page.texts()) >= 3, "three messages")
        row = "return [...document.querySelectorAll('#container > li')].map(li => [...li.querySelectorAll(%r)].map(%s))"
        times = chrome.execute_script(row % ("time", "e => [e.textContent, e.dateTime]"))
        assert all(datetime.fromisoformat(text) == datetime.fromisoformat(iso) for ((text, iso),) in times)
        assert len({text for ((text, _),) in times}) > 1, "new ones are visibly new, unless the machine was held up"
        badges = [
            badge for ((badge,),) in chrome.execute_script(row % (".tag.cached, .tag.fresh", "e => [e.textContent]"))
        ]
        assert badges[-1] == "gathered now"
        ages = [int(re.fullmatch(r"cached (\d+) of 600 s", badge)[1]) for badge in reversed(badges[:-1])]  # type: ignore[index]
        assert ages == sorted(ages)


def test_the_list_begins_with_what_was_sent_before(chrome: Any, tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 0.1}) as running, Client(running.port) as beside:
        beside.get("/server/index?transport=jsonlines")
        beside.head()
        for _ in range(4):  # the preamble and three messages
            beside.chunk()
        page = Page(chrome, running)
        page.wait(lambda page: 1 in page.numbers(), "the first message of all")


@pytest.mark.parametrize("transport", ["multipart", "sse", "jsonlines", "longpoll"])
def test_on_the_wire_is_what_the_server_has_sent(chrome: Any, tmp_path: Path, transport: str) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 1000}) as running:
        page = Page(chrome, running)
        page.wait(lambda page: page.texts(), "the message")
        chrome.execute_script(f"document.querySelector('input[value={transport}]').click()")
        shown, command, accept = (
            str(chrome.execute_script(f"return document.getElementById('{id}').textContent"))
            for id in ("wire", "curl", "accept")
        )
        assert command == f"curl -N -H '{accept}' \\\n  {running.url}/server/index"
        with Client(running.port) as client:
            client.get("/server/index", accept)
            if transport == "longpoll":
                assert client.response()[2].decode() == shown
            else:
                client.head()
                sent = ""
                while shown not in sent.replace("\r\n", "\n"):
                    sent += client.chunk().decode()


def test_one_more_message_appears_after_a_restart(chrome: Any, tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 1000}) as running:
        page = Page(chrome, running)
        page.wait(lambda page: len(page.texts()) == 1, "the first message")
        assert running.stop() == 0
    page.wait(lambda page: page.state() == "waiting", "the page's word that the connection is lost")
    with pserve(tmp_path, {"pushdemo.interval": 1000}, port=running.port):
        page.wait(lambda page: page.state() == "live", "the connection")
        page.wait(lambda page: len(page.numbers()) == 2, "the message of the new server")


@pytest.mark.parametrize("transport", ["multipart", "sse", "jsonlines", "longpoll"])
def test_no_message_is_executed(chrome: Any, attack: Pserve, transport: str) -> None:
    page = Page(chrome, attack)
    chrome.execute_script(f"document.querySelector('input[value={transport}]').click()")
    page.wait(lambda page: page.state() == "live", "the connection")
    seen = len(page.numbers())
    page.wait(lambda page: len(page.numbers()) >= seen + len(hostile.TEXTS), "each text once")
    assert set(page.texts()) == set(hostile.TEXTS)
    assert chrome.execute_script("return window.executed ?? null") is None
    made = "return document.querySelectorAll('#container :is(script, img, svg, iframe, b)').length"
    assert chrome.execute_script(made) == 0
    assert console(chrome) == []


def test_the_list_is_bounded(chrome: Any, attack: Pserve) -> None:
    page = Page(chrome, attack)
    page.wait(lambda page: int(chrome.find_element(By.ID, "received").text) > LONGEST_LIST + 20, "enough messages")
    assert len(page.numbers()) <= LONGEST_LIST
    assert page.numbers()[0] > LONGEST_LIST, "it is the old ones that go"


def test_primes_appear_when_asked_for(chrome: Any, tmp_path: Path) -> None:
    with pserve(tmp_path) as running:
        chrome.get(running.url + "/primes")
        chrome.find_element(By.ID, "toggle").click()
        numbers = "return [...document.querySelectorAll('#numbers li')].map(e => e.textContent)"
        wait_until(lambda: len(chrome.execute_script(numbers)) >= 5, BOUND, "five primes")
        assert chrome.execute_script(numbers)[:5] == ["1", "2", "3", "5", "7"]
        assert console(chrome) == []


@pytest.mark.parametrize("path", ["/", "/primes"])
def test_a_narrow_page_does_not_scroll_sideways(chrome: Any, attack: Pserve, path: str) -> None:
    metrics = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        chrome.get(attack.url + path)
        if path == "/":
            items = "return document.querySelectorAll('#container li').length"
            wait_until(lambda: chrome.execute_script(items) >= len(hostile.TEXTS), BOUND, "each text once")
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= 320
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
