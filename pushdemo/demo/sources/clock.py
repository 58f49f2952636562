"""The source of `/server/index`: the server's date and time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pushdemo.cache.memorize import memorize


@memorize(name="datetime_string")
def datetime_string() -> str:
    """The date and time, as if it were large and costly to gather: a new one only when the memorized one is too old."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def data_stream() -> Iterator[str]:
    """The messages of the topic, for all its clients."""
    while True:
        yield datetime_string()
