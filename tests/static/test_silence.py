"""What push.js does about a stream that says nothing, and about EventSource, which tells little."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.static.engines import Browser, Engine, Node
from tests.static.formats import STREAMS, Sent, poll
from tests.static.scripts import HARD, answers, hangs, never, refuses, says
from tests.static.wire import Exchange, Wire

SSE = {"ids": "topic"}  # what an EventSource asks for: each event has its topic's own id


@pytest.mark.heavy
@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "sse"])
def test_a_stream_that_brings_no_byte_gives_way_to_long_polls(
    request: pytest.FixtureRequest, wire: Wire, transport: str
) -> None:
    engine: Engine = request.getfixturevalue("chromium" if transport == "sse" else "node")
    url = wire.on(f"/held-{transport}", hangs, answers(poll("ready", HARD[0])), answers(poll("done")), never)
    watch = engine.subscribe(url, transport=transport, heartbeat=300)
    watch.state("ended")
    assert watch.ids == ["e-1"]
    # Nothing is stale that never was live.
    assert [state["state"] for state in watch.states] == ["connecting", "connecting", "live", "ended"]
    fallback = [state for state in watch.states if state["fallback"]]
    assert [state["state"] for state in fallback] == ["connecting", "live", "ended"]
    assert fallback[1]["transport"] == "longpoll"
    assert fallback[1]["reason"] == "nothing came for 0.6 s, as if something on the way holds the stream back"


def test_a_stream_that_falls_silent_is_stale_then_tried_again_then_given_up(node: Node, wire: Wire) -> None:
    one, two = (says("multipart", STREAMS["multipart"].message(sent), end=False) for sent in HARD[:2])
    watch = node.subscribe(wire.on("/silent", one, two, answers(poll("done"))), heartbeat=200)
    watch.state("ended")
    told = [(state["state"], state["transport"]) for state in watch.states]
    once = [("connecting", "multipart"), ("live", "multipart"), ("stale", "multipart")]
    assert told == [*once, *once, ("connecting", "longpoll"), ("live", "longpoll"), ("ended", "longpoll")]
    assert watch.ids == ["e-1", "e-2"]


@pytest.mark.heavy
@pytest.mark.parametrize("transport", ["multipart", "jsonlines"])
def test_heartbeats_keep_a_quiet_stream(node: Node, wire: Wire, transport: str) -> None:
    form = STREAMS[transport]

    def quiet(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening)
        for _ in range(5):  # for longer than two heartbeats: one that was not heard is given up by then
            assert not exchange.gone_within(0.5)
            exchange.write(form.heartbeat)
        exchange.write(form.end)
        exchange.end()

    watch = node.subscribe(wire.on(f"/quiet-{transport}", quiet, never), transport=transport, heartbeat=1000)
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]


def test_a_poll_may_wait_longer_than_the_heartbeats_of_a_site_that_has_many(node: Node, wire: Wire) -> None:
    def patient(exchange: Exchange) -> None:
        assert not exchange.gone_within(0.5)
        exchange.answer(200, "application/json", poll("ready", HARD[0]))

    watch = node.subscribe(wire.on("/patient", patient, answers(poll("done"))), transport="longpoll", heartbeat=20)
    watch.state("ended")
    assert watch.ids == ["e-1"]
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]


def test_an_event_source_comes_back_with_its_last_event_id(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    going = says("sse", form.message(HARD[0]), form.retry(1))
    watch = chromium.subscribe(wire.on("/back", going, says("sse", form.end)), transport="sse")
    watch.state("ended")
    assert [(r.headers["Last-Event-ID"], r.query) for r in wire.requests] == [(None, SSE), ("e-1", SSE)]
    assert [state["state"] for state in watch.states] == ["connecting", "live", "waiting", "live", "ended"]


@pytest.mark.heavy
def test_an_event_source_that_fails_twice_is_made_again_behind_the_last_message(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    going = says("sse", form.message(HARD[0]), form.retry(1))
    down = refuses(503, "not yet", Retry_After="1")
    watch = chromium.subscribe(wire.on("/twice", going, down, down, says("sse", form.end)), transport="sse")
    watch.state("ended")
    assert watch.state("waiting")["reason"] == "not yet"
    assert wire.requests[-1].query == {"last_event_id": "e-1"} | SSE
    assert wire.requests[-1].headers["Accept"] == "text/event-stream"


def test_an_event_source_that_never_came_to_life_is_not_left_to_the_browser(chromium: Browser, wire: Wire) -> None:
    def only_polls(exchange: Exchange) -> None:
        if exchange.headers["Accept"] == "text/event-stream":
            exchange.drop()
        else:
            exchange.answer(200, "application/json", poll("done"))

    watch = chromium.subscribe(wire.on("/polls-only", only_polls), transport="sse")
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]


def test_a_quiet_event_source_is_asked_after_and_kept(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    quiet = says("sse", form.heartbeat, end=False)
    url = wire.on("/calm", quiet, answers(poll("waiting")), says("sse", form.message(HARD[0]), form.end))
    watch = chromium.subscribe(url, transport="sse", heartbeat=200)
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]
    assert watch.ids == ["e-1"]


def test_an_event_source_whose_messages_are_held_back_gives_way_to_long_polls(chromium: Browser, wire: Wire) -> None:
    deaf = says("sse", end=False)
    one, two = (answers(poll("ready", sent)) for sent in HARD[:2])
    watch = chromium.subscribe(
        wire.on("/deaf", deaf, one, deaf, two, answers(poll("done"))), transport="sse", heartbeat=200
    )
    watch.state("ended")
    assert watch.ids == ["e-1", "e-2"]
    assert [state["transport"] for state in watch.states if state["fallback"]] == ["longpoll"] * 3


@pytest.mark.heavy
def test_a_stream_that_was_well_for_long_is_not_given_up_at_its_next_silence(node: Node, wire: Wire) -> None:
    form = STREAMS["multipart"]

    def well(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening)
        for _ in range(10):  # for longer than two heartbeats
            exchange.write(form.heartbeat)
            assert not exchange.gone_within(0.1)
        exchange.until_gone()

    silent = says("multipart", form.message(HARD[0]), end=False)
    watch = node.subscribe(wire.on("/well", silent, well, says("multipart", form.end), never), heartbeat=300)
    watch.state("ended")
    assert {state["transport"] for state in watch.states} == {"multipart"}


def test_a_server_that_answers_polls_at_once_with_nothing_is_not_asked_without_rest(node: Node, wire: Wire) -> None:
    url = wire.on("/empty", answers(poll("waiting")), answers(poll("done")), never)
    watch = node.subscribe(url, transport="longpoll")
    watch.state("ended")
    waiting = watch.state("waiting")
    assert waiting["reason"] == "the server answered without a message"
    assert waiting["retry"] >= 500


@pytest.mark.heavy
def test_an_event_source_that_brings_messages_is_not_asked_after(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]

    def busy(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening)
        for number in range(10):  # for longer than two heartbeats
            assert not exchange.gone_within(0.15)
            exchange.write(form.message(Sent(f"e-{number}", number)))
        exchange.write(form.end)
        exchange.end()

    watch = chromium.subscribe(wire.on("/busy", busy, never), transport="sse", heartbeat=500)
    watch.state("ended")
    assert len(watch.messages) == 10


@pytest.fixture
def listeners(chromium: Browser) -> Iterator[Callable[[], int]]:
    """How many listeners for an abort there are now, on the signals that have had any since."""
    driver = chromium.driver
    driver.execute_script(
        "window.signals = new Set(); window.plain = AbortSignal.prototype.addEventListener;"
        "AbortSignal.prototype.addEventListener = function (...args) { signals.add(this); plain.apply(this, args) }"
    )

    def count() -> int:
        total = 0
        for place in range(driver.execute_script("return signals.size")):
            signal = driver.execute_cdp_cmd("Runtime.evaluate", {"expression": f"[...signals][{place}]"})["result"]
            seen = driver.execute_cdp_cmd("DOMDebugger.getEventListeners", {"objectId": signal["objectId"]})
            total += len(seen["listeners"])
        return total

    yield count
    driver.execute_script("delete AbortSignal.prototype.addEventListener; delete window.signals")


def test_an_event_source_that_is_made_again_leaves_no_listener(
    chromium: Browser, wire: Wire, listeners: Callable[[], int]
) -> None:
    quiet = says("sse", STREAMS["sse"].heartbeat, end=False)
    calm = [quiet, answers(poll("waiting"))] * 3
    watch = chromium.subscribe(wire.on("/remade", *calm, quiet), transport="sse", heartbeat=300)
    watch.state("live")
    wire.until_asked(7)
    assert chromium.driver.execute_script("return signals.size") == 1
    assert listeners() <= 1, "the connection's own"
    watch.close()


def test_headers_that_were_made_leave_no_listener(chromium: Browser, wire: Wire, listeners: Callable[[], int]) -> None:
    polls = [answers(poll("ready", Sent(f"e-{number}", number))) for number in range(1, 6)]
    url = wire.on("/made", *polls, hangs)
    watch = chromium.subscribe(url, transport="longpoll", headers={"calls": [{}]})
    watch.until(lambda watch: len(watch.of("headers")) == 6)
    wire.until_asked(6)
    assert chromium.driver.execute_script("return signals.size") >= 6
    assert listeners() == 0
    watch.close()


def test_a_browser_that_is_to_come_back_at_once_does_so_twice(chromium: Browser, wire: Wire) -> None:
    watch = chromium.subscribe(wire.on("/at-once", says("sse", STREAMS["sse"].retry(0))), transport="sse")
    watch.until(lambda watch: any(state["retry"] for state in watch.states))
    (waiting,) = [state for state in watch.states if state["retry"]]
    assert (waiting["state"], waiting["code"], waiting["retry"]) == ("waiting", "connection-lost", 1000)
    watch.close()
    assert len(wire.requests) >= 3


def test_a_browser_may_come_back_at_once_for_each_message(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    empty = [says("sse", form.retry(0))] * 2
    one = [says("sse", form.retry(0), form.message(Sent(f"e-{number}", number))) for number in range(9)]
    watch = chromium.subscribe(wire.on("/each-at-once", *empty, *one, says("sse", form.end)), transport="sse")
    watch.state("ended")
    assert len(watch.messages) == 9
    assert not [state for state in watch.states if state["retry"]]
