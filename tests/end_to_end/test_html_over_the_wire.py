"""Fragments of HTML with htmx 2 and 4, and Turbo, in Chromium with their npm packages, a cut connection included.

The page and the view of each are those of docs/publishing.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from tests.relay import Relay, relay
from tests.support import ROOT, chromium, port_of, require, serving, wait_until

pytestmark = pytest.mark.heavy

MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
DOCUMENT = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
SCRIPTS = {  # as an address in the document's pages, and as a file of an npm package
    "htmx-2": "htmx2/dist/htmx.min.js",
    "htmx-2-sse": "htmx-ext-sse/dist/sse.min.js",
    "htmx-4": "htmx.org/dist/htmx.min.js",
    "htmx-4-sse": "htmx.org/dist/ext/hx-sse.min.js",
    "turbo": "@hotwired/turbo/dist/turbo.es2017-umd.js",
}


def page_of(library: str) -> str:
    """The document's page for a library."""
    _, _, rest = DOCUMENT.partition(f"\n### {library}\n")
    assert rest, f"there is no chapter on {library}"
    (page, *_) = re.findall(r"^```html\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    return f"<!doctype html><html><head><link rel='icon' href='data:,'></head><body>{page}</body></html>"


class Site(NamedTuple):
    """The running site, behind a relay that can be cut."""

    topics: Any
    between: Relay
    publish: Any


@contextmanager
def site(library: str) -> Iterator[Site]:
    with Configurator(settings={"pushdemo.retry": "0.1"}) as config:
        config.include("pushdemo")
        config.add_topic("orders", content_type="text/html")
        config.add_route("orders", "/orders")
        config.add_view(lambda request: request.push("orders"), route_name="orders")
        config.add_route("page", "/")
        config.add_view(lambda request: Response(page_of(library)), route_name="page")
        config.add_route("script", "/scripts/{name}.js")
        config.add_view(lambda request: script(request.matchdict["name"]), route_name="script")
        app = config.make_wsgi_app()
    topics = app.registry["pushdemo.topics"]
    with serving(app) as server, relay(port_of(server)) as between:
        yield Site(topics, between, topics["orders"].publish)
    topics.close()


def script(name: str) -> Response:
    found = [folder / SCRIPTS[name] for folder in MODULES if (folder / SCRIPTS[name]).exists()]
    return Response(found[0].read_bytes(), content_type="text/javascript")


def li(number: int) -> str:
    return f"<li>order\n {number}</li>"


LIBRARIES = {
    "htmx 2": lambda publish, number: publish(li(number), event="order"),
    "htmx 4": lambda publish, number: publish(li(number)),
    "Turbo": lambda publish, number: publish(
        f'<turbo-stream action="append" target="orders"><template>{li(number)}</template></turbo-stream>'
    ),
}


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    for file in SCRIPTS.values():
        require(any((folder / file).exists() for folder in MODULES), f"{file} (npm, by NODE_PATH)", "npm")
    with chromium() as driver:
        yield driver


def shown(chrome: Any) -> list[int]:
    text = "return Array.from(document.querySelectorAll('#orders > li'), (item) => item.textContent)"
    return [int(item.split()[1]) for item in chrome.execute_script(text)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_fragments_arrive_in_order_and_none_is_missed_or_repeated_over_a_cut(chrome: Any, library: str) -> None:
    with site(library) as running:
        publish = LIBRARIES[library]
        chrome.get(f"http://127.0.0.1:{running.between.port}/")
        wait_until(lambda: running.topics["orders"].clients == 1, what="the stream")
        for number in (1, 2):
            publish(running.publish, number)
        wait_until(lambda: shown(chrome) == [1, 2], what="the fragments")
        for number in (3, 5):
            with running.between.cut():
                wait_until(lambda: not running.topics["orders"].clients, what="the end of the connection")
                publish(running.publish, number)
                publish(running.publish, number + 1)
            wait_until(lambda last=number + 1: shown(chrome) == list(range(1, last + 1)), what="the rest")
        chrome.get("about:blank")
