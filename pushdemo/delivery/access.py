"""The access log of streams: one line for each, when it ends. Whoever holds the stream owns its record.

Nothing is counted for each message and client: a group of streams that are written the same bytes counts them once, and
a record keeps where the group's count was when its stream became one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

log = logging.getLogger("pushdemo.access")


class Counted(Protocol):
    """What counts the bytes that each of its streams is written."""

    sent: int


class NoRecord:
    """The record of a stream where there is no log: it keeps nothing."""

    def begin(self, places: int) -> None:
        """The stream begins; `places` is the sum of its cursors' positions."""

    def join(self, groups: Sequence[Counted]) -> None:
        """The stream is written from now on what these groups are."""

    def leave(self, groups: Sequence[Counted]) -> None:
        """It is no more, if it was."""

    def add(self, size: int) -> None:
        """This stream alone is written so many bytes."""

    def ended(self, why: str) -> None:
        """Say why the stream ends; the first reason counts."""

    def write(self, now: float, places: int) -> None:
        """Write the line, when the stream has ended."""


NO_RECORD = NoRecord()


class Record(NoRecord):
    """What is known of one stream. `request` is who asks for what; `began` and `now` are in seconds."""

    __slots__ = ("_began", "_bytes", "_first", "_mark", "_request", "_why")

    def __init__(self, request: str, began: float) -> None:
        self._request = request
        self._began = began
        self._first = 0
        self._bytes = 0
        self._why = ""
        self._mark: int | None = None  # what its groups had been sent when it joined them

    def begin(self, places: int) -> None:
        self._first = places

    def join(self, groups: Sequence[Counted]) -> None:
        self._mark = sum(group.sent for group in groups)

    def leave(self, groups: Sequence[Counted]) -> None:
        if self._mark is not None:
            self._bytes += sum(group.sent for group in groups) - self._mark
            self._mark = None

    def add(self, size: int) -> None:
        self._bytes += size

    def ended(self, why: str) -> None:
        self._why = self._why or why

    def write(self, now: float, places: int) -> None:
        log.info(
            "%s %.1f s, %d messages, %d bytes, %s",
            self._request,
            now - self._began,
            places - self._first,
            self._bytes,
            self._why or "the client left",
        )
