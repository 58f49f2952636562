"""waitress's worker threads, and the rule that nobody takes the last one for long.

A page needs its thread for a moment. What may need one for longer (a generator's step, a response that is iterated in
its thread) takes one of `Workers`' turns first, of which there is one less than there are threads: pages go on being
answered. Who gets no turn waits in a queue and holds no thread meanwhile. Knows waitress's dispatcher, no socket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from waitress.task import ThreadedTaskDispatcher


class Dispatcher(ThreadedTaskDispatcher):
    """waitress's threads and their queue. It counts who waits, where waitress would log a line for each."""

    waiting = 0  # the most tasks that waited for a thread at once, since it was last asked; under `lock`

    def __init__(self) -> None:
        super().__init__()
        self._loop: int | None = None  # the server's loop, while it is in `together`; that thread alone sets this

    def add_task(self, task: object) -> None:
        """Have a thread call `task.service()`. Any thread may ask."""
        if threading.get_ident() == self._loop:
            self.queue.append(task)
            return
        with self.lock:
            self.queue.append(task)
            self._wake(1)

    @contextmanager
    def together(self) -> Iterator[None]:
        """In the loop's thread: wake threads once, at the end of this block, for all tasks that are added in it."""
        self._loop = threading.get_ident()
        try:
            yield
        finally:
            self._loop = None
            if self.queue:
                with self.lock:
                    self._wake(len(self.queue))

    def _wake(self, tasks: int) -> None:
        free = len(self.threads) - self.stop_count - self.active_count
        self.waiting = max(self.waiting, len(self.queue) - free)
        self.queue_cv.notify(tasks)

    def take_waiting(self) -> int:
        """The most that have waited at once since the last call."""
        with self.lock:
            waiting, self.waiting = self.waiting, 0
        return waiting


class Work:
    """A function as a task of waitress's threads."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def service(self) -> None:
        """Run it; waitress calls this in one of its threads, and logs what it raises."""
        self._function()

    def cancel(self) -> None:
        """The server stops before it came to it."""


class Request(Protocol):
    """A request that waits for its turn, unstarted."""

    def run(self, *, turn: bool) -> None:
        """In a thread: serve it from the beginning, with a turn that is its own, or without one since none came."""


class Workers:
    """So many turns, each a thread for long. Any thread calls anything."""

    def __init__(self, dispatcher: ThreadedTaskDispatcher, limit: int) -> None:
        self._dispatcher = dispatcher
        self._lock = threading.Lock()  # guards what follows
        self._free = limit
        self._queue: deque[Callable[[], None]] = deque()  # each is called in a thread, with a turn
        # Of the requests in the queue: until when they wait, by the monotonic clock, and what stands there for them.
        self._deadlines: dict[Request, tuple[float, Callable[[], None]]] = {}

    def take(self) -> bool:
        """Take a turn for the thread that asks, if one is free: `give` it back."""
        with self._lock:
            if not self._free:
                return False
            self._free -= 1
            return True

    def give(self) -> None:
        """Give a turn back; the next in the queue has it."""
        with self._lock:
            following = self._queue.popleft() if self._queue else None
            if following is None:
                self._free += 1
        if following:
            self._start(following)

    def run(self, function: Callable[[], None]) -> None:
        """Have a thread call `function` as soon as there is a turn."""
        with self._lock:
            if not self._free:
                self._queue.append(function)
                return
            self._free -= 1
        self._start(function)

    def run_later(self, request: Request, timeout: float) -> None:
        """Run a request as soon as there is a turn, or after `timeout` seconds without one."""
        run = partial(self._run_in_turn, request)
        with self._lock:
            self._deadlines[request] = time.monotonic() + timeout, run
        self.run(run)

    def expire(self, now: float) -> None:
        """Run those requests without a turn whose time is over. The server's loop calls it now and then."""
        with self._lock:
            expired = [request for request, (deadline, _) in self._deadlines.items() if deadline <= now]
            runs = {self._deadlines.pop(request)[1] for request in expired}
            if runs:
                self._queue = deque(each for each in self._queue if each not in runs)
        for request in expired:
            self._dispatcher.add_task(Work(partial(request.run, turn=False)))

    def _start(self, function: Callable[[], None]) -> None:
        self._dispatcher.add_task(Work(partial(self._serve, function)))

    def _serve(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self.give()

    def _run_in_turn(self, request: Request) -> None:
        with self._lock:
            late = self._deadlines.pop(request, None) is None
        if not late:
            request.run(turn=True)
