"""The demo application, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyramid.router import Router
from webtest import TestApp

from pushdemo.demo import main
from pushdemo.demo.load import Load
from pushdemo.web.sessions import Sessions
from tests.demo.samples import Clock


@pytest.fixture
def demo() -> Router:
    """The demo, whose `sessions` close with the test."""
    return main(**{"pushdemo.generators.timeout": "90"})


@pytest.fixture
def sessions(demo: Router) -> Iterator[Sessions]:
    sessions: Sessions = demo.registry["pushdemo.generators"]
    yield sessions
    assert sessions.close(10) == 0


@pytest.fixture
def app(demo: Router, sessions: Sessions) -> TestApp:
    return TestApp(demo)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def load(clock: Clock) -> Load:
    return Load(clock, clock.sleep)
