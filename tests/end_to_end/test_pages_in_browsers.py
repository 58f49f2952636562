"""Every page of the demo as its visitors see it: in Chromium wide and narrow, light and dark; and in Firefox."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pushdemo.demo import main
from tests.support import ROOT, chromium, port_of, pserve, require, serving, wait_until

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

PAGES = ("/", "/rooms", "/load", "/primes", "/document", "/job", "/status")
WIDTHS = {"wide": 1280, "narrow": 360}
BOUND = 60.0  # seconds: a browser on a busy machine takes its time
NPM = "npm && npm install --no-save axe-core puppeteer-core typescript@5"


def node_module(path: str) -> Path | None:
    """A file of an npm package, in `node_modules` here or where NODE_PATH says."""
    folders = [ROOT / "node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))]
    return next((folder / path for folder in folders if (folder / path).exists()), None)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the demo behind our server."""
    with serving(main(**{"pushdemo.interval": "0.5"})) as server:
        yield f"http://127.0.0.1:{port_of(server)}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver
        driver.get("about:blank")


@pytest.fixture
def chrome(browser: Any) -> Iterator[Any]:
    browser.get_log("browser")  # what the test before left
    yield browser
    look(browser, "wide", "light")
    browser.get("about:blank")


def look(chrome: Any, width: str, scheme: str) -> None:
    """Open what comes next in a window of this width, for a reader who prefers this scheme."""
    size = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def is_live(chrome: Any) -> bool:
    """Whether what the page pushes by itself has come; other pages wait for a button."""
    script = "const state = document.getElementById('state'); return !state || state.dataset.state"
    return chrome.execute_script(script) not in ("connecting", None)


def text(chrome: Any, selector: str) -> str:
    return str(chrome.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def obstacles(chrome: Any) -> list[Any]:
    """What axe-core finds in the page as it is now."""
    axe = node_module("axe-core/axe.min.js")
    require(axe, "axe-core", NPM)
    assert axe is not None
    chrome.execute_script(axe.read_text(encoding="utf-8"))
    run = "const done = arguments[0]; axe.run().then(({violations}) => done(violations), error => done(String(error)))"
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in chrome.execute_async_script(run)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_for_everyone_and_the_console_is_silent(
    chrome: Any, site: str, path: str, width: str, scheme: str
) -> None:
    look(chrome, width, scheme)
    chrome.get(site + path)
    wait_until(lambda: is_live(chrome), BOUND, "what the page pushes")
    assert obstacles(chrome) == []
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[width], "it scrolls sideways"
    assert chrome.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_for_what_is_not_there_is_for_everyone(chrome: Any, site: str, scheme: str) -> None:
    look(chrome, "narrow", scheme)
    chrome.get(site + "/nowhere")
    assert obstacles(chrome) == []
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= WIDTHS["narrow"]
    (complaint,) = chrome.get_log("browser")
    assert "404" in complaint["message"]


def test_the_front_door_leads_everywhere(chrome: Any, site: str) -> None:
    chrome.get(site + "/")
    links = "return [...document.querySelectorAll('.cards a')].map(link => link.getAttribute('href'))"
    assert ["/", *chrome.execute_script(links)] == list(PAGES)


def pixels(chrome: Any) -> str:
    """What the picture shows now, drawn and read back."""
    script = """
        const image = document.getElementById("chart");
        if (!image.naturalWidth) return "";
        const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        return canvas.toDataURL();
    """
    return str(chrome.execute_script(script))


@pytest.mark.parametrize(("width", "chosen"), [("wide", r"v=\w+"), ("narrow", r"width=narrow&v=\w+")])
def test_the_picture_of_the_load_moves(chrome: Any, site: str, width: str, chosen: str) -> None:
    look(chrome, width, "light")
    chrome.get(site + "/load")
    first = wait_until(lambda: pixels(chrome), BOUND, "the picture")
    wait_until(lambda: pixels(chrome) != first, BOUND, "another picture")
    query = chrome.execute_script("return document.getElementById('chart').currentSrc").partition("?")[2]
    assert re.fullmatch(chosen, query)


def test_the_picture_moves_without_javascript(site: str) -> None:
    with chromium("--blink-settings=scriptEnabled=false") as plain:
        plain.get(site + "/load")
        shot = wait_until(plain.get_screenshot_as_png, BOUND, "the page")
        wait_until(lambda: plain.get_screenshot_as_png() != shot, BOUND, "another picture")


def test_the_picture_is_dark_for_those_who_prefer_it(chrome: Any, site: str) -> None:
    corner = """
        const image = document.getElementById("chart");
        const canvas = Object.assign(document.createElement("canvas"), {width: 8, height: 8});
        canvas.getContext("2d").drawImage(image, 0, 0);
        return [...canvas.getContext("2d").getImageData(2, 2, 1, 1).data.slice(0, 3)];
    """
    seen = {}
    for scheme in ("light", "dark"):
        look(chrome, "wide", scheme)
        chrome.get(site + "/load")
        wait_until(lambda: pixels(chrome), BOUND, "the picture")
        seen[scheme] = sum(chrome.execute_script(corner)) / 3
    assert seen["light"] > 240
    assert seen["dark"] < 40


def test_the_figures_beside_the_picture_come_by_push(chrome: Any, site: str) -> None:
    chrome.get(site + "/load")
    wait_until(lambda: text(chrome, "[data-figure=CPU]").endswith(" %"), BOUND, "the processors' load")
    assert text(chrome, "[data-figure=memory]").endswith(" GiB")
    assert text(chrome, "[data-figure=received]").endswith(" kB/s")


def test_the_status_counts_its_own_messages_live(chrome: Any, site: str) -> None:
    chrome.get(site + "/status")
    row = """
        const rows = [...document.querySelectorAll("[data-rows=streams] tbody tr")];
        const topic = "pushdemo.status";
        const row = rows.find(row => row.cells[0].textContent === topic && row.cells[1].textContent === "multipart");
        return row ? Number(row.cells[7].textContent.replaceAll(",", "")) : 0;
    """
    first = wait_until(lambda: chrome.execute_script(row), BOUND, "the status's own stream")
    wait_until(lambda: chrome.execute_script(row) > first, BOUND, "its next message")
    assert int(text(chrome, "[data-figure='total.clients']")) >= 1
    assert chrome.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_status_says_that_redis_cannot_be_reached(chrome: Any, tmp_path: Path, scheme: str) -> None:
    look(chrome, "narrow", scheme)
    with pserve(tmp_path, {"pushdemo.redis_url": "redis://127.0.0.1:1/0"}) as running:  # nobody listens there
        chrome.get(running.url + "/status")
        wait_until(lambda: is_live(chrome), BOUND, "what the page pushes")
        notice = chrome.find_element("id", "trouble")
        assert notice.is_displayed()
        assert "127.0.0.1:1" in notice.text
        assert obstacles(chrome) == []
        chrome.get("about:blank")
    assert chrome.get_log("browser") == []


def clients(site: str) -> dict[str, int]:
    """How many there are of each topic."""
    request = urllib.request.Request(site + "/status", headers={"Accept": "application/json"})
    with urllib.request.urlopen(request) as response:
        return {topic["topic"]: topic["clients"] for topic in json.load(response)["topics"]}


def test_leaving_a_page_gives_its_connections_back(chrome: Any, site: str) -> None:
    for _ in range(4):  # a browser has six connections to a host
        chrome.get(site + "/load")
        wait_until(lambda: pixels(chrome), BOUND, "the picture")
        chrome.get(site + "/")
        wait_until(lambda: {clients(site)[name] for name in ("load", "load.chart")} == {0}, BOUND, "their end")
    chrome.back()
    wait_until(lambda: text(chrome, "#state") == "Live", BOUND, "the figures again")
    first = wait_until(lambda: pixels(chrome), BOUND, "the picture again")
    wait_until(lambda: pixels(chrome) != first, BOUND, "another picture")


@pytest.fixture(scope="module")
def firefox(site: str) -> dict[str, Any]:
    """What Firefox has seen of the pages, by a script for Node."""
    require(shutil.which("firefox-esr") or shutil.which("firefox"), "Firefox", "firefox-esr")
    require(shutil.which("node"), "Node.js", "nodejs")
    puppeteer = node_module("puppeteer-core/package.json")
    require(puppeteer, "puppeteer-core", NPM)
    assert puppeteer is not None
    executable = shutil.which("firefox-esr") or shutil.which("firefox")
    command = ["node", str(ROOT / "tests" / "firefox.mjs"), str(puppeteer.parent), str(executable), site]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3 * BOUND)
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout)
    return seen


def test_firefox_shows_the_messages_in_two_tabs_at_once(firefox: dict[str, Any]) -> None:
    first, second = firefox["tabs"]
    assert len(set(first) & set(second)) >= 2, "both have seen the same messages, while both were open"


def test_tabs_of_firefox_share_a_connection_and_the_one_that_is_left_goes_on(firefox: dict[str, Any]) -> None:
    assert firefox["connections"] == 1
    numbers = list(map(int, firefox["afterwards"]))
    assert numbers == list(range(numbers[0], numbers[-1] - 1, -1)), "no gap and no repeat"


def test_firefox_shows_the_picture_move(firefox: dict[str, Any]) -> None:
    assert firefox["pictures"] >= 3


def test_firefox_has_nothing_to_complain_about(firefox: dict[str, Any]) -> None:
    assert firefox["complaints"] == []
