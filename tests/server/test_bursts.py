"""Equal lines of the log in a burst, and lines that are not equal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pushdemo.server.bursts import PAUSE, Bursts, bounded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test-bursts")
    yield logger
    logger.filters.clear()


def write(logger: logging.Logger, *names: str) -> None:
    for name in names:
        logger.warning("about %s", name)


def test_an_equal_line_is_written_once_a_second_with_how_many_were_left_out(
    logger: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addFilter(Bursts(clock=clock))
    write(logger, *"a" * 500)
    clock.now += PAUSE / 2
    write(logger, *"a" * 100)
    clock.now += PAUSE / 2
    write(logger, "a", "a")
    clock.now += 10 * PAUSE
    write(logger, "a")
    clock.now += PAUSE
    write(logger, "a")
    assert caplog.messages == [
        "about a",
        "about a (599 more like this in 1.0 s)",
        "about a (1 more like this in 10.0 s)",
        "about a",
    ]


def test_other_texts_are_other_lines_unless_the_place_counts(
    logger: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addFilter(Bursts(clock=clock))
    write(logger, *"abcabc")
    assert caplog.messages == ["about a", "about b", "about c"]
    caplog.clear()
    logger.filters.clear()
    logger.addFilter(Bursts(by_place=True, clock=clock))
    write(logger, *"abcabc")
    logger.warning("about another")
    assert caplog.messages == ["about a", "about another"]


def test_tracebacks_of_different_errors_are_written_each(
    logger: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addFilter(Bursts(by_place=True, clock=clock))

    def meet(number: int) -> None:
        with suppress(ZeroDivisionError, IndexError, KeyError):
            try:
                if number == 1:
                    [][number]
                elif number == 2:
                    {}[number]
                else:
                    number // (number - number)
            except Exception:
                logger.exception("failed at %d", number)
                raise

    for number in (1, 2, 3, 4, 1, 2, 3):
        meet(number)
    assert caplog.messages == ["failed at 1", "failed at 2", "failed at 3"]


def test_what_is_remembered_has_a_bound(logger: logging.Logger, clock: Clock) -> None:
    bursts = Bursts(clock=clock)
    logger.addFilter(bursts)
    for number in range(5_000):
        write(logger, f"{number}")
    assert len(bursts._lines) <= 1_000


def test_both_logs_are_bounded_for_as_long_as_a_server_runs(caplog: pytest.LogCaptureFixture) -> None:
    loggers = [logging.getLogger(name) for name in ("waitress", "waitress.queue", "pushdemo", "pushdemo.web.sessions")]
    with bounded():
        for logger in loggers:
            write(logger, "a", "a", "a")
    assert len(caplog.messages) == 4
    for logger in loggers:
        write(logger, "a")
    assert len(caplog.messages) == 8
