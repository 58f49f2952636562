"""The pool: the threads that run sources, all from one heap of due times.

A call waits in the heap until it is due, then in a queue for a worker. One thread, the scheduler, watches the heap; it
begins with the first call. Workers are begun when they are needed, and are gone when they have been idle for a while;
with the scheduler they are at most `threads`, of which it takes two. All end when nothing is left to do. A call that
takes longer than `slow` seconds is taken out of that count, so that others go on: its worker ends with it. At most
`limit` threads may be out like this or run a source that paces itself; `full` says when there are so many. What may
never happen: a call that runs twice at once, or that is due and forgotten.

Any thread calls what has no underscore; all state is under `changed`, which is never held while a source runs.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from pushdemo.forking import call_in_child

log = logging.getLogger("pushdemo")

SLOW = 5.0  # seconds after which a call is no more counted among the pool's
LATE = 2.0  # seconds after which a call that is due has come too late
ON_TIME = 60.0  # seconds without one that is late, before another is worth a line in the log
_IDLE = 10.0  # seconds that a worker waits for the next call before it ends
_AGAIN = 0.5  # seconds before a thread is asked for again that the system did not have
_QUIET = 10.0  # seconds between two tracebacks of the sources of one pattern: a client may open many that fail
_SOON = 0.005  # seconds that calls wait for the workers that there are, before there is one more
_LONGEST = 3_600.0  # seconds that the scheduler sleeps at most: a condition does not wait for a thousand years
_TOGETHER = 0.002  # seconds that the scheduler sleeps at least: what is due meanwhile begins with one turn


class Call:
    """A function to be called when it is due, unless it is cancelled before."""

    __slots__ = ("due", "function", "waits")

    def __init__(self, due: float, function: Callable[[], None]) -> None:
        self.due = due
        self.function: Callable[[], None] | None = function  # None: cancelled, or begun
        self.waits = True  # in the heap

    def __lt__(self, other: Call) -> bool:
        return self.due < other.due


class SourcePool:
    """Calls functions when they are due, in a few threads. `clock` counts seconds."""

    def __init__(
        self,
        threads: int = 8,
        limit: int = 100,
        clock: Callable[[], float] = time.monotonic,
        *,
        slow: float = SLOW,
        condition: Callable[[threading.Lock], threading.Condition] = threading.Condition,
    ) -> None:
        self._most = max(1, threads - 1)  # workers
        self.limit = limit
        self.clock = clock
        self._slow = slow
        self._condition = condition
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin without calls and threads: in a forked process they are the parent's."""
        self._lock = threading.Lock()  # guards all below
        self.changed = self._condition(self._lock)  # the scheduler waits for it
        self._wanted = threading.Condition(self._lock)  # the workers wait for it
        self._heap: list[Call] = []
        self._cancelled = 0  # of those in the heap
        self._ready: deque[Call] = deque()
        self._scheduler: threading.Thread | None = None
        self._workers = 0  # threads that count, idle or not
        self._idle = 0
        self._begun: dict[int, float] = {}  # when each call that counts began, in that order; by its thread
        self._late_until = -math.inf  # when sources will have been on time for long enough to tell of the next late one
        self._lacking = False  # the system had no thread for the last one that was wanted
        self._logged: dict[str, float] = {}  # when a failure was last logged, by pattern
        self._apart = 0  # threads that do not count: slow calls, and sources that pace themselves

    @property
    def full(self) -> bool:
        """Whether no thread more may be kept by a slow source, or by one that paces itself."""
        return self._apart >= self.limit

    @property
    def busy(self) -> int:
        """How many calls are due or have begun; those that have become slow are not among them."""
        with self._lock:
            return len(self._ready) + len(self._begun)

    def may_log(self, pattern: str, name: str) -> bool:
        """Whether the failure of a source may be logged: of all topics of one pattern, one in a while."""
        with self._lock:
            now = self.clock()
            if pattern != name and now < self._logged.get(pattern, -math.inf) + _QUIET:
                return False
            self._logged[pattern] = now
            return True

    def call_at(self, due: float, function: Callable[[], None]) -> Call:
        """Call `function` once, in a worker, when it is due."""
        call = Call(due, function)
        with self._lock:
            heapq.heappush(self._heap, call)
            if self._scheduler is None:
                self._scheduler = self._started(self._schedule, "pushdemo-sources")
            elif self._heap[0] is call:
                self.changed.notify()
        return call

    def start_again(self) -> None:
        """Begin the scheduler if it is wanted, and the system had no thread for it before."""
        if self._heap and self._scheduler is None:
            with self._lock:
                if self._heap and self._scheduler is None:
                    self._scheduler = self._started(self._schedule, "pushdemo-sources")

    def cancel(self, call: Call) -> bool:
        """Do not call it; False where it has begun."""
        with self._lock:
            if call.function is None:
                return False
            call.function = None
            if call.waits:
                call.waits = False
                self._cancelled += 1
                self._drop_cancelled()
                if self._cancelled > len(self._heap) // 2 + 100:  # what is due in an hour is not kept so long
                    self._heap = [kept for kept in self._heap if kept.waits]
                    heapq.heapify(self._heap)
                    self._cancelled = 0
                if self._is_over():
                    self.changed.notify()
            return True

    def _drop_cancelled(self) -> None:
        """Have a call at the top of the heap that is still wanted; under the lock."""
        while self._heap and not self._heap[0].waits:
            heapq.heappop(self._heap)
            self._cancelled -= 1

    def begin_apart(self, function: Callable[[], None], name: str) -> bool:
        """Call `function` in a thread of its own; False where there is none left."""
        with self._lock:
            if self.full:
                return False
            self._apart += 1

        def run() -> None:
            try:
                function()
            finally:
                with self._lock:
                    self._come_back()

        if self._started(run, f"pushdemo-source-{name}"):
            return True
        with self._lock:
            self._apart -= 1
        return False

    # -- the scheduler's thread

    def _schedule(self) -> None:
        with self._lock:
            try:
                while self._turn():
                    pass
            finally:  # after an error of ours, `start_again` begins another
                self._scheduler = None
                self._wanted.notify_all()

    def _turn(self) -> bool:
        """See to what is due, and sleep until something else is; whether anything is left to do. Under the lock."""
        now = self.clock()
        waited = bool(self._ready)  # since the turn before this one
        self._take_due(now)
        self._take_slow_out(now)
        self._employ(one_more=waited or not self._workers)
        if self._is_over():
            return False
        self.changed.wait(self._pause(now))
        return True

    def _take_due(self, now: float) -> None:
        while self._heap and self._heap[0].due <= now:
            call = heapq.heappop(self._heap)
            call.waits = False
            self._ready.append(call)
            self._drop_cancelled()

    def _take_slow_out(self, now: float) -> None:
        for thread, began in list(self._begun.items()):
            if began + self._slow > now or self.full:
                break
            del self._begun[thread]
            self._workers -= 1
            self._apart += 1
            if self.full:
                log.warning(
                    "%d threads are kept by sources that take over %g s or pace themselves (pushdemo.sources.limit): "
                    "clients of further ones get 503",
                    self._apart,
                    self._slow,
                )

    def _employ(self, one_more: bool) -> None:
        """Wake the workers for the calls that are ready; begin another where those that there are cannot keep up."""
        self._wanted.notify(len(self._ready))
        if self._ready and one_more and self._workers < self._most:
            started = self._started(self._work, f"pushdemo-source-{self._workers + 1}")
            self._workers += 1 if started else 0

    def _pause(self, now: float) -> float | None:
        """Seconds until a call is due or has become slow; None where neither will."""
        times = [call.due for call in self._heap[:1]]
        if len(self._ready) > self._idle and self._workers < self._most:
            times.append(now + (_AGAIN if self._lacking else _SOON))
        if (self._begun or self._ready) and not self.full:
            times.append(next(iter(self._begun.values()), now) + self._slow)
        return max(_TOGETHER, min(min(times) - now, _LONGEST)) if times else None

    # -- the workers' threads

    def _work(self) -> None:
        while (function := self._next()) is not None:
            try:
                function()
            except BaseException:  # sys.exit too: this is not the process's main thread
                log.exception("the pool of the sources met an error and goes on")
            if not self._done():
                return

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next call; None where none has come for long, or nothing is left to do."""
        came = True
        with self._lock:
            while True:
                while self._ready:
                    call = self._ready.popleft()
                    if function := call.function:
                        call.function = None
                        self._begun[threading.get_ident()] = now = self.clock()
                        self._say_late(now - call.due)
                        return function
                if not came or self._scheduler is None:
                    self._workers -= 1
                    return None
                self._idle += 1
                came = self._wanted.wait(_IDLE)
                self._idle -= 1

    def _say_late(self, late: float) -> None:
        """Tell the log once that sources are late, and again after a time in which they were not; under the lock."""
        now = self.clock()
        if late > LATE:
            if now > self._late_until:
                log.warning(
                    "sources are late, this one by %.1f s: the processors, or %d threads (pushdemo.sources.threads), "
                    "are not enough for them (not said again until they have been on time)",
                    late,
                    self._most + 1,
                )
            self._late_until = now + ON_TIME

    def _done(self) -> bool:
        """A call is over; whether this thread is still one of the workers that count."""
        with self._lock:
            counts = self._begun.pop(threading.get_ident(), None) is not None
            if not counts:
                self._come_back()
            if self._is_over():
                self.changed.notify()
            return counts

    def _come_back(self) -> None:
        """A thread that did not count has ended: another slow call may take its place."""
        self._apart -= 1
        self.changed.notify()

    def _is_over(self) -> bool:
        return not (self._heap or self._ready or self._begun)

    # -- any thread

    def _started(self, run: Callable[[], None], name: str) -> threading.Thread | None:
        """A thread, or None where the system has none left: then it is asked for again. The log is told once."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._lacking:
                log.error("sources wait for a thread: %s cannot be started (%s)", name, error)
            self._lacking = True
            return None
        self._lacking = False
        return thread
