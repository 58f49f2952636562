"""The requests that push.js and poll.js make: headers, credentials; and what a refusal is called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.static.engines import Browser, Engine, Node
from tests.static.formats import STREAMS, poll
from tests.static.scripts import HARD, answers, never, refuses, says
from tests.static.wire import Exchange, Wire

FORM = STREAMS["multipart"]
DONE = answers(json.dumps({"state": "done", "content": None, "count": 0, "key": "k"}).encode())


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "longpoll"])
def test_the_pages_headers_go_with_each_request(node: Node, wire: Wire, transport: str) -> None:
    end = answers(poll("done")) if transport == "longpoll" else says(transport, STREAMS[transport].end)
    url = wire.on(f"/headers-{transport}", refuses(503, Retry_After="0"), end, never)
    watch = node.subscribe(url, transport=transport, headers={"Authorization": "Bearer 1", "accept": "text/html"})
    watch.state("ended")
    assert [request.headers["Authorization"] for request in wire.requests] == ["Bearer 1"] * 2
    assert "text/html" not in wire.requests[0].headers["Accept"], "which transport it is, is not the page's to say"


def test_a_function_makes_the_headers_of_each_attempt(node: Node, wire: Wire) -> None:
    url = wire.on("/renewed", refuses(503, Retry_After="0"), says("multipart", FORM.end), never)
    watch = node.subscribe(url, headers={"calls": [{"Authorization": "Bearer 1"}, {"Authorization": "Bearer 2"}]})
    watch.state("ended")
    assert [request.headers["Authorization"] for request in wire.requests] == ["Bearer 1", "Bearer 2"]


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (403, "forbidden")])
def test_a_token_that_has_expired_is_renewed_once(node: Node, wire: Wire, status: int, code: str) -> None:
    no = refuses(status, "expired")
    url = wire.on(f"/expired-{status}", says("multipart", FORM.message(HARD[0]), FORM.retry(1)), no, no, never)
    watch = node.subscribe(url, headers={"calls": [{}]})
    failed = watch.state("failed")
    assert (failed["code"], failed["status"], failed["reason"]) == (code, status, "expired")
    assert len(watch.of("headers")) == 3


def test_each_expiry_may_be_renewed(node: Node, wire: Wire) -> None:
    no, going = refuses(401), says("multipart", FORM.retry(1))
    url = wire.on("/each-expiry", no, going, no, going, says("multipart", FORM.end), never)
    node.subscribe(url, headers={"calls": [{}]}).state("ended")


@pytest.mark.parametrize("status", [401, 403])
def test_without_a_function_there_is_nothing_to_renew(node: Node, wire: Wire, status: int) -> None:
    watch = node.subscribe(wire.on(f"/final-{status}", refuses(status, "no"), never), headers={"A": "1"})
    assert watch.state("failed")["status"] == status


def test_headers_that_cannot_be_made_are_told_and_tried_again(node: Node, wire: Wire) -> None:
    url = wire.on("/unmade", says("multipart", FORM.end), never)
    watch = node.subscribe(url, headers={"calls": [{"error": "no token"}, {}]})
    watch.state("ended")
    waiting = watch.state("waiting")
    assert (waiting["code"], waiting["reason"]) == ("headers-failed", "the page's headers could not be made: no token")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transport": "sse", "headers": {"A": "1"}}, "headers: an EventSource sends none; use another transport"),
        ({"transport": "sse", "credentials": "omit"}, "credentials omit: an EventSource always sends them"),
        ({"credentials": "always"}, "credentials always: must be one of omit, same-origin, include"),
        ({"acrossTabs": 7}, "acrossTabs 7: must be a string"),
        ({"lastEventId": 7}, "lastEventId 7: must be a string"),
        ({"load": "x"}, "load x: must be a function"),
        ({"heartbeat": {"number": "NaN"}}, "heartbeat NaN: must be a number of milliseconds, 1 or more"),
        ({"heartbeat": 0}, "heartbeat 0: must be a number of milliseconds, 1 or more"),
        ({"heartbeat": "15"}, "heartbeat 15: must be a number of milliseconds, 1 or more"),
        (
            {"hiddenAfter": {"number": "-Infinity"}},
            "hiddenAfter -Infinity: must be a number of milliseconds, 0 or more",
        ),
        ({"hiddenAfter": None}, "hiddenAfter null: must be a number of milliseconds, 0 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_named(node: Node, options: dict[str, Any], words: str) -> None:
    watch = node.subscribe("http://localhost/", **options).until(lambda watch: watch.told)
    assert watch.told[0]["thrown"].startswith(f"TypeError: {words}")


@pytest.mark.parametrize("option", ["heartbeat", "hiddenAfter"])
def test_infinity_is_never(node: Node, wire: Wire, option: str) -> None:
    def late(exchange: Exchange) -> None:
        exchange.stream(FORM.content_type, FORM.opening)
        assert not exchange.gone_within(0.3), "a timer that overflows fires at once"
        exchange.write(FORM.end)
        exchange.end()

    watch = node.subscribe(wire.on(f"/never-{option}", late, never), **{option: {"number": "Infinity"}})
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]


def test_a_long_poll_with_an_endless_heartbeat_waits(node: Node, wire: Wire) -> None:
    def late(exchange: Exchange) -> None:
        assert not exchange.gone_within(0.3)
        exchange.answer(200, "application/json", poll("done"))

    url = wire.on("/patience", late, never)
    node.subscribe(url, transport="longpoll", heartbeat={"number": "Infinity"}).state("ended")


@pytest.mark.parametrize("pause", ["99999999999999", "9" * 400])
def test_a_pause_that_no_timer_can_wait_is_not_none(node: Node, wire: Wire, pause: str) -> None:
    watch = node.subscribe(wire.on("/ages", refuses(503, Retry_After=pause), never))
    assert watch.state("waiting")["retry"] == 2**31 - 1
    watch.close()


def test_credentials_are_sent_to_another_origin_where_the_page_says_so(chromium: Browser, wire: Wire) -> None:
    origin, other = wire.url, wire.url.replace("127.0.0.1", "localhost")
    chromium.driver.execute_script("document.cookie = 'a=1'")
    form = STREAMS["multipart"]

    def ends(exchange: Exchange) -> None:
        allow = {"Access_Control_Allow_Origin": origin, "Access_Control_Allow_Credentials": "true"}
        exchange.answer(200, form.content_type, form.opening + form.end, **allow)

    wire.on("/cookie", ends)
    chromium.subscribe(f"{wire.url}/cookie", credentials="omit").state("ended")
    chromium.subscribe(f"{wire.url}/cookie").state("ended")
    chromium.subscribe(f"{other}/cookie", credentials="include").state("ended")
    assert [request.headers["Cookie"] for request in wire.requests][:2] == [None, "a=1"]


def redirects(exchange: Exchange) -> None:
    if "login" in exchange.query:
        exchange.answer(200, "text/html", b"<h1>Please log in</h1>")
    else:
        exchange.answer(302, Location="?login=1")


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "longpoll", "sse"])
def test_a_login_page_in_place_of_the_stream_is_final_and_says_where(
    request: pytest.FixtureRequest, wire: Wire, transport: str
) -> None:
    engine: Engine = request.getfixturevalue("chromium" if transport == "sse" else "node")
    watch = engine.subscribe(wire.on(f"/login-{transport}", redirects), transport=transport)
    failed = watch.state("failed")
    address = f"{wire.url}/login-{transport}?login=1"
    assert (failed["code"], failed["address"]) == ("login", address)
    assert failed["reason"].startswith(f"the server sent the request on to {address}")
    assert not [state for state in watch.states if state["state"] == "waiting"]


@pytest.mark.heavy
@pytest.mark.parametrize("reader", ["push", "poll"])
def test_a_login_page_of_another_site_is_final(chromium: Browser, wire: Wire, reader: str) -> None:
    """fetch hides it: it looks like a lost connection."""

    def leads_away(exchange: Exchange) -> None:
        exchange.answer(302, Location=wire.url.replace("127.0.0.1", "localhost") + f"/away-{reader}?login=1")

    url = wire.on(f"/away-{reader}", leads_away)
    words = "the server redirects the request to another site, as to a login page"
    if reader == "push":
        failed = chromium.subscribe(url).state("failed")
        assert (failed["code"], failed["reason"]) == ("login", words)
    else:
        error = chromium.do("poll", url=url, options={"key": "k"}).first("error")
        assert (error["name"], error["message"]) == ("Refusal", words)


def test_a_login_page_in_place_of_a_generators_answer_is_refused(node: Node, wire: Wire) -> None:
    watch = node.do("poll", url=wire.on("/login-poll", redirects), options={"key": "k"})
    error = watch.first("error")
    assert (error["name"], error["status"]) == ("Refusal", 200)
    assert error["address"] == f"{wire.url}/login-poll?login=1"


def test_json_that_answers_no_poll_is_no_answer(node: Node, wire: Wire) -> None:
    other = answers(b'{"login": "/login"}')
    watch = node.subscribe(wire.on("/other-json", other, other, never), transport="longpoll")
    assert watch.state("failed")["code"] == "unexpected-answer"


def test_a_polls_headers_are_the_pages(node: Node, wire: Wire) -> None:
    url = wire.on("/poll-headers", DONE, never)
    node.do("poll", url=url, options={"key": "k", "headers": {"X-CSRF-Token": "t"}}).first("done")
    assert wire.requests[0].headers["X-CSRF-Token"] == "t"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"after": -1}, "after -1: must be a whole number, 0 or more"),
        ({"after": 1.5}, "after 1.5: must be a whole number, 0 or more"),
        ({"max": 0}, "max 0: must be a whole number, 1 or more"),
    ],
)
def test_a_number_that_cannot_be_is_refused_and_named(node: Node, options: dict[str, Any], words: str) -> None:
    watch = node.do("poll", url="http://localhost/", options={"key": "k", **options})
    assert watch.first("error") == {"name": "TypeError", "message": words}


CODES = {
    "server-ended": [says("multipart", FORM.retry(1))],
    "connection-lost": [Exchange.drop],
    "refused": [refuses(503, Retry_After="0")],
    "unexpected-answer": [refuses(200, "", "text/html")],
}


@pytest.mark.heavy
@pytest.mark.parametrize("code", CODES)
def test_what_it_waits_for_has_a_code(node: Node, wire: Wire, code: str) -> None:
    watch = node.subscribe(wire.on(f"/code-{code}", *CODES[code], says("multipart", FORM.end)))
    watch.state("ended")
    assert [state["code"] for state in watch.states if state["state"] == "waiting"] == [code]
    assert [state["code"] for state in watch.states if state["state"] != "waiting"][-1] == "ended"


def test_headers_that_are_never_made_end_an_attempt(engine: Engine, wire: Wire) -> None:
    engine.mistakes()
    watch = engine.subscribe(wire.on("/unmade-ever", never), headers={"calls": [{"held": True}]}, heartbeat=20)
    watch.until(lambda watch: len(watch.of("headers")) == 2)
    waiting = watch.state("waiting")
    assert (waiting["code"], waiting["reason"]) == ("headers-failed", "the page's headers were not made in time")
    assert [state["state"] for state in watch.states][:3] == ["connecting", "waiting", "connecting"]
    assert {state["transport"] for state in watch.states} == {"multipart"}, "nothing was held back on the way"
    watch.close()
    assert (engine.mistakes(), wire.requests) == ([], [])


@pytest.mark.parametrize("transport", ["multipart", "longpoll"])
def test_headers_that_fail_after_the_end_are_nobodys_mistake(engine: Engine, wire: Wire, transport: str) -> None:
    engine.mistakes()
    url = wire.on(f"/too-late-{transport}", never)
    watch = engine.subscribe(url, transport=transport, headers={"calls": [{"held": True}]})
    watch.first("headers")
    watch.close()
    engine.tell({"do": "tooLate"})
    engine.do("sleep", ms=50).first("done")
    assert (engine.mistakes(), wire.requests) == ([], [])
    assert [state["state"] for state in watch.states] == ["connecting"]


def test_headers_that_are_never_made_do_not_hold_a_page_that_is_left(chromium: Browser, wire: Wire) -> None:
    url = wire.on("/unmade-left", says("multipart", FORM.end), never)
    watch = chromium.subscribe(url, headers={"calls": [{"held": True}, {}]})
    watch.first("headers")
    chromium.driver.execute_script("dispatchEvent(new Event('pagehide'))")
    watch.state("paused")
    chromium.driver.execute_script("dispatchEvent(new Event('pageshow'))")
    watch.state("ended")


def test_the_headers_are_not_made_for_a_connection_that_is_over(node: Node, wire: Wire) -> None:
    reset = answers(poll("ready", HARD[0], reset=True))
    url = wire.on("/over", reset, answers(poll("done")), never)
    watch = node.subscribe(url, transport="longpoll", load=["e-1", "f-1"], headers={"calls": [{}]})
    watch.state("ended")
    assert len(watch.of("headers")) == len(wire.requests) == 2
