"""One client's running generator: its items as JSON, what of them can be given again, and its end.

Here lives what a session does when it is its turn; who gets the turn, and how long a session lives, is `generators`.
No import but the standard library. Threads: whichever holds the session's `turn`, one at a time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable
from contextvars import Context, copy_context
from typing import Any, Literal, NamedTuple

log = logging.getLogger(__name__)

# What failed is in the log; a client learns that it failed and nothing more.
FAILED = "the generator failed"

# NaN and Infinity are no JSON (RFC 8259, section 6), and no browser reads them.
_encode = json.JSONEncoder(allow_nan=False).encode


class Refused(Exception):
    """A call that gets no item: `status` is the HTTP status that says so, `reason` the sentence for the client.

    `count` is how many items the session has given (0 without one), `parameter` the argument at fault, if one is, and
    `retry_after` the seconds after which the same call may succeed, if it may.
    """

    def __init__(
        self, status: int, reason: str, *, parameter: str | None = None, count: int = 0, retry_after: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.parameter = parameter
        self.count = count
        self.retry_after = retry_after


class Owner(NamedTuple):
    """Whose session it is: the view (its `str` is its name in the log), the client's key, the user or None."""

    view: Hashable
    key: str
    user: Hashable


class Answer(NamedTuple):
    """What a call gets: `items` are JSON texts, none when the generator has ended; `given` numbers the last of them."""

    state: Literal["ready", "done", "error"]
    items: tuple[str, ...]
    given: int


class Session:
    """One client's generator. A field without a comment belongs to the holder of `turn`."""

    __slots__ = (
        "context",
        "count",
        "counted",
        "forgotten",
        "generator",
        "idle_since",
        "kept",
        "owner",
        "state",
        "turn",
    )

    def __init__(self, owner: Owner, generator: Generator[Any, Any, Any], accumulate: bool | int) -> None:
        self.owner = owner  # never changes
        self.turn = threading.Lock()  # who holds it may run, read or close the generator
        self.generator: Generator[Any, Any, Any] | None = generator  # None: it has ended
        # The generator runs in the context (PEP 567) of the call that began it, whichever thread runs it.
        self.context = copy_context()
        self.state: Literal["ready", "done", "error"] = "ready"
        self.count = 0  # items given so far
        # The texts that can be given again: those of the last pull, of more for a stream, or what the view accumulates.
        self.kept: tuple[str, ...] | deque[str] = ()
        if accumulate is not False:
            self.kept = deque(maxlen=None if accumulate is True else accumulate)
        self.idle_since = 0.0  # the lock of Sessions owns it
        self.counted = True  # among the open generators; the lock of Sessions owns it
        self.forgotten = False  # becomes true once, under the lock of Sessions; any thread reads it

    def pull(self, most: int, keep: int, timeout: float, clock: Callable[[], float]) -> None:
        """Run the generator for up to `most` items, and keep their texts.

        It is run for another one only where that would come within `timeout` seconds if it took as long as the longest
        before. Of the texts kept so far, as many stay as make `keep` with the new ones.
        """
        pulled: list[str] = []
        before, longest = clock(), 0.0
        deadline = before + timeout
        while len(pulled) < most and (text := self._step()) is not None:
            pulled.append(text)
            now = clock()
            before, longest = now, max(longest, now - before)
            if self.forgotten or now + longest >= deadline:
                break
        self.count += len(pulled)
        if isinstance(self.kept, deque):
            self.kept.extend(pulled)
        elif pulled:
            self.kept = (*self.kept[max(0, len(self.kept) + len(pulled) - keep) :], *pulled)

    def answer(self, after: int, most: int) -> Answer:
        """What is kept of the items after the one numbered `after`; raises Refused, 410, where the next one is not."""
        if after == self.count:
            return Answer(self.state, (), self.count)
        if isinstance(self.kept, deque):
            return Answer("ready", tuple(self.kept), self.count)
        first = self.count - len(self.kept)
        if after < first:
            reason = f"after={after}: the item that follows is kept no longer; ask with after={first} or more"
            raise Refused(410, reason, parameter="after", count=self.count)
        items = self.kept[after - first :][:most]
        return Answer("ready", items, after + len(items))

    def shut(self) -> None:
        """Close the generator: its `finally` runs in this thread. What it raises goes to the log and no further."""
        if self.generator is None:
            return
        try:
            self.context.run(self.generator.close)
        except BaseException:
            log.exception("json_yield: %s failed while it was being closed", self.owner.view)
        self._end("done")

    def _step(self) -> str | None:
        """The next item's text; None at the end, which is then `done` or `error`."""
        if self.generator is None:
            return None
        try:
            item = self.context.run(next, self.generator)
        except StopIteration:
            self._end("done")
            return None
        except (Exception, GeneratorExit):
            log.exception("json_yield: %s failed; its session has ended", self.owner.view)
            self._end("error")
            return None
        except BaseException:  # the process is told to stop; the generator is finished all the same
            self._end("error")
            raise
        return self._text(item)

    def _text(self, item: Any) -> str | None:
        try:
            return _encode(item)
        except Exception as error:
            log.error(
                "json_yield: %s yielded what JSON cannot carry (%s); its session has ended", self.owner.view, error
            )
        self.shut()
        self._end("error")
        return None

    def _end(self, state: Literal["done", "error"]) -> None:
        self.generator = None
        self.context = Context()  # lets go of what the old one held
        self.state = state
