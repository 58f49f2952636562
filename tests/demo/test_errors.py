"""Pages for what is not there or not now, and the headers of all responses."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from webtest import TestApp

from pushdemo.demo import main
from tests.support import Client, port_of, serving

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}  # as browsers ask for a page


def test_a_browser_gets_a_page_for_what_is_not_there(app: TestApp) -> None:
    page = app.get("/nowhere", headers=HTML, status=404)
    assert page.html.h1.text == "There is nothing here"
    assert page.html.find("a", class_="button")["href"] == "/"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain"])
def test_anything_else_gets_no_page(app: TestApp, accept: str) -> None:
    answer = app.get("/nowhere", headers={"Accept": accept}, status=404)
    assert "site-header" not in answer.text


def test_a_page_of_an_error_keeps_its_headers(app: TestApp) -> None:
    answer = app.delete("/", headers=HTML, status=405)
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.content_type == "text/html"


def test_a_browser_is_told_that_the_server_is_full_and_when_to_come_back() -> None:
    with serving(main(**{"pushdemo.max_clients": "1"})) as server, ExitStack() as stack:
        first, second = (stack.enter_context(Client(port_of(server))) for _ in range(2))
        assert first.get("/server/index").head()[0] == 200
        status, headers, body = second.get("/server/index", f"Accept: {HTML['Accept']}, text/html").response()
        assert (status, headers["content-type"]) == (503, "text/html; charset=UTF-8")
        assert int(headers["retry-after"]) > 0
        assert b"Full at this moment" in body
        assert b"pushdemo.max_clients" in body


@pytest.mark.parametrize("path", ["/", "/rooms/lobby", "/primes", "/status", "/nowhere"])
def test_a_page_runs_nothing_inline_and_is_framed_by_nobody(app: TestApp, path: str) -> None:
    headers = app.get(path, headers=HTML, status="*").headers
    policy = dict(directive.split(" ", 1) for directive in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert not [sources for sources in policy.values() if "unsafe" in sources or "*" in sources]
    assert headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/demo/home.js", "/static/push.js", "/prime?key=K", "/health/live"])
def test_no_type_is_guessed(app: TestApp, path: str) -> None:
    assert app.get(path).headers["X-Content-Type-Options"] == "nosniff"
