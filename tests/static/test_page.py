"""push.js and the page that uses it: closing, mistakes, and being hidden."""

from __future__ import annotations

import threading

import pytest

from tests.static.engines import BOUND, Browser, Engine, Node
from tests.static.formats import STREAMS, poll
from tests.static.scripts import HARD, answers, hangs, never, refuses, says
from tests.static.wire import Exchange, Script, Wire


def test_after_close_nothing_is_delivered_and_the_server_sees_it(engine: Engine, wire: Wire) -> None:
    left = threading.Event()
    form = STREAMS["multipart"]

    def two_at_once(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening + form.message(HARD[0]) + form.message(HARD[1]))
        exchange.until_gone()
        left.set()

    watch = engine.subscribe(wire.on("/closed", two_at_once, never), closeAfter="e-1")
    watch.until(lambda watch: watch.messages)
    assert left.wait(BOUND)
    watch.close()
    assert watch.ids == ["e-1"]
    assert watch.told[-1]["closed"] == "e-1"


def test_after_close_no_state_is_told(engine: Engine, wire: Wire) -> None:
    """A page that subscribes anew would take it for that of its new subscription."""
    form = STREAMS["multipart"]
    # In one piece, so that the rest is read although all is over.
    rest = form.message(HARD[0]) + form.failing + form.reset_to("f-0") + form.message(HARD[1])
    watch = engine.subscribe(wire.on("/state", says("multipart", rest, end=False)), closeAfter="e-1")
    watch.until(lambda watch: watch.messages)
    watch.close()
    assert [state["state"] for state in watch.states] == ["connecting", "live"]
    assert (watch.ids, watch.resets, watch.told[-1]["closed"]) == (["e-1"], 0, "e-1")


def test_closing_gives_the_connection_back(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    left = threading.Event()
    form = STREAMS[transport]

    def one(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening, form.message(HARD[0]))
        exchange.until_gone()
        left.set()

    watch = engine.subscribe(wire.on(f"/back-{transport}", one, never), transport=transport)
    watch.until(lambda watch: watch.messages)
    watch.close()
    assert left.wait(BOUND)


def test_a_mistake_of_the_page_is_reported_and_does_not_stop_the_stream(engine: Engine, wire: Wire) -> None:
    form = STREAMS["multipart"]
    url = wire.on("/mistake", says("multipart", form.message(HARD[0]), form.message(HARD[1]), form.end))
    watch = engine.subscribe(url, throwAt="e-1")
    watch.state("ended")
    assert watch.ids == ["e-1", "e-2"]
    engine.uncaught.until(lambda uncaught: uncaught.told)
    assert "the page's own mistake" in engine.uncaught.told.pop()["error"]


def test_a_transport_that_does_not_exist_is_refused_with_those_that_do(node: Node) -> None:
    watch = node.subscribe("http://localhost/", transport="websocket").until(lambda watch: watch.told)
    wanted = "TypeError: transport websocket: must be one of multipart, sse, jsonlines, longpoll"
    assert watch.told[0]["thrown"] == wanted


def test_a_page_that_is_hidden_for_long_pauses_and_goes_on_when_seen(chromium: Browser, wire: Wire) -> None:
    left = threading.Event()
    form = STREAMS["multipart"]

    def first(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening, form.message(HARD[0]))
        exchange.until_gone()
        left.set()

    second = says("multipart", form.message(HARD[1]), form.end)
    watch = chromium.subscribe(wire.on("/hidden", first, second), hiddenAfter=50)
    watch.until(lambda watch: watch.messages)
    page = chromium.driver.current_window_handle
    chromium.driver.switch_to.new_window("tab")
    assert left.wait(BOUND)
    chromium.driver.close()
    chromium.driver.switch_to.window(page)
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "paused", "connecting", "live", "ended"]
    assert watch.ids == ["e-1", "e-2"]
    assert [request.last_event_id for request in wire.requests] == ["", "e-1"]


def test_an_address_may_be_relative_to_the_page(chromium: Browser, wire: Wire) -> None:
    wire.on("/relative", says("multipart", STREAMS["multipart"].end), never)
    chromium.subscribe("relative?kind=1").state("ended")
    assert [request.query for request in wire.requests] == [{"kind": "1"}]


def test_a_page_that_is_left_gives_its_connection_back_and_goes_on_when_it_is_shown(
    chromium: Browser, wire: Wire
) -> None:
    left = threading.Event()
    form = STREAMS["multipart"]

    def first(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening, form.message(HARD[0]))
        exchange.until_gone()
        left.set()

    watch = chromium.subscribe(wire.on("/left", first, says("multipart", form.end), never))
    watch.until(lambda watch: watch.messages)
    chromium.driver.execute_script("dispatchEvent(new Event('pagehide'))")
    assert left.wait(BOUND)
    watch.state("paused")
    chromium.driver.execute_script("dispatchEvent(new Event('pageshow'))")
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "paused", "connecting", "live", "ended"]
    assert [request.last_event_id for request in wire.requests] == ["", "e-1"]


def test_after_a_pause_the_stream_that_was_held_back_gets_another_chance(chromium: Browser, wire: Wire) -> None:
    def waits(exchange: Exchange) -> None:
        exchange.until_gone()

    form = STREAMS["multipart"]
    url = wire.on("/chance", hangs, answers(poll("ready", HARD[0])), waits, says("multipart", form.end), never)
    watch = chromium.subscribe(url, heartbeat=300)
    watch.until(lambda watch: watch.messages)
    chromium.driver.execute_script("dispatchEvent(new Event('pagehide'))")
    watch.state("paused")
    chromium.driver.execute_script("dispatchEvent(new Event('pageshow'))")
    watch.state("ended")
    live = watch.states[-2]
    assert (live["state"], live["transport"], live["fallback"], live.get("reason")) == (
        "live",
        "multipart",
        False,
        None,
    )


@pytest.mark.heavy
def test_a_page_that_is_seen_again_soon_does_not_pause(chromium: Browser, wire: Wire) -> None:
    def stays(exchange: Exchange) -> None:
        exchange.stream(STREAMS["multipart"].content_type, STREAMS["multipart"].opening)
        assert not exchange.gone_within(6)
        exchange.write(STREAMS["multipart"].end)
        exchange.end()

    watch = chromium.subscribe(wire.on("/soon-seen", stays, never), hiddenAfter=4000)
    page = chromium.driver.current_window_handle
    chromium.driver.switch_to.new_window("tab")
    chromium.driver.close()
    chromium.driver.switch_to.window(page)
    watch.state("ended")
    assert "paused" not in [state["state"] for state in watch.states]


@pytest.mark.parametrize("event", ["online", "visible"])
def test_the_pause_ends_when_the_page_is_online_again_or_seen(chromium: Browser, wire: Wire, event: str) -> None:
    down = refuses(503, "down", Retry_After="3600")
    watch = chromium.subscribe(wire.on(f"/{event}", down, says("multipart", STREAMS["multipart"].end), never))
    assert watch.state("waiting")["retry"] == 3_600_000
    driver = chromium.driver
    if event == "visible":
        page = driver.current_window_handle
        driver.switch_to.new_window("tab")
        driver.close()
        driver.switch_to.window(page)
    else:
        for offline in (True, False):
            conditions = {"latency": 0, "offline": offline, "downloadThroughput": -1, "uploadThroughput": -1}
            driver.execute_cdp_cmd("Network.enable", {})
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    watch.state("ended")


def refused_stream(wire: Wire, path: str, poll_waits: Script, *then: Script) -> str:
    """An EventSource that is refused twice while the polls in its place are not: they take over."""
    first, second = (answers(poll("ready", sent)) for sent in HARD[:2])
    return wire.on(path, refuses(503), first, refuses(503), second, poll_waits, *then)


def test_when_the_network_is_back_a_stream_that_was_given_up_gets_another_chance(chromium: Browser, wire: Wire) -> None:
    left = threading.Event()

    def waits(exchange: Exchange) -> None:
        exchange.until_gone()
        left.set()

    url = refused_stream(wire, "/another-chance", waits, says("sse", STREAMS["sse"].end), never)
    watch = chromium.subscribe(url, transport="sse")
    watch.until(lambda watch: watch.states[-1:] and watch.states[-1]["fallback"])
    wire.until_asked(5)
    chromium.driver.execute_script("dispatchEvent(new Event('online'))")
    watch.state("ended")
    assert left.wait(BOUND)
    told = [(state["state"], state["transport"], state["fallback"], state["code"]) for state in watch.states][-3:]
    assert told == [
        ("connecting", "sse", False, "connecting"),
        ("live", "sse", False, "live"),
        ("ended", "sse", False, "ended"),
    ]
    assert wire.requests[-1].query == {"last_event_id": "e-2", "ids": "topic"}


def test_a_page_that_is_left_is_not_woken_by_the_network(chromium: Browser, wire: Wire) -> None:
    url = refused_stream(wire, "/left-fallback", hangs, says("sse", STREAMS["sse"].end), never)
    watch = chromium.subscribe(url, transport="sse")
    watch.until(lambda watch: watch.states[-1:] and watch.states[-1]["fallback"])
    for event in ("pagehide", "online", "pageshow"):
        chromium.driver.execute_script(f"dispatchEvent(new Event('{event}'))")
        if event == "pagehide":
            watch.state("paused")
    watch.state("ended")
    told = [(state["state"], state["transport"]) for state in watch.states][-4:]
    assert told == [("paused", "longpoll"), ("connecting", "sse"), ("live", "sse"), ("ended", "sse")]


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "sse", "longpoll"])
def test_without_a_fallback_the_networks_return_interrupts_nothing(
    chromium: Browser, wire: Wire, transport: str
) -> None:
    back = threading.Event()

    def goes_on(exchange: Exchange) -> None:
        if transport == "longpoll":
            assert back.wait(BOUND)
            return exchange.answer(200, "application/json", poll("done"))
        form = STREAMS[transport]
        exchange.stream(form.content_type, form.opening)
        assert back.wait(BOUND)
        exchange.write(form.message(HARD[0]), form.end)
        return exchange.end()

    watch = chromium.subscribe(wire.on(f"/uninterrupted-{transport}", goes_on, never), transport=transport)
    if transport == "longpoll":
        wire.until_asked()
    else:
        watch.state("live")
    chromium.driver.execute_script("dispatchEvent(new Event('online'))")
    back.set()
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]
    assert len(wire.requests) == 1
