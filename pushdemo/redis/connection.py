"""What is asked of Redis: a pool of connections for all of an application's commands, and what is known of its health.

Theory of operation. A call takes a connection from the pool, sends all that it has to ask in one go, and reads the
answers. What may come of it:

- The network fails, or nothing is answered: Redis is in trouble, and the call fails. Nothing is sent again, since
  what was asked for may have been done.
- Redis says that it is no master now (READONLY, MOVED, LOADING, MASTERDOWN and the like): that connection and all idle
  ones are dropped, as they lead to the wrong place, and what was refused is asked again on a new one, for at most
  COMMAND_TIMEOUT. If that does not help, all writes are known to be refused.
- Redis refuses one thing (NOPERM, OOM, WRONGTYPE): that is the caller's error, and says nothing of others.

While Redis is in trouble, or refuses all writes, one caller at a time tries it, and others are told at once: where it
does not answer, each would hold its thread, and soon every thread of the server, for as long as a timeout.

Any thread may call anything.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import redis

from pushdemo.forking import call_in_child
from pushdemo.redis.pool import COMMAND_TIMEOUT, Address, Pool, RedisUnavailableError

log = logging.getLogger("pushdemo")

QUIET = 60.0  # seconds without another line in the log about commands that Redis refuses
_SHORTEST, _LONGEST = 0.02, 0.25  # seconds between two tries of a Redis that is no master

Argument = str | bytes | int
Fields = dict[bytes, bytes]  # what an entry of a stream, or a piece of news, says

_NO_MASTER = re.compile(r"(?:^|-)(?:READONLY|MOVED|ASK|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS)\b")
_NO_MASTER_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.AskError,  # MovedError is one
    redis.exceptions.BusyLoadingError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
_CLUSTER_ERRORS = (redis.exceptions.AskError, redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError)


class Call(NamedTuple):
    """A script with its keys and arguments, to be given to `Link.ask`."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]


class Link:
    """One application's way to the Redis at `url`; all its keys begin with `namespace`, which has no spaces.

    The braces around that are a hash tag (Redis Cluster specification, "Hash tags"): who moves the keys to another kind
    of Redis has them in one place. `channel` is that of deletions from the cache. Raises ValueError for a URL that will
    not do, without repeating it: there may be a password in it.
    """

    def __init__(self, url: str, namespace: str = "pushdemo", clock: Callable[[], float] = time.monotonic) -> None:
        self.where = Address(url)
        self.address = self.where.text
        self.pool = Pool(self.where.connection, self.where.connections, clock)
        self._namespace = namespace
        self._clock = clock
        self.channel = self.news("deletions")
        self._begin_in_child()
        call_in_child(self._begin_in_child)
        # When a command was last answered, was not, and was refused as all writes are; any thread sets the first.
        self._succeeded = self._failed = self._refused = float("-inf")
        self._trouble = self._refusal = self._full = ""
        self.refusals = 0  # how often a write was refused as all are
        self._known = False  # whether anything has been heard of it, good or bad
        self._quiet_until: dict[str, float] = {}  # by the kind of error
        self._scripts: dict[tuple[str, bool, bool], Script] = {}  # made once, for thousands of topics; any thread
        self._errors: Counter[str] = Counter()

    def _begin_in_child(self) -> None:
        self._trying = threading.Lock()  # held by the one caller that tries a Redis which is known to be in trouble
        self._closed = threading.Event()
        self._lock = threading.RLock()  # guards the rest; reentrant for a garbage collection, as the pool's

    # -- what is known

    @property
    def unreachable(self) -> str:
        """Why nothing can be asked, in a sentence; empty where it can."""
        return self._trouble

    @property
    def trouble(self) -> str:
        """Why nothing can be published, in a sentence; empty where it can."""
        return self._trouble or self._refusal

    @property
    def warning(self) -> str:
        """What is wrong without being trouble: a full Redis, which must not take all nodes out of a balancer."""
        return self._full

    @property
    def errors(self) -> Mapping[str, int]:
        """How often Redis has failed, by the kind of error."""
        with self._lock:
            return dict(self._errors)

    # -- names

    def key(self, *parts: str) -> str:
        """The key of these parts."""
        return ":".join((f"{{{self._namespace}}}", *parts))

    def news(self, *parts: str) -> str:
        """The channel of these parts. All databases of a Redis have the same channels."""
        return self.key("news", str(self.where.database), *parts)

    # -- questions

    def script(self, source: str, *, writes: bool = True, publishes: bool = False) -> Script:
        """A Lua script.

        One that `writes` is tried by one caller at a time while Redis is known to refuse writes. That one that
        `publishes` has succeeded shows that it takes them.
        """
        known = source, writes, publishes
        if (script := self._scripts.get(known)) is None:
            script = self._scripts[known] = Script(self, source, writes=writes, publishes=publishes)
        return script

    def command(self, *words: Argument) -> Any:
        """What Redis answers to one command. Raises RedisUnavailableError."""
        return self._one([_Request(words)])

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """What these scripts return, in one round trip; RedisUnavailableError in the place of what is refused.

        Raises RedisUnavailableError where Redis cannot be reached.
        """
        return self._told(self._guarded([call.script.request(call) for call in calls]))

    def run(self, call: Call) -> Any:
        """What the script returns. Raises RedisUnavailableError."""
        return self._one([call.script.request(call)])

    def attempt(self, action: Callable[[], Any]) -> Any:
        """What `action` returns, which uses a connection of its own. Raises RedisUnavailableError."""
        began = self._clock()
        try:
            found = action()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise self._lost(error, _sentence(error), began) from error
        except redis.RedisError as error:
            self._count(error)
            raise self._told([error])[0] from error
        self._found(began)
        return found

    def probe(self, call: Call) -> None:
        """Find out whether messages could be published, by a call that writes as a publisher does."""
        with suppress(RedisUnavailableError):
            (answer,) = self._guarded([call.script.request(call)])
            if isinstance(answer, Exception):
                self._refuses(answer)

    def close(self) -> None:
        """Close the connections. A command after this opens another; the log hears no more of it."""
        self._closed.set()
        self.pool.drop()

    def _one(self, requests: list[_Request]) -> Any:
        (answer,) = self._told(self._guarded(requests))
        if isinstance(answer, RedisUnavailableError):
            raise answer
        return answer

    def _guarded(self, requests: list[_Request]) -> list[Any]:
        writes = any(request.writes for request in requests)
        trouble = self.trouble if writes else self._trouble
        if not trouble:
            return self._patient(requests)
        if not self._trying.acquire(blocking=False):
            raise RedisUnavailableError(trouble)
        try:
            began = self._clock()
            return self._noted(requests, self._answers(requests), began)
        finally:
            self._trying.release()

    def _patient(self, requests: list[_Request]) -> list[Any]:
        """The answers, where what no master has refused is asked again, within COMMAND_TIMEOUT."""
        began, pause = self._clock(), _SHORTEST
        until = began + COMMAND_TIMEOUT
        answers = self._answers(requests)
        while refused := [number for number, answer in enumerate(answers) if _no_master(answer)]:
            if self._clock() + pause > until or self._closed.wait(pause):
                break
            began = self._clock()
            again = self._answers([requests[number] for number in refused])
            for number, answer in zip(refused, again, strict=True):
                answers[number] = answer
            pause = min(2 * pause, _LONGEST)
        return self._noted(requests, answers, began)

    def _answers(self, requests: list[_Request]) -> list[Any]:
        """What Redis answers, errors among them. Raises RedisUnavailableError where it cannot be reached."""
        began = self._clock()
        connection = self.pool.take(COMMAND_TIMEOUT)
        try:
            if not connection.is_connected:
                connection.connect()  # behind Sentinel, sending would not ask where the master is
            answers = _exchange(connection, requests)
        except (redis.RedisError, OSError) as error:  # what Redis says to single commands is among the answers
            connection.disconnect()
            if _no_master(error):  # said when the connection began
                self.pool.drop(connection)
                return [error] * len(requests)
            raise self._lost(error, _sentence(error), began) from error
        except BaseException:
            connection.disconnect()  # in the middle of an answer
            raise
        else:
            if any(map(_no_master, answers)):
                self.pool.drop(connection)
        finally:
            self.pool.give_back(connection)
        if not any(isinstance(answer, redis.exceptions.BusyLoadingError) for answer in answers):
            self._found(began)
        return answers

    def _told(self, answers: list[Any]) -> list[Any]:
        """The answers, with errors as callers know them; the log hears of those."""
        for number, answer in enumerate(answers):
            if isinstance(answer, Exception):
                self._say_refused(answer, quiet=bool(self._refusal or self._full))
                error = RedisUnavailableError(f"Redis at {self.address} refuses: {_named(answer)}")
                error.__cause__ = answer
                answers[number] = error
        return answers

    # -- health

    def _found(self, began: float) -> None:
        self._succeeded = self._clock()
        if self._known and not self._trouble:
            return
        with self._lock:
            if began < self._failed:
                return  # it may have been answered before Redis went: the next look tells
            lost, known = self._trouble, self._known
            self._trouble, self._known = "", True
        if lost and known:
            log.warning("Redis at %s is back", self.address)

    def _lost(self, error: Exception, sentence: str, began: float) -> RedisUnavailableError:
        """Note that Redis was not there for what began then, unless that is old news; the error to raise."""
        self._count(error)
        with self._lock:
            known = bool(self._trouble) and self._known
            # Another thread's command may have been answered since: then the next one fails too, or all is well.
            new = began >= self._succeeded
            if new:
                self._failed = self._clock()
                self._trouble, self._known = f"Redis {sentence}", True
        if new and not known and not self._closed.is_set():
            log.error(
                "Redis at %s %s: shared topics pause, memorized values are this process's own; "
                "trying again until it is back",
                self.address,
                sentence,
            )
        return RedisUnavailableError(f"Redis at {self.address} {sentence}")

    def _noted(self, requests: list[_Request], answers: list[Any], began: float) -> list[Any]:
        """The answers, from which it is learnt what Redis can do. Raises RedisUnavailableError while it loads."""
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, redis.RedisError):
                self._count(answer)
            if isinstance(answer, redis.exceptions.BusyLoadingError):
                raise self._lost(answer, "is loading its data", self._clock()) from answer
            if request.writes and (_no_master(answer) or _is_full(answer)):
                self._refuses(answer)
            elif request.publishes and not isinstance(answer, Exception) and (self._refusal or self._full):
                self._takes_writes(began)
        return answers

    def _refuses(self, error: BaseException) -> None:
        """Every write is refused, for a reason that the error gives."""
        with self._lock:
            known = self._refusal or self._full
            self._refused = self._clock()
            self.refusals += 1
            self._refusal = self._full = ""
            if _is_full(error):
                self._full = f"Redis is full: {_named(error)}"
            else:
                self._refusal = f"Redis refuses every write: {_named(error)}"
        if not known and not self._closed.is_set():
            log.error("Redis at %s refuses every write: %s", self.address, _named(error))

    def _takes_writes(self, began: float) -> None:
        with self._lock:
            if began < self._refused:
                return  # it may have been answered before writes were refused
            known = self._refusal or self._full
            self._refusal = self._full = ""
        if known:
            log.warning("Redis at %s takes writes again", self.address)

    def _count(self, error: Exception) -> None:
        with self._lock:
            self._errors[_kind(error)] += 1

    def _say_refused(self, error: Exception, *, quiet: bool) -> None:
        kind = _kind(error)
        with self._lock:
            now = self._clock()
            quiet = quiet or now < self._quiet_until.get(kind, now)
            if not quiet:
                self._quiet_until[kind] = now + QUIET
        if not quiet:
            log.error("Redis at %s refuses: %s (not said again for %g s)", self.address, _named(error), QUIET)


class _Request(NamedTuple):
    """One command; `again` is what to send where Redis does not know the script."""

    words: Sequence[Argument]
    again: Sequence[Argument] = ()
    writes: bool = False
    publishes: bool = False


def _exchange(connection: Any, requests: list[_Request]) -> list[Any]:
    """Send all, then read all; what Redis does not know by its digest is sent again with its source."""
    answers = _sent(connection, [request.words for request in requests])
    unknown = [n for n, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
    if unknown:
        # The source is sent once: behind it, Redis knows the digest.
        first = {requests[n].again[1]: n for n in reversed(unknown)}.values()
        words = [requests[n].again if n in first else requests[n].words for n in unknown]
        for number, answer in zip(unknown, _sent(connection, words), strict=True):
            answers[number] = answer
    return answers


def _sent(connection: Any, commands: Sequence[Sequence[Argument]]) -> list[Any]:
    connection.send_packed_command(connection.pack_commands(commands))
    answers = []
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except redis.ResponseError as error:
            answers.append(error)
        except redis.exceptions.BusyLoadingError as error:  # no ResponseError, though an answer
            answers.append(error)
    return answers


class Script:
    """A Lua script at Redis, which runs it as a whole or not at all; it is sent where Redis does not know it."""

    def __init__(self, link: Link, source: str, *, writes: bool, publishes: bool) -> None:
        self._link = link
        self._source = source
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._writes = writes
        self._publishes = publishes

    def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """What the script returns. Raises RedisUnavailableError."""
        return self._link.run(Call(self, keys, args))

    def with_(self, keys: Sequence[str], args: Sequence[Argument]) -> Call:
        """The script with its keys and arguments, for `Link.ask`."""
        return Call(self, keys, args)

    def request(self, call: Call) -> _Request:
        """What is sent for the call."""
        rest = (len(call.keys), *call.keys, *call.args)
        return _Request(("EVALSHA", self._digest, *rest), ("EVAL", self._source, *rest), self._writes, self._publishes)


def _no_master(answer: Any) -> bool:
    """Whether the answer says that no master is there. Redis 6 puts the code of an error in a script in its middle."""
    if not isinstance(answer, Exception):
        return False
    if isinstance(answer, _NO_MASTER_ERRORS):
        return True
    text = str(answer)
    return _NO_MASTER.search(text) is not None or "previous master" in text  # the library's own, behind Sentinel


def _is_full(error: object) -> bool:
    return isinstance(error, redis.RedisError) and (
        isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in str(error)
    )


def _sentence(error: Exception) -> str:
    """What has happened to a connection, with Redis as the subject."""
    text = str(error) or type(error).__name__
    refused = isinstance(error, (redis.AuthenticationError, redis.ResponseError)) or text == "Invalid Database"
    return f"refuses the connection ({text})" if refused else f"is not reachable ({text})"


def _kind(error: Exception) -> str:
    """The kind of an error, for counting: its class, without what is particular to it."""
    return type(error).__name__


def _named(error: BaseException) -> str:
    """The error with its kind, which the client library takes out of the text."""
    hint = ""
    if isinstance(error, _CLUSTER_ERRORS):
        hint = " (a node of a Redis Cluster, which is not supported: use one Redis, or one behind Sentinel)"
    return f"{type(error).__name__}: {error}{hint}"
