"""The generator sessions of an application: whose turn it is, who may still begin, and when a session's life ends.

Here lives the store; what a session does in its turn is `session`, HTTP is `json_yield`. Standard library only.

    begun --take--> idle <--take--> running --the generator ends--> ended --timeout, forget--> forgotten
                     |                 |
                     +-timeout, forget-+-forget, close--> retired --a thread closes it--> forgotten

Threads: any thread calls the public methods, and a generator runs in the thread whose `take` has its turn. Two kinds of
thread exist only while they have something to do: one sweeper, which forgets what is idle, and up to CLOSERS that close
retired generators, so that one slow `finally` does not hold up the others.

Where processes know of each other (`Ownership`), a session is this process's from before its generator begins until it
is forgotten; the sweeper renews that. No lock is held while it is asked for.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pushdemo import forking
from pushdemo.web.admission import network_of
from pushdemo.web.session import Answer, Call, Owner, Refused, Session, Start, beyond

if TYPE_CHECKING:
    from pushdemo.web.broker import Ownership

log = logging.getLogger(__name__)

_SHARE = 4  # one client address may have the fourth part of the sessions
CLOSERS = 8  # threads that close generators at once
RENEWAL = 1.0  # seconds between two renewals of what this process owns

_CLOSED = "this session was closed"
_ELSEWHERE = (
    "this session lives in another process: ask again, since a balancer may send the next request there; a site with "
    "several processes should have all requests with one key sent to one of them"
)


class Sessions:
    """The generator sessions of one application. All times are in seconds.

    `timeout`: idle that long, a generator is closed and forgotten; one that has ended is remembered that long.
    `limit`: generators open at once, those included that are yet to be closed; one address may have a quarter of them.
    `batch_timeout`: a call for several items takes no further one that, taking as long as the longest before, would
    come later than that. `turn_timeout`: how long a call waits while another runs the same generator.
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
        ownership: Ownership | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout = timeout  # never changes
        self._limit = limit
        self._batch_timeout = batch_timeout
        self._turn_timeout = turn_timeout
        self._waiters = waiters
        self._ownership = ownership
        self._clock = clock
        self.warned: set[str] = set()  # names of views, see steps.py; any thread adds
        self._begin_empty()
        forking.call_in_child(self._begin_empty)  # the parent's generators are the parent's

    def _begin_empty(self) -> None:
        # This lock owns every field below. It is never held while a generator runs or is closed.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there is less for the sweeper, or one generator less open
        self._live: OrderedDict[Owner, Session] = OrderedDict()  # longest idle first
        self._ended: OrderedDict[Owner, Session] = OrderedDict()  # the same, `limit` at most
        self._retired: deque[Session] = deque()  # in no dict any more, their turn held, for a closer
        self._networks: Counter[str] = Counter()  # how many of the open ones are whose, see `network_of`
        self._open = 0  # generators neither ended nor closed
        self._waiting = 0
        self._stopping = False
        self._sweeper: threading.Thread | None = None
        self._closers = 0
        self._renewal = 0.0  # when this process's sessions are to be renewed; the sweeper's

    def take(
        self,
        owner: Owner,
        start: Start | None,
        *,
        after: int | None = None,
        most: int = 1,
        accumulate: bool | int = False,
        keep: int = 0,
        origin: object = None,
        peer: str = "",
    ) -> Answer:
        """Return the next item of the owner's session, or up to `most` of them.

        `start()` makes a new session's generator for the request `origin`, which came from the address `peer`; with
        None a session that is not there any more was closed. With `most=0` nothing is taken: the answer says how many
        items the session has given, and whether it has ended. `after` is the number of items that the client has: what
        follows is given, again if it was given before. Without it the next item is taken, and a session that has ended
        begins anew, unless it failed after its first item. Blocks while the generator runs. What can be given again is
        what the last call took, or the last `keep` items if they are more. Raises what the generator raises, also to
        those who ask again. Raises Refused: 400 for `after` beyond the count, 409 when the turn does not come, 410 for
        what is kept no longer, for a session closed meanwhile and for one that is not here, 421 for one that is another
        process's, 503 at the limit and while stopping.
        """
        with self._lock:
            session = self._find(owner, after)
            has_turn = session is not None and self._try_turn(session, most > 0)
        if session is None:
            session, has_turn = self._begin(Call(owner, start, after, accumulate, origin, peer, wait=most > 0))
        if not has_turn:
            if not most:  # it runs at this moment, so it has not ended
                if after is not None and after > session.count:
                    raise beyond(after, session.count)
                return Answer("ready", (), session.count)
            self._await_turn(session)
        try:
            after = session.count if after is None else after
            if after > session.count:
                raise beyond(after, session.count)
            if after == session.count and not session.forgotten:
                session.pull(most, keep, self._batch_timeout, self._clock)
            if session.forgotten:
                raise self._closed(session)
            return session.answer(after, most)
        finally:
            self._release(session)

    def count(self, owner: Owner, after: int | None = None) -> int:
        """Return how many items the session has given that a call with this `after` is about; 0 where there is none."""
        with self._lock:
            session = self._find(owner, after)
            return session.count if session else 0

    def forget(self, owner: Owner) -> bool:
        """End the owner's session, if there is one; returns whether. Waits for nothing: what runs ends at its yield.

        One that is not here is closed by the process that has it.
        """
        with self._lock:
            session = self._find(owner, 0)
            self._drop(owner)
        if session is not None:
            self._give_up([session.name])
        elif self._ownership:
            with suppress(ConnectionError):
                self._ownership.close(owner.name)
        return session is not None

    def forget_user(self, user: str) -> int:
        """End all sessions of a user, given as text, that are here, as `forget` does; returns how many."""
        with self._lock:
            ended = {
                owner: session.name
                for owner, session in self._all()
                if owner.user is not None and str(owner.user) == user
            }
            for owner in ended:
                self._drop(owner)
        self._give_up(list(ended.values()))
        return len(ended)

    def undo(self, owner: Owner, origin: object, *, failed: bool = False) -> None:
        """Forget the owner's session if the request `origin` began it: what that has done is rolled back.

        One that has failed is forgotten only where `failed`; otherwise it tells of its error.
        """
        with self._lock:
            session = self._find(owner, 0)
            if session is None or session.origin is not origin or (session.error and not failed):
                return
            self._drop(owner)
        self._give_up([session.name])

    def sweep(self) -> None:
        """Forget what was idle for too long, and renew what is kept, if that is due. The sweeper thread calls it."""
        with self._lock:
            expired = self._expire()
        self._give_up(expired)
        if self._ownership and self._clock() >= self._renewal:
            self._renewal = self._clock() + RENEWAL
            self._renew(self._ownership)

    def close(self, timeout: float = 5.0) -> int:
        """End all sessions and begin no more; waits up to `timeout`, returns how many generators are still open."""
        with self._lock:
            self._stopping = True
            names = self._names()
            for owner, _ in self._all():
                self._drop(owner)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, timeout)
            left = self._open
        self._give_up(list(names))
        if left:
            log.warning("json_yield: %d generators still open %g s after they were told to stop", left, timeout)
        return left

    def info(self) -> dict[str, int]:
        """The figures of this moment: generators open, ended sessions remembered, calls waiting for their turn."""
        with self._lock:
            return {"open": self._open, "ended": len(self._ended), "waiting": self._waiting}

    def _renew(self, ownership: Ownership) -> None:
        with self._lock:
            names = self._names()
        if names:
            with suppress(ConnectionError):
                lost = ownership.renew(list(names))
                with self._lock:
                    for name in lost:
                        self._drop(names[name])

    def _all(self) -> list[tuple[Owner, Session]]:
        """Locked. The sessions with their owners."""
        return [*self._live.items(), *self._ended.items()]

    def _names(self) -> dict[str, Owner]:
        """Locked. The sessions' owners by the sessions' names."""
        return {session.name: owner for owner, session in self._all()}

    def _await_turn(self, session: Session) -> None:
        try:
            has_turn = session.turn.acquire(timeout=self._turn_timeout)
        finally:
            with self._lock:
                self._waiting -= 1
        if not has_turn:
            raise _busy(session)

    # Of the following, those with "Locked" are called under the lock.

    def _find(self, owner: Owner, after: int | None) -> Session | None:
        """Locked. The owner's session; one that has ended for a client that says what it has, or has seen it fail."""
        if (session := self._live.get(owner)) is not None:
            return session
        ended = self._ended.get(owner)
        return ended if ended and (after is not None or (ended.error and ended.count)) else None

    def _try_turn(self, session: Session, wait: bool) -> bool:
        """Locked. Whether the turn could be had at once; otherwise the caller is among those who wait, if it does."""
        if session.turn.acquire(blocking=False):
            return True
        if not wait:
            return False
        if self._waiting >= self._waiters:
            raise _busy(session)
        self._waiting += 1
        return False

    def _begin(self, call: Call) -> tuple[Session, bool]:
        """A new session, or the one that another thread has begun meanwhile; and as `_try_turn`."""
        if call.start is None:
            raise self._stopped() or Refused(410, _CLOSED)
        owner, name, network = call.owner, "", network_of(call.peer)
        if self._ownership:
            with self._lock:
                self._check_room(None, network)
            name = owner.name
            if self._is_elsewhere(name, claim=not call.after):
                raise Refused(421, _ELSEWHERE)
        try:
            with self._lock:
                session = self._find(owner, call.after)
                if session is None:
                    self._check_room(call.after, network)
                    session = Session(owner, call.start(), call.accumulate, call.origin)
                    session.name, session.network, session.idle_since = name, network, self._clock()
                    self._live[owner] = session
                    self._ended.pop(owner, None)
                    self._open += 1
                    self._networks[network] += 1
                    self._start_sweeper()
                return session, self._try_turn(session, call.wait)
        except BaseException:
            with self._lock:
                unused = self._find(owner, 0) is None
            if unused and not call.after:
                self._give_up([name])
            raise

    def _is_elsewhere(self, name: str, *, claim: bool) -> bool:
        """Whether another process has the session; else it is this one's, if that is to be."""
        assert self._ownership
        try:
            return not self._ownership.claim(name) if claim else self._ownership.is_elsewhere(name)
        except ConnectionError:
            return False  # each process for itself, as without Redis

    def _check_room(self, after: int | None, network: str) -> None:
        """Locked. Raise Refused where no session may begin."""
        if stopped := self._stopped():
            raise stopped
        if after:
            raise beyond(after, 0)
        if self._open >= self._limit:
            reason = f"{self._limit} generator sessions are open, which is the limit"
            raise Refused(503, reason, retry_after=max(1, math.ceil(self._pause(self._live) or 0)))
        share = max(1, self._limit // _SHARE)
        if network and self._networks[network] >= share:
            reason = f"{share} generator sessions of one address are open, which is the limit"
            raise Refused(503, reason, retry_after=max(1, math.ceil(self._pause(self._live) or 0)))

    def _start_sweeper(self) -> None:
        """Locked. Called again and again while there are sessions: the system may have no thread left at first."""
        if self._sweeper is None and (self._live or self._ended):
            self._sweeper = _started(self._sweep_on, "pushdemo-generators")

    def _release(self, session: Session) -> None:
        """Give the turn back."""
        with self._lock:
            self._start_sweeper()
            session.idle_since = self._clock()
            if session.steps is None:
                self._settle(session)
            elif session.forgotten:
                self._close_soon(session)  # with its turn
                return
            elif self._live.get(session.owner) is session:  # not so in a process that the generator has forked
                self._live.move_to_end(session.owner)
            session.turn.release()

    def _settle(self, session: Session) -> None:
        """Locked. Count an ended generator as open no more, and remember its session, unless it is forgotten."""
        if session.counted:
            session.counted = False
            self._open -= 1
            self._networks[session.network] -= 1
            if not self._networks[session.network]:
                del self._networks[session.network]
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

    def _drop(self, owner: Owner) -> None:
        """Locked. Forget the owner's session; its generator is closed now, or after the step that runs."""
        self._ended.pop(owner, None)
        session = self._live.pop(owner, None)
        if session is not None:
            session.forgotten = True
            if session.turn.acquire(blocking=False):
                self._close_soon(session)

    def _close_soon(self, session: Session) -> None:
        """Locked. Have a generator closed whose turn the caller has."""
        self._retired.append(session)
        self._start_closer()

    def _start_closer(self) -> None:
        """Locked."""
        if self._retired and self._closers < CLOSERS:
            self._closers += _started(self._close_retired, "pushdemo-generators-close") is not None

    def _close_retired(self) -> None:
        while True:
            with self._lock:
                if not self._retired:
                    self._closers -= 1
                    return
                session = self._retired.popleft()
            session.shut()
            self._release(session)

    def _expire(self) -> list[str]:
        """Locked. Forget what was idle for too long; returns the names."""
        now = self._clock()
        expired = []
        for store in (self._ended, self._live):
            while store and (session := _first(store)).idle_since + self.timeout <= now:
                if session.turn.locked():  # somebody uses it, so it is not idle before now
                    session.idle_since = now
                    store.move_to_end(session.owner)
                else:
                    expired.append(session.name)
                    self._drop(session.owner)
        return expired

    def _pause(self, *stores: OrderedDict[Owner, Session]) -> float | None:
        """Locked. Seconds until one of their sessions has been idle for too long, 0 at least; None without sessions."""
        idle_since = [_first(store).idle_since for store in stores if store]
        return max(0.0, min(idle_since) + self.timeout - self._clock()) if idle_since else None

    def _sweep_on(self) -> None:
        while True:
            try:
                self.sweep()
            except Exception:
                log.exception("json_yield: the sweeper met an error and goes on")
            with self._lock:
                self._start_closer()  # if there was no thread for one
                pause = self._pause(self._live, self._ended)
                if pause is None:
                    self._sweeper = None
                    return
                self._changed.wait(min(pause, RENEWAL if self._ownership else threading.TIMEOUT_MAX))

    def _give_up(self, names: Sequence[str]) -> None:
        if self._ownership and names:
            with suppress(ConnectionError):  # then they expire
                self._ownership.release(names)

    def _stopped(self) -> Refused | None:
        return Refused(503, "the server is stopping", retry_after=5) if self._stopping else None

    def _closed(self, session: Session) -> Refused:
        return self._stopped() or Refused(410, _CLOSED, count=session.count)


def _started(run: Callable[[], None], name: str) -> threading.Thread | None:
    """A thread, or None where the system has none left: it is tried again."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        log.error("json_yield: %s cannot be started (%s); it is tried again", name, error)
        return None
    return thread


def _first(store: OrderedDict[Owner, Session]) -> Session:
    return next(iter(store.values()))


def _busy(session: Session) -> Refused:
    return Refused(409, "another call is running this session's generator", count=session.count, retry_after=1)
