"""Where a stream of one topic goes on that begins with an id, before any message has come."""

from __future__ import annotations

import pytest

from tests.static.engines import Browser, Engine, Node
from tests.static.formats import STREAMS, Sent
from tests.static.scripts import never, refuses, says
from tests.static.wire import Wire


@pytest.mark.parametrize("begin", ["", "latest"])
def test_a_topic_without_a_message_goes_on_from_where_it_began(
    stream: tuple[Engine, str], wire: Wire, begin: str
) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    lost = says(transport, form.begin("e-7"), form.retry(1))
    down = refuses(503, Retry_After="0")  # to the stream, and to the poll in place of an EventSource
    rest = says(transport, form.message(Sent("e-8", "<a/>")), form.end)
    url = wire.on(f"/began-{transport}-{begin}", lost, *[down] * (1 + (transport == "sse")), rest, never)
    watch = engine.subscribe(url, transport=transport, lastEventId=begin)
    watch.state("ended")
    assert wire.requests[0].last_event_id == begin
    assert wire.requests[-1].query["last_event_id"] == "e-7", "not only by a browser's own header"
    assert (watch.ids, watch.resets) == (["e-8"], 0)


@pytest.mark.parametrize("transport", ["multipart", "jsonlines", "sse"])
@pytest.mark.parametrize("begin", ["", "latest"])
def test_a_page_that_was_left_goes_on_from_where_its_topic_began(
    chromium: Browser, wire: Wire, transport: str, begin: str
) -> None:
    form = STREAMS[transport]
    began = says(transport, form.begin("e-7"), form.failing, end=False)
    url = wire.on(f"/left-{transport}-{begin}", began, says(transport, form.end), never)
    watch = chromium.subscribe(url, transport=transport, lastEventId=begin)
    watch.state("failing")  # the beginning was read before
    chromium.driver.execute_script("dispatchEvent(new Event('pagehide'))")
    watch.state("paused")
    chromium.driver.execute_script("dispatchEvent(new Event('pageshow'))")
    watch.state("ended")
    assert [request.query.get("last_event_id", "") for request in wire.requests] == [begin, "e-7"]


def test_a_page_that_is_hidden_for_long_goes_on_from_where_its_topic_began(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["multipart"]
    began = says("multipart", form.begin("e-7"), form.failing, end=False)
    watch = chromium.subscribe(wire.on("/hidden-began", began, says("multipart", form.end), never), hiddenAfter=0)
    watch.state("failing")
    page = chromium.driver.current_window_handle
    chromium.driver.switch_to.new_window("tab")
    chromium.driver.switch_to.window(page)  # it is hidden still
    watch.state("paused")
    chromium.driver.execute_cdp_cmd("Page.bringToFront", {})
    watch.state("ended")
    assert wire.requests[-1].last_event_id == "e-7"
    (other,) = {*chromium.driver.window_handles} - {page}
    chromium.driver.switch_to.window(other)
    chromium.driver.close()
    chromium.driver.switch_to.window(page)


@pytest.mark.parametrize("transport", ["multipart", "jsonlines"])
def test_a_beginning_does_not_take_the_place_of_a_messages_id(node: Node, wire: Wire, transport: str) -> None:
    form = STREAMS[transport]
    lost = says(transport, form.message(Sent("e-9", "<a/>")), form.retry(1))
    url = wire.on(
        f"/after-{transport}", lost, says(transport, form.begin("e-7"), form.retry(1)), says(transport, form.end)
    )
    watch = node.subscribe(url, transport=transport)
    watch.state("ended")
    assert [request.last_event_id for request in wire.requests] == ["", "e-9", "e-9"]
    watch.close()
    assert watch.told[-1]["closed"] == "e-9"


def test_a_beginning_that_is_no_position_is_none(node: Node, wire: Wire) -> None:
    form = STREAMS["multipart"]
    lost = says("multipart", form.begin("earliest"), form.retry(1))
    watch = node.subscribe(wire.on("/no-position", lost, says("multipart", form.end), never), lastEventId="latest")
    watch.state("ended")
    assert [request.last_event_id for request in wire.requests] == ["latest", "latest"]
