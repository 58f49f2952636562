"""What makes a topic's messages: a source, run for all clients at once, and not at all while nobody listens.

A source is a function, called every interval, or a generator function, run once for all clients and asked for its next
value every interval. The pool (pool.py) calls a producer when something is due; with an interval of 0 a generator paces
itself in a thread of its own.

States: asleep (nobody listens; nothing is due), waiting (`_call` is in the pool), busy (`_busy`: a thread is at work).
`start` wakes it. Each turn looks what is to be done: a value, if it is due and somebody listens; nothing yet, while the
linger for the next client lasts; or the end of the run. What may never happen: two threads at work at once, or a client
without a turn to come. All state is under the topic's lock, which is not held while the source runs.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import Context
from typing import Any

from pushdemo.topics.pool import Call, SourcePool
from pushdemo.topics.topic import Topic

log = logging.getLogger("pushdemo")

LINGER = 10.0  # seconds that a source waits for the next client: a long poll or a reload leaves and comes back at once
LONGEST_PAUSE = 60.0  # seconds between two tries of a source that goes on failing

Source = Callable[..., Any]


def check_source(name: str, source: Source, interval: float | None) -> None:
    """Raise TypeError for a source that cannot be run, ValueError for an interval that will not do."""
    if not callable(source):
        raise TypeError(f"topic {name}: its source must be a function or a generator function, not {source!r}")
    if inspect.iscoroutinefunction(source) or inspect.isasyncgenfunction(source):
        raise TypeError(f"the source of topic {name} must be a function or a generator function, not async")
    if interval is not None and not 0 <= interval < math.inf:
        raise ValueError(f"topic {name}: interval = {interval}: must be a number of seconds, 0 or more")
    # 0 is a generator's own pace; a function would be called again at once, for ever.
    if not interval and not inspect.isgeneratorfunction(source):
        raise ValueError(f"the source of topic {name} is a function: it needs an interval in seconds")


class Run:
    """One run of a source, from its start to its end: its generator, and the context that all of its steps share.

    `around` makes a context manager that is entered for the whole run. One thread at a time calls it; which one may
    change from step to step (PEP 567: a context variable that a step sets is there in the next).
    """

    def __init__(self, source: Callable[[], Any], around: Callable[[], AbstractContextManager[object]]) -> None:
        self._source = source
        self._context = Context()
        self._entered = ExitStack()
        self._values: Generator[Any, None, None] | None = None
        self._context.run(self._entered.enter_context, around())

    def step(self) -> Any:
        """Return the next value. Raises StopIteration where a generator has come to its end."""
        return self._context.run(self._step)

    def _step(self) -> Any:
        if self._values is None:
            made = self._source()
            if not isinstance(made, Generator):
                return made
            self._values = made
        return next(self._values)

    def close(self) -> None:
        """Close a generator, so that its `finally` runs now."""
        try:
            self._context.run(self._close)
        except BaseException:
            log.exception("a source's generator raised while it was closed")

    def _close(self) -> None:
        with self._entered:
            if self._values is not None:
                self._values.close()


class Producer:
    """Runs `source` for `topic` every `interval` seconds while someone listens, in the threads of `pool`.

    With `interval` None or 0 a generator paces itself. `around` makes a context manager that the source runs in.
    `spread`: the second value comes at a random time of the interval's second half, so that producers which began
    together do not go on together. Raises what `check_source` does.
    """

    def __init__(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        pool: SourcePool,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        linger: float = LINGER,
        spread: bool = False,
    ) -> None:
        check_source(topic.name, source, interval)
        self.topic = topic
        self.interval = interval or 0.0
        self.pool = pool
        self._source = source
        self._around = around
        self._linger = linger
        self._spread = spread
        # Under the topic's lock:
        self._call: Call | None = None
        self._busy = False
        self._left: float | None = None  # when the last client went
        self.due = 0.0  # when the next value is wanted: kept over a stop, so that a reload does not hurry the source
        self._fresh = True  # since it woke, it has made a value, or the last one was not old yet
        self.closed = False
        # Of the thread that is at work:
        self._run: Run | None = None
        self._failures = 0

    def begin_in_child(self) -> None:
        """See MessageProducer."""
        self._call = None
        self._busy = False
        self._left = None
        self._run = None

    # -- called by the topic, under its lock

    @property
    def running(self) -> bool:
        """Whether it is awake."""
        return self._busy or self._call is not None

    @property
    def fresh(self) -> bool:
        """See MessageProducer."""
        return self._fresh if self.running else self.topic.clock() < self.due

    @property
    def has_room(self) -> bool:
        """See MessageProducer."""
        return self.running or not self.pool.full

    def start(self) -> None:
        """The first client has come."""
        self._left = None
        if not self.running:
            self._fresh = self.topic.clock() < self.due
        self._look()

    def start_again(self) -> None:
        """See MessageProducer."""
        self.pool.start_again()

    def stop(self) -> None:
        """The last client has gone; the run ends when none comes in time."""
        self._left = self.topic.clock()
        self._look()

    def halt(self) -> None:
        """End the run without waiting for another client."""
        self._left = -math.inf
        self._look()

    def close(self) -> None:
        """The application stops, or the topic is forgotten."""
        self.closed = True
        self._look()

    def _look(self) -> None:
        """Have a thread find out soon what has changed."""
        if self._busy:
            self.topic.notify_all()  # one of its own may wait; any looks again when its turn is over
        else:
            self._plan()

    def _plan(self) -> None:
        """Have the pool call when there is something to do."""
        if self._call and not self.pool.cancel(self._call):
            return  # it has begun, and looks what there is to do as soon as it has the topic's lock
        pause = self._pause()
        asleep = self._run is None and (pause is None or self._left is not None)
        self._call = None if asleep else self.pool.call_at(self.topic.clock() + (pause or 0.0), self._turn)

    def _pause(self) -> float | None:
        """Seconds until a value is due, or until the linger is over; None when nothing is wanted any more."""
        if self.closed or self.topic.ended:
            return None
        now = self.topic.clock()
        if self._left is None:
            return max(0.0, self.due - now)
        remaining = self._left + self._linger - now
        return remaining if remaining > 0 else None

    # -- a worker of the pool, or a thread of its own

    def _turn(self) -> None:
        with self.topic.lock:
            self._call = None
            pause = self._pause()
            if pause:
                self._plan()
                return
            self._busy = True
            if pause is not None:
                self.due = self._next_due()
        if pause is not None and not self.interval and self.pool.begin_apart(self._pace_itself, self.topic.name):
            return
        try:
            if pause is None:
                self._end_run()
            elif self.interval:
                self._step()
            else:
                self._failed(RuntimeError("no thread is left for a source that paces itself (pushdemo.sources.limit)"))
        finally:
            self._rest()

    def _rest(self) -> None:
        with self.topic.lock:
            self._busy = False
            self._plan()

    def _next_due(self) -> float:
        """On the beat where it can be kept; a beat that was missed is not made up for."""
        now, first = self.topic.clock(), self.due == 0.0
        if first and self._spread:
            return now + self.interval * random.uniform(0.5, 1.0)
        return self.due + self.interval if self.due + self.interval > now else now + self.interval

    def _pace_itself(self) -> None:
        try:
            while self._wait():
                self._step()
            self._end_run()
        finally:
            self._rest()

    def _wait(self) -> bool:
        """Wait until a value is wanted; False when none is any more."""
        with self.topic.changed:
            while pause := self._pause():
                self.topic.changed.wait(pause)
            return pause is not None

    def _step(self) -> None:
        """Have the source make one value."""
        try:
            if self._run is None:
                self._run = Run(self._source, self._around)
            value = self._run.step()
            self._fresh = True  # before anyone hears of the value, and asks
            self._publish(value)
            self._failures = 0
        except StopIteration:
            self._end_run()
            self._finish()
        except BaseException as error:  # sys.exit too: what runs here is not the process's main program
            if not (self.closed or self.topic.closed or self.topic.ended):  # by somebody else, a moment ago
                self._end_run()
                self._failed(error)
        self._fresh = True

    def _end_run(self) -> None:
        if self._run:
            self._run.close()
            self._run = None

    def _failed(self, error: BaseException) -> None:
        """Tell the clients and the log once, and leave the source alone for a while, each time for longer."""
        self._failures += 1
        pause = min(LONGEST_PAUSE, (self.interval or 1.0) * 2 ** min(self._failures - 1, 16))
        with self.topic.lock:
            self.due = self.topic.clock() + pause
        if self._failures == 1:
            if self.pool.may_log(self.topic.pattern, self.topic.name):
                log.error(
                    "the source of topic %.100s failed; next try in %.3g s", self.topic.name, pause, exc_info=error
                )
            self._tell_failing()

    # -- what becomes of what the source does; a producer that shares its topic with others asks first

    def _publish(self, value: Any) -> None:
        self.topic.publish(value)

    def _finish(self) -> None:
        self.topic.end()

    def _tell_failing(self) -> None:
        self.topic.notify("failing")
