"""Keeps a burst of equal lines from filling the log: one a second, with how many were left out.

Standard library only. Any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 1.0  # seconds between two equal lines
_KNOWN = 1_000  # lines that are remembered


class Bursts(logging.Filter):
    """A filter for loggers. Lines are equal that have the same text, or come from the same place if `by_place`.

    What a client may write into a line, its path say, makes no difference then. Tracebacks of different errors do.
    """

    def __init__(self, *, by_place: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._by_place = by_place
        self._clock = clock
        self._lock = threading.Lock()  # guards the table: when each line was last written, and how many were not since
        self._lines: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line. One that follows others which were left out says how many."""
        text = record.getMessage()
        key = (record.pathname, record.lineno, _error(record), "" if self._by_place else text)
        now = self._clock()
        with self._lock:
            written, left_out = self._lines.get(key, (now - PAUSE, 0))
            if now < written + PAUSE:
                self._lines[key] = written, left_out + 1
                return False
            self._lines.pop(key, None)
            self._lines[key] = now, 0
            if len(self._lines) > _KNOWN:
                del self._lines[next(iter(self._lines))]  # the one that was written longest ago
        if left_out:
            record.msg, record.args = f"{text} ({left_out} more like this in {now - written:.1f} s)", ()
        return True


def _error(record: logging.LogRecord) -> object:
    """Where an error comes from, and what it is."""
    if not record.exc_info or record.exc_info[0] is None:
        return None
    kind, _, place = record.exc_info
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return kind, place and (place.tb_frame.f_code.co_filename, place.tb_lineno)


@contextmanager
def bounded() -> Iterator[None]:
    """While this runs, neither waitress's log nor ours repeats itself in a burst."""
    filters = {
        logging.getLogger(name): Bursts(by_place=name.startswith("waitress"))
        for name in ["waitress", "waitress.queue", *_own_loggers()]
    }
    for logger, bursts in filters.items():
        logger.addFilter(bursts)
    try:
        yield
    finally:
        for logger, bursts in filters.items():
            logger.removeFilter(bursts)


def _own_loggers() -> list[str]:
    known = list(logging.root.manager.loggerDict)
    return sorted({"pushdemo", *(name for name in known if name.startswith("pushdemo."))})
