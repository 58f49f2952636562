"""When push.js asks again, after what pause, and from where on; and when it does not."""

from __future__ import annotations

import random
import time
from email.utils import formatdate

import pytest

from tests.static.engines import Browser, Engine, Node
from tests.static.formats import STREAMS, poll
from tests.static.scripts import HARD, answers, never, numbered, refuses, says
from tests.static.wire import Exchange, Script, Wire


@pytest.mark.heavy
def test_nothing_is_missed_or_repeated_over_broken_connections(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    count = 100
    # Chromium forgets what came with a reset, the pause of 1 ms too, and then takes its own, longer one.
    broken = 0.5 if isinstance(engine, Node) else 0.05
    url = wire.on(f"/broken-{transport}", numbered(transport, count, random.Random(7), broken))
    watch = engine.subscribe(url, transport=transport)
    watch.state("ended")
    assert watch.ids == [f"e-{number}" for number in range(1, count + 1)]
    assert len(wire.requests) > 20


def test_the_servers_pause_is_kept_and_the_next_connection_resumes(node: Node, wire: Wire) -> None:
    form = STREAMS["multipart"]
    going = says("multipart", form.message(HARD[0]), form.retry(37))
    url = wire.on("/going", going, says("multipart", form.message(HARD[1]), form.end))
    watch = node.subscribe(url + "?kind=1")
    watch.state("ended")
    assert [state["retry"] for state in watch.states if state["state"] == "waiting"] == [37]
    assert [request.query for request in wire.requests] == [{"kind": "1"}, {"kind": "1", "last_event_id": "e-1"}]
    assert watch.ids == ["e-1", "e-2"]


def test_a_transport_in_the_address_does_not_speak_for_every_request(node: Node, wire: Wire) -> None:
    """The server would have it beat Accept, also where long polls stand in for a stream."""
    watch = node.subscribe(wire.on("/address", says("multipart", STREAMS["multipart"].end)) + "?transport=sse&kind=1")
    watch.state("ended")
    assert [request.query for request in wire.requests] == [{"kind": "1"}]


def test_what_a_reset_says_is_where_the_next_connection_goes_on(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    going = says(transport, form.reset_to("f-0"), form.retry(1))
    url = wire.on(f"/reset-{transport}", going, says(transport, form.message(HARD[1]), form.end))
    watch = engine.subscribe(url, transport=transport, lastEventId="e-7")
    watch.state("ended")
    assert [request.last_event_id for request in wire.requests][:2] == ["e-7", "f-0"]
    assert (watch.ids, watch.resets) == (["e-2"], 1)


@pytest.mark.heavy
def test_a_reset_that_has_not_come_whole_is_not_gone_on_behind(stream: tuple[Engine, str], wire: Wire) -> None:
    """Else the next connection would go on behind a gap that the page was never told of."""
    engine, transport = stream
    form = STREAMS[transport]
    reset = form.reset_to("f-0")
    url = wire.on(f"/torn-{transport}", says(transport, reset[:-1]), says(transport, reset, form.end))
    watch = engine.subscribe(url, transport=transport, lastEventId="e-7")
    watch.state("ended")
    assert [request.last_event_id for request in wire.requests] == ["e-7", "e-7"]
    assert watch.resets == 1


@pytest.mark.heavy
def test_the_pause_grows_while_nobody_answers(node: Node, wire: Wire) -> None:
    url = wire.on("/down", Exchange.drop)
    watch = node.subscribe(url)
    watch.until(lambda watch: sum(state["state"] == "waiting" for state in watch.states) == 3)
    pauses = [state["retry"] for state in watch.states if state["state"] == "waiting"]
    for pause, longest in zip(pauses, (1000, 2000, 4000), strict=True):
        assert longest / 2 <= pause <= longest
    watch.close()


@pytest.mark.heavy
def test_after_503_it_waits_as_long_as_the_server_says(engine: Engine, wire: Wire) -> None:
    full = refuses(503, "all 10 places are taken", Retry_After="1")
    url = wire.on("/full", full, says("multipart", STREAMS["multipart"].end))
    watch = engine.subscribe(url)
    watch.state("ended")
    waiting = watch.state("waiting")
    assert (waiting["retry"], waiting["reason"]) == (1000, "all 10 places are taken")


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "longpoll", "sse"])
def test_a_refusal_is_final_and_says_the_servers_reason(
    request: pytest.FixtureRequest, wire: Wire, transport: str
) -> None:
    engine: Engine = request.getfixturevalue("chromium" if transport == "sse" else "node")
    reason = "the topic is image/svg+xml; it comes as multipart"
    body = f'{{"message": "{reason}", "code": "406"}}'
    refused = refuses(406, body, "application/json", Retry_After="0")
    watch = engine.subscribe(wire.on(f"/refused-{transport}", refused, refused, never), transport=transport)
    assert watch.state("failed")["reason"] == reason


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "longpoll", "sse"])
def test_204_is_the_end(request: pytest.FixtureRequest, wire: Wire, transport: str) -> None:
    engine: Engine = request.getfixturevalue("chromium" if transport == "sse" else "node")
    gone = refuses(204)
    watch = engine.subscribe(wire.on(f"/gone-{transport}", gone, gone, never), transport=transport, lastEventId="e-9")
    watch.state("ended")
    assert {request.last_event_id for request in wire.requests} == {"e-9"}


def test_an_ended_source_is_not_asked_again(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    ended = wire.on(f"/ended-{transport}", says(transport, form.retry(1), form.end))
    engine.subscribe(ended, transport=transport).state("ended")
    # A client that came back after its millisecond would have done so while another was served 20 times.
    other = wire.on("/other", says(transport, form.end))
    for _ in range(20):
        engine.subscribe(other, transport=transport).state("ended")
    assert len(wire.requests) == 21


def test_what_is_no_stream_is_tried_again_later(node: Node, wire: Wire) -> None:
    portal = refuses(200, "<h1>Please log in</h1>", "text/html")
    watch = node.subscribe(wire.on("/portal", portal, says("multipart", STREAMS["multipart"].end)))
    watch.state("ended")
    waiting = watch.state("waiting")
    assert waiting["reason"] == f"expected multipart/x-mixed-replace, got text/html from {wire.url}/portal"
    assert (waiting["code"], waiting["address"]) == ("unexpected-answer", f"{wire.url}/portal")


def test_what_twice_is_no_stream_is_final_and_says_from_where(node: Node, wire: Wire) -> None:
    portal = refuses(200, "<h1>Please log in</h1>", "text/html")
    watch = node.subscribe(wire.on("/portal", portal, portal, never))
    failed = watch.state("failed")
    assert (failed["code"], failed["address"]) == ("unexpected-answer", f"{wire.url}/portal")


def test_a_proxys_error_page_is_not_shown_as_the_reason(node: Node, wire: Wire) -> None:
    page = refuses(502, "<h1>Bad gateway</h1>", "text/html")
    watch = node.subscribe(wire.on("/proxy", page, says("multipart", STREAMS["multipart"].end)))
    assert watch.state("waiting")["reason"] == "the server answered 502 Bad Gateway"
    watch.state("ended")


END = STREAMS["multipart"].end


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(node: Node, wire: Wire, status: int) -> None:
    passing = refuses(status, "  not now\n", Retry_After="0")
    watch = node.subscribe(wire.on(f"/passing-{status}", passing, says("multipart", END), never))
    watch.state("ended")
    assert (watch.state("waiting")["retry"], watch.state("waiting")["reason"]) == (0, "not now")


def test_the_servers_pause_may_be_a_date(node: Node, wire: Wire) -> None:
    later = refuses(503, Retry_After=formatdate(time.time() + 3600, usegmt=True))
    watch = node.subscribe(wire.on("/later", later, never))
    assert 3_590_000 < watch.state("waiting")["retry"] <= 3_600_000
    watch.close()


def test_a_pause_that_is_over_is_none(node: Node, wire: Wire) -> None:
    past = refuses(503, Retry_After="Thu, 01 Jan 2026 00:00:00 GMT")
    watch = node.subscribe(wire.on("/past", past, says("multipart", END), never))
    watch.state("ended")
    assert watch.state("waiting")["retry"] == 0


def test_a_pause_that_cannot_be_read_is_its_own(node: Node, wire: Wire) -> None:
    watch = node.subscribe(wire.on("/soon", refuses(503, Retry_After="soon"), never))
    assert 500 <= watch.state("waiting")["retry"] <= 1000
    watch.close()


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_a_reason_that_cannot_be_read_is_the_status(node: Node, wire: Wire, content_type: str) -> None:
    watch = node.subscribe(wire.on("/unreadable", refuses(410, "<h1>", content_type), never))
    assert watch.state("failed")["reason"] == "the server answered 410 Gone"


@pytest.mark.heavy
def test_the_pauses_begin_anew_after_a_message(node: Node, wire: Wire) -> None:
    one = says("multipart", STREAMS["multipart"].message(HARD[0]))
    watch = node.subscribe(wire.on("/anew", Exchange.drop, Exchange.drop, one, says("multipart", END)))
    watch.state("ended")
    first, second, third = (state["retry"] for state in watch.states if state["state"] == "waiting")
    assert 500 <= first <= 1000
    assert 1000 <= second <= 2000
    assert 500 <= third <= 1000


def no_pause(transport: str) -> Script:
    """Answers without a message, and asks to be asked again at once."""
    if transport == "longpoll":
        return answers(poll("waiting", retry=0))
    return says(transport, STREAMS[transport].retry(0))


@pytest.mark.parametrize("answer", ["refusal", "multipart", "jsonlines", "longpoll"])
def test_a_server_that_asks_for_no_pause_has_its_way_twice(node: Node, wire: Wire, answer: str) -> None:
    script = refuses(503, Retry_After="0") if answer == "refusal" else no_pause(answer)
    transport = "multipart" if answer == "refusal" else answer
    watch = node.subscribe(wire.on(f"/at-once-{answer}", script), transport=transport)
    watch.until(lambda watch: sum(state["state"] == "waiting" for state in watch.states) == 3)
    assert [state["retry"] for state in watch.states if state["state"] == "waiting"] == [0, 0, 1000]
    watch.close()
    assert len(wire.requests) == 3


def test_however_often_a_server_asks_for_no_pause_there_is_one(chromium: Browser, wire: Wire) -> None:
    watch = chromium.subscribe(wire.on("/at-once", refuses(503, Retry_After="0")))
    for count in range(3, 8):
        watch.until(lambda watch, count=count: sum(state["state"] == "waiting" for state in watch.states) >= count)
        chromium.driver.execute_script("dispatchEvent(new Event('online'))")  # the pause is over at once
    watch.close()
    pauses = [state["retry"] for state in watch.states if state["state"] == "waiting"]
    assert pauses[:2] == [0, 0]
    assert {*pauses[2:]} == {1000}


def test_a_longer_pause_of_the_servers_is_kept_and_a_message_begins_anew(node: Node, wire: Wire) -> None:
    down, form = refuses(503, Retry_After="0"), STREAMS["multipart"]
    one = says("multipart", form.message(HARD[0]), form.retry(0))
    url = wire.on("/obeyed", down, down, one, down, refuses(503, Retry_After="3600"))
    watch = node.subscribe(url)
    watch.until(lambda watch: sum(state["state"] == "waiting" for state in watch.states) == 5)
    assert [state["retry"] for state in watch.states if state["state"] == "waiting"] == [0, 0, 0, 0, 3_600_000]
    watch.close()
