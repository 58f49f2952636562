"""docs/tutorial.md, followed to the letter but for its port: files written, commands run, what they print compared.

Where CI=true, the environment is made as it says. Elsewhere that takes too long and a network: there `env` is the
environment that runs the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from selenium.webdriver.common.by import By

from tests.support import PATIENCE, ROOT, chromium, free_port, require, wait_until

require(shutil.which("curl"), "curl", "curl")
require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 180  # seconds for a command: one of them fetches packages
BLOCK = re.compile(r"(?:^\*\*([\w.]+)\*\*\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = ("*.egg-info", ".*", "__pycache__", "build", "env")


class Block(NamedTuple):
    file: str
    language: str
    text: str


TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = [Block(*found) for found in BLOCK.findall(TUTORIAL)]
ADDRESS = "127.0.0.1:6561"  # the tutorial's, which may be somebody's on this machine


class Reader:
    """Who follows the tutorial, in a folder and at an address of their own; `server` runs in the other terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.server: subprocess.Popen[bytes] | None = None
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.environ["PATH"] = path

    def run(self, command: str) -> str:
        """What a command prints; all but the last of a pipe must succeed."""
        shell = ["bash", "-e", "-c", command]
        ended = subprocess.run(
            shell, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=BOUND, check=False
        )
        assert ended.returncode == 0, f"{command}{ended.stdout}{ended.stderr}"
        return ended.stdout

    def serve(self, command: str) -> None:
        """Run the server until `stop`, or until it is started again."""
        self.stop()
        assert f"\nlisten = {self.address}\n" in (self.folder / "site.ini").read_text(encoding="utf-8")
        self.server = subprocess.Popen(["bash", "-c", f"exec env {command}"], cwd=self.folder, env=self.environ)
        wait_until(self.listens, what="the tutorial's server")

    def listens(self) -> bool:
        assert self.server
        assert self.server.poll() is None, "the tutorial's server has ended"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", int(self.address.partition(":")[2]))) == 0

    def stop(self) -> None:
        """Ctrl-C."""
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(PATIENCE)


@contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    folder.mkdir()
    reading = Reader(folder)
    try:
        yield reading
    finally:
        reading.stop()


def matches(pattern: str, text: str) -> bool:
    """Whether a command printed what the tutorial shows, where `...` stands for anything within a line."""
    return re.fullmatch(".*".join(map(re.escape, pattern.strip().split("..."))), text.strip()) is not None


@pytest.mark.heavy
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    in_full = os.environ.get("CI") == "true"
    with reader(tmp_path / "shop") as shop:
        if in_full:
            shutil.copytree(ROOT, tmp_path / "pushdemo", ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            (shop.folder / "env").symlink_to(sys.prefix)
        printed = ""
        for block in BLOCKS:
            text = block.text.replace(ADDRESS, shop.address)
            if block.file:
                (shop.folder / block.file).write_text(text, encoding="utf-8")
                if block.file == "page.html":
                    assert_live(shop)
            elif block.language == "text":
                assert matches(text, printed), f"expected:\n{text}printed:\n{printed}"
            elif "env/bin/pserve" in text:
                shop.serve(text)
            elif in_full or "pip install" not in text:
                printed = shop.run(text)
        assert_exact(shop)


def assert_live(shop: Reader) -> None:
    """The page in Chromium shows prices, and others without a reload; its console is empty."""
    assert set(re.findall(r"<(http://[\d.:]+/)>", TUTORIAL)) == {f"http://{ADDRESS}/"}
    with chromium() as chrome:
        chrome.get(f"http://{shop.address}/")

        def shown() -> list[str]:
            return [chrome.find_element(By.ID, fruit).text for fruit in ("apples", "pears")]

        first = wait_until(lambda: all(text.isdigit() for text in shown()) and shown(), what="the first prices")
        wait_until(lambda: shown() != first, what="other prices")
        assert chrome.get_log("browser") == []


def assert_exact(shop: Reader) -> None:
    """The table of orders in Chromium shows what the database has, and each new order once; its console is empty."""
    with chromium() as chrome:
        chrome.get(f"http://{shop.address}/orders/table")

        def rows() -> list[str]:
            return [row.text for row in chrome.find_elements(By.CSS_SELECTOR, "tbody tr")]

        wait_until(lambda: rows() == ["1 apples"], what="the first order")
        shop.run(f"""curl -s -d '"pears"' http://{shop.address}/orders""")
        wait_until(lambda: rows() == ["1 apples", "2 pears"], what="the second order")
        assert chrome.get_log("browser") == []


def test_every_kind_of_block_is_there() -> None:
    assert {block.file for block in BLOCKS} == {
        "",
        "app.py",
        "site.ini",
        "page.html",
        "news.py",
        "orders.html",
        "orders.py",
        "report.py",
    }
    assert [block.language for block in BLOCKS if not block.file].count("text") == 6
    assert not matches("a ... c", "a b d")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language not in ("sh", "text")])
def test_a_block_of_another_language_is_a_file(block: Block) -> None:
    assert block.file
