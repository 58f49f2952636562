"""The pages of `json_yield` in Chromium, against a real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.router import Router
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pushdemo.demo import main
from pushdemo.demo.document import document
from pushdemo.demo.job import hash_files, standard_library
from pushdemo.web.sessions import Sessions
from tests.support import chromium, port_of, require, serving

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 60  # seconds
PRIMES = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def demo() -> Router:
    return main()


@pytest.fixture
def sessions(demo: Router) -> Iterator[Sessions]:
    sessions: Sessions = demo.registry["pushdemo.generators"]
    yield sessions
    assert sessions.close(BOUND) == 0


@pytest.fixture
def site(demo: Router, sessions: Sessions) -> Iterator[str]:
    """The address of a server with the demo, under the strictest policy that its pages must do with."""

    def strict(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        policy = ("Content-Security-Policy", "default-src 'self'")
        return demo(environ, lambda status, headers, *rest: start_response(status, [*headers, policy], *rest))

    with serving(strict) as server:
        yield f"http://127.0.0.1:{port_of(server)}"


class Page:
    """What a visitor of one page sees and does."""

    def __init__(self, chrome: Any, site: str) -> None:
        self.chrome = chrome
        self.site = site

    def open(self, path: str) -> None:
        self.chrome.get(self.site + path)

    def find(self, id: str) -> Any:
        return self.chrome.find_element(By.ID, id)

    def text(self, id: str) -> str:
        return str(self.find(id).get_property("textContent"))

    def state(self) -> str:
        return self.text("state")

    def numbers(self) -> list[int]:
        script = "return Array.from(document.querySelectorAll('#numbers li'), item => Number(item.textContent))"
        return list(self.chrome.execute_script(script))

    def digests(self) -> dict[str, str]:
        script = (
            "return Array.from(document.querySelectorAll('#digests tr'), row => row.innerText.trim().split(/\\s+/))"
        )
        return dict(self.chrome.execute_script(script))

    def progress(self) -> float:
        return float(self.chrome.execute_script("return document.getElementById('bar').value"))

    def wait(self, true: Callable[[], Any]) -> None:
        WebDriverWait(self.chrome, BOUND, poll_frequency=0.02).until(lambda _: true())

    def network(self, *, latency: int = 0, offline: bool = False) -> None:
        """A network whose every request takes `latency` ms longer, or none."""
        conditions = {"latency": latency, "offline": offline, "downloadThroughput": -1, "uploadThroughput": -1}
        self.chrome.execute_cdp_cmd("Network.enable", {})
        self.chrome.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


@pytest.fixture
def page(chrome: Any, site: str) -> Iterator[Page]:
    page = Page(chrome, site)
    chrome.get_log("browser")  # what the test before left
    yield page
    page.network()
    chrome.get("about:blank")


def complaints(chrome: Any) -> list[str]:
    return [entry["message"] for entry in chrome.get_log("browser")]


def test_primes_start_stop_and_start_anew(page: Page, sessions: Sessions) -> None:
    page.open("/primes")
    assert page.state() == "Not started"
    page.find("toggle").click()
    page.wait(lambda: len(page.numbers()) >= 4)
    assert page.numbers() == PRIMES[: len(page.numbers())]
    assert page.state() == "Running"
    page.find("toggle").click()
    assert page.state() == "Stopped"
    page.wait(lambda: sessions.info()["open"] == 0)
    page.find("toggle").click()
    page.wait(lambda: page.numbers() == PRIMES[:2])
    assert sessions.info()["open"] == 1
    assert complaints(page.chrome) == []


def test_primes_go_on_after_a_lost_connection_with_nothing_lost_or_twice(page: Page) -> None:
    page.open("/primes")
    page.find("toggle").click()
    page.wait(lambda: len(page.numbers()) >= 2)
    page.network(offline=True)
    page.wait(lambda: re.fullmatch(r"Asking again in 1 s: .+", page.state()))
    seen = len(page.numbers())
    page.network()
    page.wait(lambda: len(page.numbers()) >= seen + 2)
    assert page.numbers() == PRIMES[: len(page.numbers())]
    assert page.state() == "Running"


@pytest.mark.parametrize(("path", "begin"), [("/primes", "toggle"), ("/document", None)])
def test_leaving_the_page_closes_the_generator(page: Page, sessions: Sessions, path: str, begin: str | None) -> None:
    page.network(latency=50)
    page.open(path)
    if begin:
        page.find(begin).click()
    page.wait(lambda: sessions.info()["open"] == 1)
    page.chrome.get("about:blank")
    page.wait(lambda: sessions.info()["open"] == 0)


def test_primes_by_the_keyboard(page: Page) -> None:
    page.open("/primes")
    page.chrome.execute_script("document.getElementById('main').focus()")
    page.chrome.switch_to.active_element.send_keys(Keys.TAB)
    assert page.chrome.switch_to.active_element.get_property("id") == "toggle"
    page.chrome.switch_to.active_element.send_keys(Keys.SPACE)
    page.wait(lambda: page.numbers())
    page.chrome.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.state() == "Stopped"


def test_the_document_appears_line_by_line_while_it_is_read(page: Page, sessions: Sessions) -> None:
    page.network(latency=20)
    page.open("/document")
    page.wait(lambda: 0 < page.text("text").count("\n") < 200)
    assert sessions.info()["open"] == 1
    assert page.find("text").get_attribute("aria-busy") == "true"
    page.network()
    page.wait(lambda: page.state() == "Read to its end")
    assert page.text("text") == document().read_text(encoding="utf-8")
    assert page.find("text").get_attribute("aria-busy") == "false"
    below = "const e = document.getElementById('text'); return e.scrollHeight - e.scrollTop - e.clientHeight"
    assert page.chrome.execute_script(below) < 2, "the reader sees its end"
    assert complaints(page.chrome) == []


def test_the_job_runs_to_its_digest(page: Page) -> None:
    page.open("/job")
    page.find("start").click()
    page.wait(lambda: page.state() == "Finished")
    (*_, last) = hash_files(standard_library())
    assert page.digests() == last["digests"]
    assert page.text("files") == f"{last['files']:,} of {last['files']:,}"
    assert page.progress() == last["total_bytes"]
    assert page.text("percent") == "100 %"
    assert page.find("start").is_enabled()
    assert complaints(page.chrome) == []


def test_the_job_goes_on_where_it_was_after_a_reload(page: Page, sessions: Sessions) -> None:
    page.network(latency=150)
    page.open("/job")
    page.find("start").click()
    page.wait(lambda: page.progress() > 0)
    address, reached = page.chrome.current_url, page.progress()
    page.chrome.refresh()
    page.wait(lambda: page.state() == "Hashing")
    assert page.chrome.current_url == address
    assert page.progress() >= reached
    assert sessions.info()["open"] == 1
    page.network()
    page.wait(lambda: page.state() == "Finished")
    page.wait(lambda: sessions.info() == {"open": 0, "ended": 1, "waiting": 0})  # the poll behind the last item
    page.chrome.refresh()
    page.wait(lambda: page.state() == "Finished")
    assert len(page.digests()["sha256"]) == 64


UNKNOWN = "The server does not know this job: it was cancelled, or nobody had asked for too long"


@pytest.mark.parametrize(
    ("address", "state"), [("/job", "Not started"), ("/job#00000000-0000-4000-8000-000000000000", UNKNOWN)]
)
def test_the_bar_of_a_job_that_is_not_there_is_empty(page: Page, address: str, state: str) -> None:
    page.open(address)
    # The page's first words are "Not started" too: the button is enabled only by its script.
    page.wait(lambda: page.state() == state and page.find("start").is_enabled())
    bar = "const bar = document.getElementById('bar'); return [bar.hasAttribute('value'), bar.position]"
    assert page.chrome.execute_script(bar) == [True, 0]


def test_two_windows_watch_one_job(page: Page, sessions: Sessions) -> None:
    page.network(latency=100)
    page.open("/job")
    page.find("start").click()
    page.wait(lambda: page.progress() > 0)
    address, first = page.chrome.current_url, page.chrome.current_window_handle
    page.chrome.switch_to.new_window("tab")
    try:
        page.chrome.get(address)
        page.wait(lambda: page.state() == "Finished")
        digests = page.digests()
    finally:
        page.chrome.close()
        page.chrome.switch_to.window(first)
    page.wait(lambda: page.state() == "Finished")
    assert page.digests() == digests
    page.wait(lambda: sessions.info()["ended"] == 1)


def test_the_job_is_cancelled_and_the_focus_stays_on_a_button(page: Page, sessions: Sessions) -> None:
    page.network(latency=100)
    page.open("/job")
    page.find("start").send_keys(Keys.ENTER)
    assert page.chrome.switch_to.active_element.get_property("id") == "cancel"
    page.wait(lambda: page.progress() > 0)
    page.chrome.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: page.state() == "Cancelled")
    assert page.chrome.switch_to.active_element.get_property("id") == "start"
    assert page.chrome.current_url == f"{page.site}/job"
    page.wait(lambda: sessions.info()["open"] == 0)


def test_coming_back_to_a_job_that_is_forgotten_says_so_and_begins_none(page: Page, sessions: Sessions) -> None:
    page.open("/job#00000000-0000-4000-8000-000000000000")
    page.wait(lambda: page.state() == UNKNOWN)
    assert sessions.info() == {"open": 0, "ended": 0, "waiting": 0}
    page.find("start").click()
    page.wait(lambda: page.state() == "Finished")
