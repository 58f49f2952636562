"""What makes a topic's messages: one thread a topic, whoever many listen, and none while nobody does.

A source is a function, called every interval, or a generator function, run once for all clients and asked for its next
value every interval. The thread alone runs the source; everything else it shares is under the topic's lock.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pushdemo.forking import call_in_child
from pushdemo.topics.topic import Topic

log = logging.getLogger("pushdemo")

LINGER = 10.0  # seconds that a source waits for the next client: a long poll or a reload leaves and comes back at once
LONGEST_PAUSE = 60.0  # seconds between two tries of a source that goes on failing


class Producer:
    """Runs `source` for `topic` every `interval` seconds while someone listens.

    With `interval` None or 0 a generator paces itself. `around` makes a context that the source runs in. Raises
    ValueError for an interval that will not do and a function without one, TypeError for a coroutine function.
    """

    def __init__(
        self,
        topic: Topic,
        source: Callable[[], Any],
        interval: float | None,
        *,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        linger: float = LINGER,
    ) -> None:
        if inspect.iscoroutinefunction(source) or inspect.isasyncgenfunction(source):
            raise TypeError(f"the source of topic {topic.name} must be a function or a generator function, not async")
        if interval is not None and not 0 <= interval < math.inf:
            raise ValueError(f"topic {topic.name}: interval = {interval}: must be a number of seconds, 0 or more")
        # 0 is a generator's own pace; a function would be called again at once, for ever.
        if not interval and not inspect.isgeneratorfunction(source):
            raise ValueError(f"the source of topic {topic.name} is a function: it needs an interval in seconds")
        self.topic = topic
        self.interval = interval or 0.0
        self._source = source
        self._around = around
        self._linger = linger
        self.running = False  # a thread is at work; under the topic's lock, as are the next two
        self._left: float | None = None  # when the last client went
        self.due = 0.0  # when the next value is wanted: kept over a stop, so that a reload does not hurry the source
        self._fresh = True  # since it began to run, it has made a value, or the last one was not old yet
        self.closed = False
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """In a forked process: the thread is the parent's, and so are the clients."""
        self.running = False
        self._left = None

    # -- called by the topic, under its lock

    @property
    def fresh(self) -> bool:
        """See Source."""
        return self._fresh if self.running else self.topic.clock() < self.due

    def start(self) -> None:
        """The first client has come."""
        self._left = None
        if self.running:
            self.topic.changed.notify_all()
        elif not self.closed:
            self.running = True
            self._fresh = self.topic.clock() < self.due
            threading.Thread(target=self._run, name=f"pushdemo-source-{self.topic.name}", daemon=True).start()

    def stop(self) -> None:
        """The last client has gone; the thread ends when none comes in time."""
        self._left = self.topic.clock()
        self.topic.changed.notify_all()  # the thread may wait for a value that is due in an hour

    def close(self) -> None:
        """The application stops."""
        self.closed = True

    def halt(self) -> None:
        """The thread is to end at its next look, without waiting for another client."""
        self._left = -math.inf
        self.topic.changed.notify_all()

    # -- the source's own thread

    def _run(self) -> None:
        values: Iterator[Any] | None = None
        failures = 0
        with self._around():
            while self._wait():
                try:
                    values = values or self._values()
                    value = next(values)
                    self._fresh = True  # before anyone hears of the value, and asks
                    self._publish(value)
                    failures = 0
                except StopIteration:
                    self._finish()
                    break
                except Exception:
                    if self.topic.closed or self.topic.ended:  # by somebody else, a moment ago
                        break
                    values, failures = None, failures + 1
                    self._failed(failures)
                self._fresh = True
            _dispose(values)

    def _values(self) -> Iterator[Any]:
        if inspect.isgeneratorfunction(self._source):
            return iter(self._source())
        return iter(self._source, object())  # called for ever: no value equals that object

    def _wait(self) -> bool:
        """Wait until a value is due and wanted; False when it is not wanted any more."""
        clock = self.topic.clock
        with self.topic.changed:
            while not (self.closed or self.topic.ended):
                now = clock()
                remaining = self.due - now if self._left is None else self._left + self._linger - now
                if remaining > 0:
                    self.topic.changed.wait(remaining)
                elif self._left is None:
                    # On the beat where it can be kept; a beat that was missed is not made up for.
                    self.due = self.due + self.interval if self.due + self.interval > now else now + self.interval
                    return True
                else:
                    break
            self.running = False
            return False

    def _failed(self, failures: int) -> None:
        """Tell the clients and the log once, and leave the source alone for a while, each time for longer."""
        pause = min(LONGEST_PAUSE, (self.interval or 1.0) * 2 ** min(failures - 1, 16))
        with self.topic.changed:
            self.due = self.topic.clock() + pause
        if failures == 1:
            log.exception("the source of topic %s failed; next try in %.3g s", self.topic.name, pause)
            self._tell_failing()

    # -- what becomes of what the source does; a producer that shares its topic with others asks first

    def _publish(self, value: Any) -> None:
        self.topic.publish(value)

    def _finish(self) -> None:
        self.topic.end()

    def _tell_failing(self) -> None:
        self.topic.notify("failing")


def _dispose(values: Iterator[Any] | None) -> None:
    """Close a generator that is not wanted any more, so that its `finally` runs now."""
    try:
        if inspect.isgenerator(values):
            values.close()
    except Exception:
        log.exception("a source's generator raised while it was closed")
