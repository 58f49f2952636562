"""What runs push.js, and the server that it talks to. Without node or Chromium their tests skip, or fail in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.static.engines import HERE, Browser, Engine, Node
from tests.static.wire import Wire

STATIC = Path(__file__).parents[2] / "pushdemo" / "static"
FILES = {f"/static/{path.name}": path for path in STATIC.glob("*.js")}
PAGE = {"/drive.mjs": HERE / "drive.mjs", "/": HERE / "browser.html"}


def absent(what: str, remedy: str) -> NoReturn:
    """Skips the test, or fails it where nothing may be left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not here: {remedy}")
    pytest.skip(f"{what} is not here: {remedy}")


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    wire = Wire(FILES | PAGE)
    yield wire
    wire.close()


@pytest.fixture
def wire(server: Wire) -> Iterator[Wire]:
    """The server; a request that a test's script does not expect fails the test."""
    server.requests.clear()
    server.failures.clear()
    yield server
    assert server.failures == []


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    program = shutil.which("node")
    if program is None:
        absent("node", "install Node.js 20 or newer (Debian: apt install nodejs)")
    folder = tmp_path_factory.mktemp("static")
    for path in (*FILES.values(), STATIC / "package.json"):  # the latter says that these are modules
        shutil.copy(path, folder)
    engine = Node(program, folder)
    yield engine
    engine.close()


@contextmanager
def chromium_driver(*flags: str) -> Iterator[Any]:
    try:
        from selenium import webdriver
    except ImportError:
        absent("selenium", 'pip install -e ".[testing]"')
    program, service = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or service is None:
        absent("Chromium", "install chromium and chromedriver (Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet, *flags):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def chromium(server: Wire) -> Iterator[Browser]:
    with chromium_driver() as driver:
        yield Browser(driver, server.url + "/")


@pytest.fixture(params=["node-multipart", "node-jsonlines", "chromium-multipart", "chromium-jsonlines", "chromium-sse"])
def stream(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """Something that runs push.js, and a streaming transport there."""
    engine, transport = request.param.split("-")
    return request.getfixturevalue(engine), transport


@pytest.fixture(params=["node", "chromium"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)
