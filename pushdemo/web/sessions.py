"""The generator sessions of an application: whose turn it is, who may still begin, and when a session's life ends.

Here lives the store and its one sweeper thread; what a session does in its turn is `session`, HTTP is `yielding`.
No import but the standard library. Threads: any thread calls the public methods. A generator runs in the thread whose
`take` has its turn, and is closed by the sweeper thread, which exists only while sessions do.

    begun --take--> idle <--take--> running --the generator ends--> ended --timeout--> forgotten
                     |                 |
                     +-timeout, forget-+-forget, close--> retired --the sweeper closes it--> forgotten
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from typing import Any

from pushdemo.web.session import Answer, Owner, Refused, Session

log = logging.getLogger(__name__)

Start = Callable[[], Generator[Any, Any, Any]]

_CLOSED = "this session was closed"


class Sessions:
    """The generator sessions of one application. All times are in seconds.

    `timeout`: idle that long, a generator is closed and forgotten; one that has ended is remembered that long.
    `limit`: generators open at once, those included that are yet to be closed. `batch_timeout`: a call for several
    items takes no further one that, taking as long as the longest before, would come later than that. `turn_timeout`:
    how long a call waits while another runs the same generator.
    `waiters`: how many calls may wait so at once, all sessions together, because each holds a thread of the server.
    """

    def __init__(
        self,
        *,
        timeout: float = 60.0,
        limit: int = 1000,
        batch_timeout: float = 25.0,
        turn_timeout: float = 5.0,
        waiters: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout = timeout  # never changes
        self._limit = limit
        self._batch_timeout = batch_timeout
        self._turn_timeout = turn_timeout
        self._waiters = waiters
        self._clock = clock
        # This lock owns every field below. It is never held while a generator runs or is closed.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there is more for the sweeper, or one generator less open
        self._live: OrderedDict[Owner, Session] = OrderedDict()  # longest idle first
        self._ended: OrderedDict[Owner, Session] = OrderedDict()  # the same, `limit` at most
        self._retired: deque[Session] = deque()  # in no dict any more, their turn held, for the sweeper to close
        self._open = 0  # generators neither ended nor closed
        self._waiting = 0
        self._stopping = False
        self._sweeper: threading.Thread | None = None

    def take(
        self,
        owner: Owner,
        start: Start | None,
        *,
        after: int | None = None,
        most: int = 1,
        accumulate: bool | int = False,
        keep: int = 0,
    ) -> Answer:
        """The next item of the owner's session, or up to `most` of them.

        `start()` makes a new session's generator; with None a session that is not there any more was closed.
        With `most=0` nothing is taken: the answer says how many items the session has given, and whether it has ended.
        `after` is the number of items that the client has: what follows is given, again if it was given before.
        Without it the next item is taken, and a session that has ended begins anew. Blocks while the generator runs.
        What can be given again is what the last call took, or the last `keep` items if they are more.
        Raises Refused: 400 for `after` beyond the count, 409 when the turn does not come, 410 for what is kept no
        longer, for a session closed meanwhile and for one that is not here, 503 at the limit and while stopping.
        """
        session = self._claim(owner, start, after, accumulate)
        try:
            after = session.count if after is None else after
            if after > session.count:
                raise _beyond(after, session.count)
            if after == session.count and not session.forgotten:
                session.pull(most, keep, self._batch_timeout, self._clock)
            if session.forgotten:
                raise self._closed(session)
            return session.answer(after, most)
        finally:
            self._release(session)

    def forget(self, owner: Owner) -> bool:
        """End the owner's session, if there is one; returns whether. Waits for nothing: what runs ends at its yield."""
        with self._lock:
            ended = self._ended.pop(owner, None)
            session = self._live.pop(owner, None)
            if session is not None:
                self._retire(session)
        return bool(session or ended)

    def sweep(self) -> None:
        """Forget what was idle for too long and close, one after the other, the generators of what is forgotten.

        The sweeper thread calls it; each generator's `finally` runs in here.
        """
        while True:
            with self._lock:
                self._expire()
                if not self._retired:
                    return
                session = self._retired.popleft()
            session.shut()
            self._release(session)

    def close(self, timeout: float = 5.0) -> int:
        """End all sessions and begin no more; waits up to `timeout`, returns how many generators are still open."""
        with self._lock:
            self._stopping = True
            self._ended.clear()
            while self._live:
                self._retire(self._live.popitem()[1])
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, timeout)
            left = self._open
        if left:
            log.warning("json_yield: %d generators still open %g s after they were told to stop", left, timeout)
        return left

    def info(self) -> dict[str, int]:
        """The figures of this moment: generators open, ended sessions remembered, calls waiting for their turn."""
        with self._lock:
            return {"open": self._open, "ended": len(self._ended), "waiting": self._waiting}

    def _claim(self, owner: Owner, start: Start | None, after: int | None, accumulate: bool | int) -> Session:
        """The owner's session with its turn; a new one where there is none."""
        with self._lock:
            session = self._live.get(owner)
            if session is None and after is not None:
                session = self._ended.get(owner)
            if session is None:
                session = self._begin(owner, start, after, accumulate)
            if session.turn.acquire(blocking=False):
                return session
            if self._waiting >= self._waiters:
                raise _busy(session)
            self._waiting += 1
        try:
            got = session.turn.acquire(timeout=self._turn_timeout)
        finally:
            with self._lock:
                self._waiting -= 1
        if not got:
            raise _busy(session)
        return session

    def _begin(self, owner: Owner, start: Start | None, after: int | None, accumulate: bool | int) -> Session:
        if self._stopping:
            raise _stopping()
        if after:
            raise _beyond(after, 0)
        if start is None:
            raise Refused(410, _CLOSED)
        if self._open >= self._limit:
            reason = f"{self._limit} generator sessions are open, which is the limit"
            raise Refused(503, reason, retry_after=max(1, math.ceil(self._pause(self._live) or 0)))
        if self._sweeper is None:
            sweeper = threading.Thread(target=self._run, name="pushdemo-generators", daemon=True)
            sweeper.start()
            self._sweeper = sweeper
        elif not self._live and not self._ended:
            self._changed.notify_all()  # the sweeper waits without an end
        session = Session(owner, start(), accumulate)
        session.idle_since = self._clock()
        self._ended.pop(owner, None)
        self._live[owner] = session
        self._open += 1
        return session

    def _release(self, session: Session) -> None:
        with self._lock:
            session.idle_since = self._clock()
            if session.generator is None:
                self._settle(session)
            elif session.forgotten:
                self._retired.append(session)  # with its turn
                self._changed.notify_all()
                return
            else:
                self._live.move_to_end(session.owner)
            session.turn.release()

    def _settle(self, session: Session) -> None:
        """Count a generator that is open no more, and keep its session where `after` finds it, if it is remembered."""
        if session.counted:
            session.counted = False
            self._open -= 1
            if not self._open:
                self._changed.notify_all()
        # The same owner may have another session by now.
        if self._live.get(session.owner) is session:
            del self._live[session.owner]
            self._ended[session.owner] = session
            if len(self._ended) > self._limit:
                self._ended.popitem(last=False)
        elif self._ended.get(session.owner) is session:
            self._ended.move_to_end(session.owner)

    def _retire(self, session: Session) -> None:
        """Have a session closed that is in no dict any more: by the sweeper now, or after the step that runs."""
        session.forgotten = True
        if session.turn.acquire(blocking=False):
            self._retired.append(session)
            self._changed.notify_all()

    def _expire(self) -> None:
        now = self._clock()
        while self._ended and _first(self._ended).idle_since + self.timeout <= now:
            self._ended.popitem(last=False)
        while self._live and _first(self._live).idle_since + self.timeout <= now:
            session = _first(self._live)
            if session.turn.locked():  # it runs, so it is not idle before now
                session.idle_since = now
                self._live.move_to_end(session.owner)
            else:
                del self._live[session.owner]
                self._retire(session)

    def _pause(self, *stores: OrderedDict[Owner, Session]) -> float | None:
        """Seconds until one of their sessions has been idle for too long, 0 at least; None without sessions."""
        idle_since = [_first(store).idle_since for store in stores if store]
        return max(0.0, min(idle_since) + self.timeout - self._clock()) if idle_since else None

    def _run(self) -> None:
        while True:
            self.sweep()
            with self._lock:
                if not self._open and not self._ended:
                    self._sweeper = None
                    return
                if not self._retired:
                    pause = self._pause(self._live, self._ended)
                    self._changed.wait(None if pause is None else min(pause, threading.TIMEOUT_MAX))

    def _closed(self, session: Session) -> Refused:
        return _stopping() if self._stopping else Refused(410, _CLOSED, count=session.count)


def _first(store: OrderedDict[Owner, Session]) -> Session:
    return next(iter(store.values()))


def _busy(session: Session) -> Refused:
    return Refused(409, "another call is running this session's generator", count=session.count, retry_after=1)


def _stopping() -> Refused:
    return Refused(503, "the server is stopping", retry_after=5)


def _beyond(after: int, count: int) -> Refused:
    if count:
        reason = f"after={after} is beyond the {count} items that this session has given"
        return Refused(400, reason, parameter="after", count=count)
    reason = (
        f"after={after}: there is no such session here: it was idle for too long, or lives in another process; begin "
        "again without after"
    )
    return Refused(410, reason, parameter="after", count=count)
