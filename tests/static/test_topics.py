"""Several topics on one connection, each with its own ids; and events that have names."""

from __future__ import annotations

import pytest

from tests.static.engines import Browser, Engine, Node
from tests.static.formats import STREAMS, Sent, poll
from tests.static.scripts import answers, never, says
from tests.static.wire import Wire

BEGIN = "news:e-0,figures:f-7"


def ids(text: str) -> set[str]:
    return set(text.split(","))


def test_each_topic_goes_on_after_its_own_last_message(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    going = [form.begin(BEGIN), form.message(Sent("f-8", 8, "figures")), form.message(Sent("f-9", 9, "figures"))]
    rest = [form.begin("news:e-0,figures:f-9"), form.message(Sent("e-1", "one", "news")), form.end]
    url = wire.on(f"/topics-{transport}", says(transport, *going, form.retry(1)), says(transport, *rest), never)
    watch = engine.subscribe(url, transport=transport)
    watch.state("ended")
    assert [(m["topic"], m["id"]) for m in watch.messages] == [("figures", "f-8"), ("figures", "f-9"), ("news", "e-1")]
    assert ids(wire.requests[1].last_event_id) == {"news:e-0", "figures:f-9"}
    assert ids(watch.messages[-1]["lastEventId"]) == {"news:e-1", "figures:f-9"}


@pytest.mark.heavy
def test_a_reset_says_where_all_topics_go_on(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    reset = [form.begin("news:g-4,figures:f-7"), form.reset_to("news:g-4,figures:f-7"), form.retry(1)]
    url = wire.on(f"/reset-topics-{transport}", says(transport, *reset), says(transport, form.end), never)
    watch = engine.subscribe(url, transport=transport, lastEventId="news:e-3,figures:f-7")
    watch.state("ended")
    assert watch.resets == 1
    assert ids(wire.requests[1].last_event_id) == {"news:g-4", "figures:f-7"}


def test_a_beginning_does_not_pass_over_a_reset_that_has_not_come(stream: tuple[Engine, str], wire: Wire) -> None:
    """The stream may break between the two."""
    engine, transport = stream
    form = STREAMS[transport]
    torn = says(transport, form.begin("news:g-4,figures:f-7"), form.retry(1))
    url = wire.on(f"/torn-topics-{transport}", torn, says(transport, form.end), never)
    watch = engine.subscribe(url, transport=transport, lastEventId="news:e-3")
    watch.state("ended")
    assert ids(wire.requests[1].last_event_id) == {"news:e-3", "figures:f-7"}


def test_an_event_source_of_several_topics_is_not_left_to_come_back_by_itself(chromium: Browser, wire: Wire) -> None:
    form = STREAMS["sse"]
    going = says("sse", form.begin(BEGIN), form.message(Sent("f-8", 8, "figures")), form.retry(1))
    watch = chromium.subscribe(wire.on("/own", going, says("sse", form.end), never), transport="sse")
    watch.state("ended")
    assert [request.headers["Last-Event-ID"] for request in wire.requests] == [None, None]
    assert ids(wire.requests[1].query["last_event_id"]) == {"news:e-0", "figures:f-8"}


def test_polls_return_the_ids_of_all_topics(node: Node, wire: Wire) -> None:
    sent = Sent("f-8", 8, "figures")
    url = wire.on(
        "/poll-topics", answers(poll("ready", sent, last_event_id="news:e-0,figures:f-8")), answers(poll("done"))
    )
    watch = node.subscribe(url, transport="longpoll")
    watch.state("ended")
    assert wire.requests[1].last_event_id == "news:e-0,figures:f-8"


@pytest.mark.parametrize("named", [True, False])
def test_an_event_with_a_name_is_told_as_one(stream: tuple[Engine, str], wire: Wire, named: bool) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    sent = [form.message(Sent("e-1", "one")), form.message(Sent("e-2", 2, event="price"))]
    url = wire.on(f"/named-{transport}", says(transport, *sent, form.end), never)
    watch = engine.subscribe(url, transport=transport, events=["price"], named=named)
    watch.state("ended")
    got = [*watch.messages, *watch.of("event")]
    assert [(m["id"], m["content"], m.get("event")) for m in got] == [("e-1", "one", None), ("e-2", 2, "price")]
    assert len(watch.messages) == 2 - named
