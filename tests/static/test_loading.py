"""A page that loads its state and goes on from there: `load`."""

from __future__ import annotations

import pytest

from tests.static.engines import Engine, Node
from tests.static.formats import STREAMS, Sent
from tests.static.scripts import HARD, never, refuses, says
from tests.static.wire import Wire

FORM = STREAMS["multipart"]


def test_the_state_is_loaded_first_and_the_stream_goes_on_from_it(stream: tuple[Engine, str], wire: Wire) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    url = wire.on(f"/load-{transport}", says(transport, form.message(HARD[1]), form.end), never)
    watch = engine.subscribe(url, transport=transport, load=["e-1"])
    watch.state("ended")
    assert [kind for event in watch.told for kind in event if kind in ("load", "message")] == ["load", "message"]
    assert wire.requests[0].last_event_id == "e-1"


def test_after_a_reset_the_state_is_loaded_again_and_nothing_of_the_old_stream_is_shown(
    stream: tuple[Engine, str], wire: Wire
) -> None:
    engine, transport = stream
    form = STREAMS[transport]
    missed = form.message(HARD[0]) + form.reset_to("f-0") + form.message(Sent("f-3", "old"))
    again = says(transport, form.message(Sent("f-4", "new")), form.end)
    url = wire.on(f"/reload-{transport}", says(transport, missed, end=False), again, never)
    watch = engine.subscribe(url, transport=transport, load=["e-0", "f-3"])
    watch.state("ended")
    told = [next(iter({"load", "message", "reset"} & event.keys()), "") for event in watch.told]
    assert [kind for kind in told if kind] == ["load", "message", "reset", "load", "message"]
    assert watch.ids == ["e-1", "f-4"]
    assert [request.last_event_id for request in wire.requests] == ["e-0", "f-3"]


def test_a_load_that_fails_is_told_and_tried_again(node: Node, wire: Wire) -> None:
    url = wire.on("/load-fails", says("multipart", FORM.end), never)
    watch = node.subscribe(url, load=[{"error": "Failed to fetch"}, "e-1"])
    watch.state("ended")
    waiting = watch.state("waiting")
    assert waiting["code"] == "load-failed"
    assert waiting["reason"] == "the page's state could not be loaded: Failed to fetch"
    assert 500 <= waiting["retry"] <= 1000
    assert wire.requests[0].last_event_id == "e-1"


def test_a_load_that_returns_no_id_is_an_error_of_the_page(node: Node, wire: Wire) -> None:
    watch = node.subscribe(wire.on("/load-wrong", never), load=[7])
    failed = watch.state("failed")
    assert (failed["code"], failed["reason"]) == (
        "load-failed",
        "load returned 7: must be the id of the state, a string",
    )


def test_a_state_that_is_older_than_the_history_is_not_loaded_without_rest(node: Node, wire: Wire) -> None:
    reset = says("multipart", FORM.reset_to("f-0"), end=False)
    watch = node.subscribe(wire.on("/older", reset, reset, says("multipart", FORM.end), never), load=["e-1"])
    watch.state("ended")
    assert len(watch.of("load")) == 3
    (waiting,) = [state for state in watch.states if state["state"] == "waiting"]
    assert waiting["retry"] >= 500


def test_an_outage_does_not_load_the_state_again(node: Node, wire: Wire) -> None:
    going = says("multipart", FORM.message(HARD[0]), FORM.retry(1))
    url = wire.on("/outage", going, refuses(503, Retry_After="0"), says("multipart", FORM.message(HARD[1]), FORM.end))
    watch = node.subscribe(url, load=["e-0"])
    watch.state("ended")
    assert (watch.of("load"), watch.ids, watch.resets) == (["e-0"], ["e-1", "e-2"], 0)


@pytest.mark.parametrize("id", ["", None])
def test_a_state_of_no_id_begins_with_the_newest_message(node: Node, wire: Wire, id: str | None) -> None:
    watch = node.subscribe(wire.on("/load-none", says("multipart", FORM.end), never), load=[id])
    watch.state("ended")
    assert wire.requests[0].query == {}
