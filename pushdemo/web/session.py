"""One client's running generator: which of its items can be given again, and how it ends.

Here lives what a session does in its turn; who gets the turn, and how long a session lives, is `sessions`. No import
but the standard library. Threads: whichever holds the session's `turn`, one at a time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable
from contextvars import Context, copy_context
from typing import Any, Literal, NamedTuple, Protocol

log = logging.getLogger(__name__)

# NaN and Infinity are no JSON (RFC 8259, section 6), and no browser reads them.
encode = json.JSONEncoder(allow_nan=False).encode


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


def beyond(after: int, count: int) -> Refused:
    """What a call is told that says it has more items than the session has given, which are `count`."""
    if count:
        reason = f"after={after} is beyond the {count} items that this session has given"
        return Refused(400, reason, parameter="after", count=count)
    reason = (
        f"after={after}: there is no such session here: it was idle for too long, or lives in another process; begin "
        "again without after"
    )
    return Refused(410, reason, parameter="after", count=count)


class Owner(NamedTuple):
    """Whose session it is: the view (its `str` is its name in the log), the client's key, the user or None."""

    view: Hashable
    key: str
    user: Hashable

    @property
    def name(self) -> str:
        """The session's name among processes, which tells nothing of the key or the user."""
        return hashlib.sha256(repr((str(self.view), self.key, self.user)).encode()).hexdigest()


class Steps(Protocol):
    """A generator that is run step by step, by one thread at a time. Its `str` says which, in the log."""

    @property
    def is_alone(self) -> bool:
        """Whether the call that has run this step can run no other, since it answers for one as a whole."""

    def __next__(self) -> str:
        """Return the next item as JSON; raise StopIteration, with the return value as JSON or None, at the end."""

    def close(self) -> None:
        """Close the generator: its `finally` runs in this thread."""


class Values:
    """The steps of a generator without an application: its items as Python's `json` writes them."""

    is_alone = False

    def __init__(self, generator: Generator[Any, Any, Any], name: str) -> None:
        self._generator = generator
        self._name = name

    def __next__(self) -> str:
        try:
            return encode(next(self._generator))
        except StopIteration as stop:
            raise StopIteration(None if stop.value is None else encode(stop.value)) from None

    def __str__(self) -> str:
        return self._name

    def close(self) -> None:
        """See Steps."""
        self._generator.close()


Start = Callable[[], Steps | Generator[Any, Any, Any]]


class Call(NamedTuple):
    """What a call says that may begin a session; see `Sessions.take`."""

    owner: Owner
    start: Start | None
    after: int | None
    accumulate: bool | int
    origin: object
    peer: str
    wait: bool  # for the turn; a call that only looks does not


class Answer(NamedTuple):
    """What a call gets: `items` are JSON texts, `given` is the number of the last of them.

    There are none where the generator has ended ("done"): `result` is then its return value, as JSON.
    """

    state: Literal["ready", "done"]
    items: tuple[str, ...]
    given: int
    result: str = "null"


class Session:
    """One client's generator. A field without a comment belongs to the holder of `turn`."""

    __slots__ = (
        "context",
        "count",
        "counted",
        "error",
        "forgotten",
        "idle_since",
        "kept",
        "name",
        "network",
        "origin",
        "owner",
        "result",
        "steps",
        "turn",
    )

    def __init__(
        self, owner: Owner, steps: Steps | Generator[Any, Any, Any], accumulate: bool | int, origin: object = None
    ) -> None:
        self.owner = owner  # never changes, as the next two
        self.name = ""  # among processes; empty where they do not know of each other
        self.network = ""  # of the client that began it; empty where that is a proxy
        self.origin = origin  # the request that began it, told apart by identity
        self.turn = threading.Lock()  # who holds it may run, read or close the generator
        # None: the generator has ended.
        self.steps: Steps | None = Values(steps, str(owner.view)) if isinstance(steps, Generator) else steps
        # The generator runs in the context (PEP 567) of the call that began it, whichever thread runs it.
        self.context = copy_context()
        self.result = "null"  # what the generator has returned, as JSON
        self.error: Exception | None = None  # what has ended the generator, as `copied` keeps it
        self.count = 0  # items given so far
        # The texts that can be given again: those of the last pull, of more for a stream, or what the view accumulates.
        self.kept: tuple[str, ...] | deque[str] = ()
        if accumulate is not False:
            self.kept = deque(maxlen=None if accumulate is True else accumulate)
        self.idle_since = 0.0  # the lock of Sessions owns it
        self.counted = True  # among the open generators; the lock of Sessions owns it
        self.forgotten = False  # becomes true once, under the lock of Sessions; any thread reads it

    def pull(self, most: int, keep: int, timeout: float, clock: Callable[[], float]) -> None:
        """Run the generator for up to `most` items, and keep the last `keep` items, or those of this call if more.

        It is run for another one only where that would come within `timeout` seconds if it took as long as the longest
        before. Raises what the generator raises, if it has given no item before; otherwise the next call does.
        """
        if self.error is not None:
            raise copied(self.error)
        pulled: list[str] = []
        steps = self.steps
        before, longest = clock(), 0.0
        deadline = before + timeout
        try:
            while len(pulled) < most and (text := self._step()) is not None:
                pulled.append(text)
                now = clock()
                before, longest = now, max(longest, now - before)
                if self.forgotten or now + longest >= deadline or (steps and steps.is_alone):
                    break
        except Exception:
            if not pulled:
                raise
            log.exception("json_yield: %s failed; its session has ended", steps)
        finally:
            self._keep(pulled, keep)

    def _keep(self, pulled: list[str], keep: int) -> None:
        self.count += len(pulled)
        if isinstance(self.kept, deque):
            self.kept.extend(pulled)
        elif pulled:
            self.kept = (*self.kept[max(0, len(self.kept) + len(pulled) - keep) :], *pulled)

    def answer(self, after: int, most: int) -> Answer:
        """Return the kept items after the one numbered `after`; raise Refused, 410, where the next one is not kept."""
        if after == self.count:
            return Answer("ready" if self.steps else "done", (), self.count, self.result)
        if isinstance(self.kept, deque):
            return Answer("ready", tuple(self.kept), self.count)
        first = self.count - len(self.kept)
        if after < first:
            reason = f"after={after}: the item that follows is kept no longer; ask with after={first} or more"
            raise Refused(410, reason, parameter="after", count=self.count)
        items = self.kept[after - first :][:most]
        return Answer("ready", items, after + len(items))

    def shut(self) -> None:
        """Close the generator in this thread. What its `finally` raises is logged."""
        if self.steps is None:
            return
        try:
            self.context.run(self.steps.close)
        except BaseException:
            log.exception("json_yield: %s failed while it was being closed", self.steps)
        self._end()

    def _step(self) -> str | None:
        """Return the next item; None at the end. Raises what the generator raises, which ends the session."""
        if self.steps is None:
            return None
        try:
            return self.context.run(next, self.steps)
        except StopIteration as stop:
            self.result = stop.value or "null"
            self._end()
            return None
        except BaseException as error:
            self.shut()  # it is still open where it was its item that failed
            self.error = copied(error)
            if isinstance(error, GeneratorExit):  # to those who call this it would mean the end of themselves
                raise self.error from error
            raise

    def _end(self) -> None:
        self.steps = None
        self.context = Context()  # lets go of what the old one held


def log_failure(error: Exception, owner: Owner, url: str) -> None:
    """Log an error that a call has raised; not again where it is one of an earlier call."""
    if AGAIN not in getattr(error, "__notes__", ()):
        log.error(
            "json_yield: %s failed; its session has ended. Key %r, %s", owner.view, owner.key, url, exc_info=error
        )


AGAIN = "json_yield: an earlier call has raised this error; its session has ended"


def copied(error: BaseException) -> Exception:
    """Return what later calls raise: a copy of `error` without its traceback, which would keep the first call's frames.

    SystemExit and the like, which are for the first call's thread alone, become a RuntimeError.
    """
    if not isinstance(error, Exception):
        return RuntimeError(f"the generator has ended with {type(error).__name__}")
    try:
        made: Exception = copy.copy(error)
    except Exception:  # its __init__ takes other arguments than its `args`
        made = type(error).__new__(type(error))
    made.args = error.args
    # A Pyramid HTTP exception is a response: whoever adds a header to the copy must not add it to the other.
    made.__dict__.update({name: list(value) if type(value) is list else value for name, value in vars(error).items()})
    if AGAIN not in getattr(made, "__notes__", ()):
        made.add_note(AGAIN)
    return made
