"""The hub of the tests, in each way in which it may send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pushdemo.delivery import feed, sending
from tests.delivery.support import Harness

RING = pytest.mark.io_uring


@pytest.fixture(
    params=["many, send", "few, send", pytest.param("many, ring", marks=RING), pytest.param("few, ring", marks=RING)]
)
def harness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """A hub whose groups are all large, or all small, and that sends by either way."""
    size, by = request.param.split(", ")
    monkeypatch.setattr(feed, "CROWD", 1 if size == "many" else 1_000)
    monkeypatch.setattr(sending, "MANY", 1)
    harness = Harness(io_uring=by == "ring")
    yield harness
    harness.hub.stop()
    for end in harness.ends:
        end.close()
