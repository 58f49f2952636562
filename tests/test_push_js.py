"""push.js against a server that says each byte of each wire format, under node and, where it matters, in Chromium."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.push_js.engines import BOUND, HERE, Browser, Engine, Node, Watch
from tests.push_js.formats import STREAMS, Sent, poll
from tests.push_js.wire import Exchange, Script, Wire

STATIC = Path(__file__).parent.parent / "pushdemo" / "static"
FILES = {f"/static/{name}": STATIC / name for name in ("push.js", "push-connection.js", "push-transports.js")}
PAGE = {"/drive.mjs": HERE / "drive.mjs", "/": HERE / "browser.html"}

HARD = [
    Sent("e-1", "<message>a\r\n--3f9a0c\r\nb\n\n--3f9a0c--</message>".replace("\r", "&#13;")),
    Sent("e-2", "<message>Ὀδυσσεύς 𝄞 \u2028 &lt;b&gt;</message>"),
    Sent("e-3", {"list": [1, 2.5, None, "\r\n--3f9a0c\r\n"], "text": "é"}, topic="figures"),
    Sent("e-4", "<message/>"),
]


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
    yield server
    assert server.failures == []


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = shutil.which("node")
    if program is None:
        absent("node", "install Node.js 20 or newer (Debian: apt install nodejs)")
    engine = Node(program, STATIC / "push.js")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def chromium(server: Wire) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver")
    program, service = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or service is None:
        absent("Chromium", "install chromium and chromedriver (Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    yield Browser(driver, server.url + "/")
    driver.quit()


@pytest.fixture(params=["node-multipart", "node-jsonlines", "chromium-multipart", "chromium-jsonlines", "chromium-sse"])
def stream(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """Something that runs push.js, and a streaming transport there."""
    engine, transport = request.param.split("-")
    return request.getfixturevalue(engine), transport


@pytest.fixture(params=["node", "chromium"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def ids(watch: Watch) -> list[str]:
    return [message["id"] for message in watch.messages]


def expected(sent: list[Sent]) -> list[dict[str, Any]]:
    return [{"id": s.id, "content": s.content} | ({"topic": s.topic} if s.topic else {}) for s in sent]


def received(watch: Watch) -> list[dict[str, Any]]:
    wanted = ("id", "content", "topic")
    return [{key: m[key] for key in wanted if m.get(key) is not None} for m in watch.messages]


def says(transport: str, *parts: bytes, end: bool = True) -> Script:
    """Answers with a stream of these parts, and ends it or leaves it open."""
    form = STREAMS[transport]

    def script(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening, *parts)
        if end:
            exchange.end()
        else:
            exchange.until_gone()

    return script


def whole(transport: str) -> bytes:
    """A stream with everything in it that a stream can have."""
    form = STREAMS[transport]
    parts = [form.opening, form.heartbeat, form.message(HARD[0]), form.reset, form.heartbeat]
    parts += [*map(form.message, HARD[1:]), form.failing, form.end]
    return b"".join(parts)


def never(exchange: Exchange) -> None:
    raise AssertionError("asked again")


def refuses(status: int, reason: str = "", content_type: str = "text/plain", **headers: str) -> Script:
    return lambda exchange: exchange.answer(status, content_type, reason.encode(), **headers)


def answers(body: bytes) -> Script:
    return lambda exchange: exchange.answer(200, "application/json", body)


def hangs(exchange: Exchange) -> None:
    """Takes the request and says nothing: what a proxy looks like that collects the whole answer first."""
    exchange.until_gone()


# What is read


@pytest.mark.parametrize("transport", ["multipart", "jsonlines"])
def test_a_stream_torn_at_any_byte_is_read_whole(node: Node, wire: Wire, transport: str) -> None:
    data, form = whole(transport), STREAMS[transport]

    def torn(exchange: Exchange) -> None:
        at = int(exchange.query["at"])
        exchange.stream(form.content_type, data[:at], data[at:])
        exchange.end()

    url = wire.on(f"/torn-{transport}", torn)
    for at in range(len(data) + 1):
        watch = node.subscribe(f"{url}?at={at}", transport=transport)
        watch.state("ended")
        assert (received(watch), watch.resets) == (expected(HARD), 1), f"torn at byte {at} of {data!r}"
    assert len(wire.requests) == len(data) + 1


def test_a_stream_that_comes_byte_by_byte_is_read_whole(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    bytes_ = [bytes([byte]) for byte in whole(transport)]

    def drip(exchange: Exchange) -> None:
        exchange.stream(STREAMS[transport].content_type, *bytes_)
        exchange.end()

    url = wire.on(f"/bytes-{transport}", drip)
    watch = engine.subscribe(f"{url}?topic=figures", transport=transport)
    watch.state("ended")
    assert received(watch) == expected(HARD)
    assert watch.resets == 1
    assert [state["state"] for state in watch.states] == ["connecting", "live", "failing", "ended"]


def test_a_part_that_is_neither_text_nor_json_comes_as_its_bytes(node: Node, wire: Wire) -> None:
    picture = b"\x89PNG\r\n--3f9a0c--\r\n\x00\xff"
    part = b"Content-Type: image/png\r\nContent-Length: %d\r\nX-Message-Id: e-1\r\n\r\n%b\r\n--3f9a0c\r\n"
    url = wire.on("/png", says("multipart", part % (len(picture), picture), STREAMS["multipart"].end))
    watch = node.subscribe(url)
    watch.state("ended")
    assert bytes(watch.messages[0]["content"]) == picture


def test_a_message_is_delivered_before_the_next_byte_behind_it(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    data = STREAMS[transport].message(HARD[0])
    url = wire.on(f"/prompt-{transport}", says(transport, data, end=False))
    watch = engine.subscribe(url, transport=transport).until(lambda watch: watch.messages)
    assert watch.messages[0]["lastEventId"] == "e-1"
    watch.close()


def test_long_polls_bring_what_comes_and_go_on_behind_it(engine: Engine, wire: Wire) -> None:
    url = wire.on(
        "/polls",
        answers(poll("ready", HARD[0], HARD[2])),
        answers(poll("ready", HARD[3], reset=True)),
        answers(poll("waiting", last_event_id="e-9", retry=1)),
        answers(poll("done", last_event_id="e-9")),
        never,
    )
    watch = engine.subscribe(url, transport="longpoll")
    watch.state("ended")
    assert received(watch) == expected([HARD[0], HARD[2], HARD[3]])
    assert watch.resets == 1
    assert [request.last_event_id for request in wire.requests] == ["", "e-3", "e-4", "e-9"]
    assert {request.headers["Accept"] for request in wire.requests} == {"application/json"}


def test_a_failing_source_is_told_until_a_message_comes(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    parts = [form.failing, form.heartbeat, form.message(HARD[0])]
    watch = engine.subscribe(wire.on(f"/failing-{transport}", says(transport, *parts, end=False)), transport=transport)
    watch.until(lambda watch: watch.messages)
    assert [state["state"] for state in watch.states] == ["connecting", "live", "failing", "live"]
    watch.close()


# When it is asked again


def numbered(transport: str, count: int, chance: random.Random, broken: float) -> Script:
    """`count` messages from where the client is, on connections that stop at any byte; the end when it has all.

    The share `broken` of them stops with a reset rather than an end.
    """
    form = STREAMS[transport]

    def script(exchange: Exchange) -> None:
        last = int(exchange.last_event_id.removeprefix("e-") or 0)
        sent = [Sent(f"e-{number}", f"<message>{number}</message>") for number in range(last + 1, count + 1)]
        data = form.opening + form.retry(1) + b"".join(map(form.message, sent)) + form.end
        cut = len(data) if last == count else chance.randrange(len(form.opening + form.retry(1)), 500)
        exchange.stream(form.content_type, data[:cut])
        if chance.random() < broken:
            exchange.drop()
        else:
            exchange.end()

    return script


def test_nothing_is_missed_or_repeated_over_broken_connections(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    count = 100
    # Chromium forgets what came with a reset, the pause of 1 ms too, and then takes its own, longer one.
    broken = 0.5 if isinstance(engine, Node) else 0.05
    url = wire.on(f"/broken-{transport}", numbered(transport, count, random.Random(7), broken))
    watch = engine.subscribe(url, transport=transport)
    watch.state("ended")
    assert ids(watch) == [f"e-{number}" for number in range(1, count + 1)]
    assert len(wire.requests) > 20


def test_the_servers_pause_is_kept_and_the_next_connection_resumes(node: Node, wire: Wire) -> None:
    form = STREAMS["multipart"]
    going = says("multipart", form.message(HARD[0]), form.retry(37))
    url = wire.on("/going", going, says("multipart", form.message(HARD[1]), form.end))
    watch = node.subscribe(url + "?kind=1")
    watch.state("ended")
    assert [state["retry"] for state in watch.states if state["state"] == "waiting"] == [37]
    assert [request.query for request in wire.requests] == [{"kind": "1"}, {"kind": "1", "last_event_id": "e-1"}]
    assert ids(watch) == ["e-1", "e-2"]


def test_the_pause_grows_while_nobody_answers(node: Node, wire: Wire) -> None:
    url = wire.on("/down", Exchange.drop)
    watch = node.subscribe(url)
    watch.until(lambda watch: sum(state["state"] == "waiting" for state in watch.states) == 3)
    pauses = [state["retry"] for state in watch.states if state["state"] == "waiting"]
    for pause, longest in zip(pauses, (1000, 2000, 4000), strict=True):
        assert longest / 2 <= pause <= longest
    watch.close()


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
    assert watch.state("waiting")["reason"] == "expected multipart/x-mixed-replace, got text/html"


def test_a_proxys_error_page_is_not_shown_as_the_reason(node: Node, wire: Wire) -> None:
    page = refuses(502, "<h1>Bad gateway</h1>", "text/html")
    watch = node.subscribe(wire.on("/proxy", page, says("multipart", STREAMS["multipart"].end)))
    assert watch.state("waiting")["reason"] == "the server answered 502 Bad Gateway"
    watch.state("ended")


# Silence


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "sse"])
def test_a_stream_that_brings_no_byte_gives_way_to_long_polls(
    request: pytest.FixtureRequest, wire: Wire, transport: str
) -> None:
    engine: Engine = request.getfixturevalue("chromium" if transport == "sse" else "node")
    url = wire.on(f"/held-{transport}", hangs, answers(poll("ready", HARD[0])), answers(poll("done")), never)
    watch = engine.subscribe(url, transport=transport, heartbeat=300)
    watch.state("ended")
    assert ids(watch) == ["e-1"]
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
    assert ids(watch) == ["e-1", "e-2"]


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


# EventSource, which does the first reconnection itself and tells little


def test_an_event_source_comes_back_with_its_last_event_id(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    going = says("sse", form.message(HARD[0]), form.retry(1))
    watch = chromium.subscribe(wire.on("/back", going, says("sse", form.end)), transport="sse")
    watch.state("ended")
    assert [(r.headers["Last-Event-ID"], r.query) for r in wire.requests] == [(None, {}), ("e-1", {})]
    assert [state["state"] for state in watch.states] == ["connecting", "live", "waiting", "live", "ended"]


def test_an_event_source_that_fails_twice_is_made_again_behind_the_last_message(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    going = says("sse", form.message(HARD[0]), form.retry(1))
    down = refuses(503, "not yet", Retry_After="1")
    watch = chromium.subscribe(wire.on("/twice", going, down, down, says("sse", form.end)), transport="sse")
    watch.state("ended")
    assert watch.state("waiting")["reason"] == "not yet"
    assert wire.requests[-1].query == {"last_event_id": "e-1"}
    assert wire.requests[-1].headers["Accept"] == "text/event-stream"


def test_a_quiet_event_source_is_asked_after_and_kept(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    quiet = says("sse", form.heartbeat, end=False)
    url = wire.on("/calm", quiet, answers(poll("waiting")), says("sse", form.message(HARD[0]), form.end))
    watch = chromium.subscribe(url, transport="sse", heartbeat=200)
    watch.state("ended")
    assert [state["state"] for state in watch.states] == ["connecting", "live", "ended"]
    assert ids(watch) == ["e-1"]


def test_an_event_source_whose_messages_are_held_back_gives_way_to_long_polls(chromium: Browser, wire: Wire) -> None:
    deaf = says("sse", end=False)
    one, two = (answers(poll("ready", sent)) for sent in HARD[:2])
    watch = chromium.subscribe(
        wire.on("/deaf", deaf, one, deaf, two, answers(poll("done"))), transport="sse", heartbeat=200
    )
    watch.state("ended")
    assert ids(watch) == ["e-1", "e-2"]
    assert [state["transport"] for state in watch.states if state["fallback"]] == ["longpoll"] * 3


# The page


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
    assert ids(watch) == ["e-1"]
    assert watch.told[-1]["closed"] == "e-1"


def test_a_mistake_of_the_page_is_reported_and_does_not_stop_the_stream(engine: Engine, wire: Wire) -> None:
    form = STREAMS["multipart"]
    url = wire.on("/mistake", says("multipart", form.message(HARD[0]), form.message(HARD[1]), form.end))
    watch = engine.subscribe(url, throwAt="e-1")
    watch.state("ended")
    assert ids(watch) == ["e-1", "e-2"]
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
    assert ids(watch) == ["e-1", "e-2"]
    assert [request.last_event_id for request in wire.requests] == ["", "e-1"]
