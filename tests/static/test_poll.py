"""poll.js: what it asks, when it asks again, and what it gives up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.static.engines import Browser, Engine, Node, Watch
from tests.static.scripts import answers, hangs, never, refuses
from tests.static.wire import Exchange, Wire


def item(content: Any, count: int) -> bytes:
    return json.dumps({"state": "ready", "content": content, "count": count, "key": "k"}).encode()


DONE = json.dumps({"state": "done", "content": None, "count": 2, "key": "k"}).encode()


def refusal(status: int, reason: str, count: int = 0, **headers: str) -> Any:
    body = json.dumps({"state": "error", "reason": reason, "count": count})
    return refuses(status, body, "application/json", **headers)


def contents(watch: Watch) -> list[Any]:
    return [answer["content"] for answer in watch.of("answer")]


def test_each_poll_says_how_many_items_the_page_has(engine: Engine, wire: Wire) -> None:
    url = wire.on("/items", answers(item("a", 1)), answers(item("b", 2)), answers(DONE), never)
    watch = engine.do("poll", url=url, options={"key": "k &"})
    watch.first("done")
    assert contents(watch) == ["a", "b"]
    assert [request.query for request in wire.requests] == [{"key": "k &", "after": str(n)} for n in (0, 1, 2)]


def test_it_begins_behind_the_items_that_the_page_has_and_takes_several_at_once(node: Node, wire: Wire) -> None:
    url = wire.on("/several", answers(item(["f", "g"], 7)), answers(DONE), never)
    watch = node.do("poll", url=url, options={"key": "k", "after": 5, "max": 4})
    watch.first("done")
    assert contents(watch) == [["f", "g"]]
    assert [request.query for request in wire.requests] == [
        {"key": "k", "after": after, "max": "4"} for after in ("5", "7")
    ]


def test_an_answer_that_was_lost_is_asked_for_again(node: Node, wire: Wire) -> None:
    url = wire.on("/lost", answers(item("a", 1)), Exchange.drop, answers(item("b", 2)), answers(DONE), never)
    watch = node.do("poll", url=url, options={"key": "k"})
    watch.first("done")
    assert contents(watch) == ["a", "b"]
    assert [request.query["after"] for request in wire.requests] == ["0", "1", "1", "2"]
    assert 250 <= watch.first("retry")["pause"] <= 500


@pytest.mark.parametrize("status", [408, 409, 429, 502, 503, 504])
def test_what_passes_is_tried_again_and_says_why(node: Node, wire: Wire, status: int) -> None:
    passing = refusal(status, "not now", Retry_After="0")
    watch = node.do("poll", url=wire.on(f"/passing-{status}", passing, answers(DONE), never), options={"key": "k"})
    watch.first("done")
    assert watch.first("retry")["reason"] == "not now"


@pytest.mark.parametrize("status", [400, 403, 404, 410, 500])
def test_what_does_not_pass_is_thrown_with_the_servers_reason(node: Node, wire: Wire, status: int) -> None:
    refused = refusal(status, "no such session", count=3)
    watch = node.do("poll", url=wire.on(f"/refused-{status}", refused, never), options={"key": "k"})
    expected = {"name": "Refusal", "message": "no such session", "status": status, "count": 3}
    assert watch.first("error") == expected


def test_a_poll_that_went_to_the_wrong_process_is_sent_again_soon(node: Node, wire: Wire) -> None:
    elsewhere = refusal(421, "another process")
    url = wire.on("/elsewhere", *[elsewhere] * 4, answers(item("a", 1)), elsewhere, answers(DONE), never)
    watch = node.do("poll", url=url, options={"key": "k"})
    watch.first("done")
    assert contents(watch) == ["a"]
    retries = watch.of("retry")
    assert {retry["reason"] for retry in retries} == {"another process"}
    assert len(retries) >= 2, "some of the five, since fetch itself tries once more by another connection"
    assert all(125 <= retry["pause"] <= 250 for retry in retries)


@pytest.mark.heavy
def test_a_poll_that_goes_to_the_wrong_process_for_five_seconds_fails_with_the_servers_reason(
    node: Node, wire: Wire
) -> None:
    url = wire.on("/always-elsewhere", *[refusal(421, "another process")] * 60)
    watch = node.do("poll", url=url, options={"key": "k"})
    expected = {"name": "Refusal", "message": "another process", "status": 421, "count": 0}
    assert watch.first("error") == expected
    assert sum(retry["pause"] for retry in watch.of("retry")) <= 5250
    assert len(wire.requests) > 20


def test_a_refusal_without_a_reason_is_its_status(node: Node, wire: Wire) -> None:
    watch = node.do("poll", url=wire.on("/bare", refuses(404, "<h1>", "text/html"), never), options={"key": "k"})
    assert watch.first("error") == {"name": "Refusal", "message": "the server answered 404", "status": 404, "count": 0}


@pytest.mark.heavy
def test_it_waits_at_least_as_long_as_the_server_says(node: Node, wire: Wire) -> None:
    busy = refusal(503, "full", Retry_After="1")
    watch = node.do("poll", url=wire.on("/busy", busy, answers(DONE), never), options={"key": "k"})
    watch.first("done")
    assert watch.first("retry")["pause"] == 1000


@pytest.mark.heavy
def test_the_pause_grows_while_nobody_answers_and_is_short_again_after_an_answer(node: Node, wire: Wire) -> None:
    drop = Exchange.drop
    # After the third it also asks whether this is a redirect to another site, which fetch hides.
    url = wire.on("/growing", *[drop] * 4, answers(item("a", 1)), drop, answers(DONE), never)
    watch = node.do("poll", url=url, options={"key": "k"})
    watch.first("done")
    pauses = [retry["pause"] for retry in watch.of("retry")]
    for pause, longest in zip(pauses, (500, 1000, 2000, 500), strict=True):
        assert longest / 2 <= pause <= longest


def test_aborted_it_gives_the_connection_back(engine: Engine, wire: Wire) -> None:
    watch = engine.do("poll", url=wire.on("/aborted", hangs, never), options={"key": "k"})
    wire.until_asked()
    engine.tell({"do": "abort", "name": watch.name})
    assert watch.first("error")["name"] == "DOMException"


def test_aborted_it_does_not_sit_the_pause_out(node: Node, wire: Wire) -> None:
    url = wire.on("/paused", refusal(503, "full", Retry_After="3600"), never)
    watch = node.do("poll", url=url, options={"key": "k"})
    watch.first("retry")
    node.tell({"do": "abort", "name": watch.name})
    assert watch.first("error")["name"] == "DOMException"


def test_cancel_deletes_the_session(node: Node, wire: Wire) -> None:
    node.do("cancel", url=wire.on("/cancel", refuses(200, "{}", "application/json"), never), key="k &").first("done")
    assert [(request.method, request.query) for request in wire.requests] == [("DELETE", {"key": "k &"})]


def test_a_session_that_cannot_be_cancelled_is_told(node: Node, wire: Wire) -> None:
    watch = node.do("cancel", url=wire.on("/not-cancelled", refusal(410, "no such session"), never), key="k")
    assert watch.first("error")["message"] == "no such session"


def test_sleep_ends_by_itself_or_with_its_signal(node: Node) -> None:
    assert node.do("sleep", ms=1).first("done")
    assert node.do("sleep", ms=3_600_000, abortAfter=1).first("error") == {"name": "AbortError"}
    assert node.do("sleep", ms=3_600_000, abortAfter=0).first("error") == {"name": "AbortError"}


def test_each_key_is_another_and_long_enough_not_to_be_guessed(engine: Engine) -> None:
    keys = engine.do("newKey").first("keys")
    assert len({*keys}) == 4
    assert all(len(key.replace("-", "")) == 32 for key in keys)


@pytest.mark.heavy
def test_who_probes_for_a_redirection_does_so_as_the_page_asks(chromium: Browser, wire: Wire) -> None:
    chromium.driver.execute_script("document.cookie = 'a=1'")
    drop = Exchange.drop
    url = wire.on("/probe", *[drop] * 4, answers(DONE), never)
    options = {"key": "k", "headers": {"X-CSRF-Token": "t"}, "credentials": "omit"}
    watch = chromium.do("poll", url=url, options=options)
    watch.first("done")
    assert len(watch.of("retry")) < len(wire.requests) - 1, "one of the requests was the probe"
    assert {(request.headers["X-CSRF-Token"], request.headers["Cookie"]) for request in wire.requests} == {("t", None)}


@pytest.mark.heavy
def test_headers_that_cannot_be_made_are_no_lost_connection(node: Node, wire: Wire) -> None:
    options = {"key": "k", "headers": {"calls": [{"error": "no token"}]}}
    watch = node.do("poll", url=wire.on("/unmade-poll", never), options=options)
    watch.until(lambda watch: len(watch.of("retry")) == 3)
    node.tell({"do": "abort", "name": watch.name})
    watch.first("error")
    assert {retry["reason"] for retry in watch.of("retry")} == {"no token"}
    assert wire.requests == [], "nor a probe for a redirection"


ADDRESSES = ["?kind=1", "#part", "?kind=1&kind=2#part?x=1", "?"]


@pytest.mark.parametrize("is_object", [False, True])
@pytest.mark.parametrize("end", ADDRESSES)
def test_an_address_may_have_a_query_and_a_hash(chromium: Browser, wire: Wire, end: str, is_object: bool) -> None:
    def query(**parameters: str) -> dict[str, str]:
        own = {"kind": end.split("#")[0][-1:]} if "kind" in end else {}
        return own | parameters

    url = wire.on("/parts", answers(DONE), never) + end
    chromium.do("poll", url=url, isObject=is_object, options={"key": "k &"}).first("done")
    wire.on("/parts", refuses(200, "{}", "application/json"))
    chromium.do("cancel", url=url, isObject=is_object, key="k &").first("done")
    wire.on("/parts", refuses(204))
    chromium.do("leave", url=url, isObject=is_object, key="k &")
    wire.until_asked()
    assert [(request.method, request.query) for request in wire.requests] == [
        ("GET", query(key="k &", after="0")),
        ("DELETE", query(key="k &")),
        ("POST", query(key="k &", close="1")),
    ]
