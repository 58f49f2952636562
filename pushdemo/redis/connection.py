"""The way to Redis: a pool of connections for all of an application's commands, one more that hears what is published,
and what is known of its health.

What is said to Redis is in redis/topic.py, redis/leases.py and redis/store.py. Any thread may call anything.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.retry import Retry

from pushdemo.forking import call_in_child

log = logging.getLogger("pushdemo")

CONNECT_TIMEOUT = 1.0  # seconds
COMMAND_TIMEOUT = 2.0  # seconds that an answer may take; half a cluster waits as long when Redis hangs
SILENCE = 1.0  # seconds without news until Redis is asked whether it is there
QUIET = 60.0  # seconds without another line in the log about commands that Redis refuses

Fields = dict[bytes, bytes]  # what an entry of a stream, or a piece of news, says


class RedisUnavailableError(ConnectionError):
    """Redis cannot be reached, or cannot do what it is asked to; the message says which."""


class ListenerLostError(ConnectionError):
    """The connection that hears what is published has ended."""


class Link:
    """One application's way to the Redis at `url`; all its keys begin with `namespace`, which has no spaces.

    The braces around that are a hash tag (Redis Cluster specification, "Hash tags"): all keys are in one slot, so that
    a script may use several of them. Raises ValueError for a URL that the client library cannot use, without repeating
    it: there may be a password in it.
    """

    def __init__(self, url: str, namespace: str = "pushdemo", clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._namespace = namespace
        self._clock = clock
        self.client = self._connect()  # for commands given to `call`
        options = self.client.connection_pool.connection_kwargs
        self.address: str = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self.channel = self.key("news", str(options.get("db", 0)))  # all databases of a Redis have the same channels
        self._after_fork()
        call_in_child(self._after_fork)
        self._closed = False
        self._succeeded = self._failed = float("-inf")  # when a command last was or was not; any thread sets the first
        self._trouble = ""
        self._known = False  # whether anything has been heard of it, good or bad
        self._quiet_until: dict[str, float] = {}  # by the kind of error

    def _after_fork(self) -> None:
        self._trying = threading.Lock()  # held by the one caller that tries a Redis which is known to be gone
        self._lock = threading.Lock()  # guards what is known of Redis

    @property
    def trouble(self) -> str:
        """Why Redis cannot be reached, as far as this process knows; empty where it can."""
        return self._trouble

    def key(self, *parts: str) -> str:
        """The key of these parts."""
        return ":".join((f"{{{self._namespace}}}", *parts))

    def script(self, source: str) -> Script:
        """A Lua script, which Redis runs as a whole or not at all; it loads it where Redis has forgotten it."""
        return Script(self, source)

    def listener(self) -> Listener:
        """What hears the news: a connection of its own, whatever the URL says of timeouts."""
        pool = self._connect().connection_pool
        pool.connection_kwargs.update({"socket_timeout": SILENCE, "client_name": "pushdemo-reader"})
        return Listener(self, pool.make_connection())

    def call(self, command: Callable[[], Any]) -> Any:
        """What `command` returns; raises RedisUnavailableError for what Redis or the network does about it.

        While Redis is known to be gone, one caller at a time tries it, and the others are told at once: where it does
        not answer at all, each would hold its thread, and soon every thread of the server, for as long as a timeout.
        """
        if not (trouble := self._trouble):
            return self._call(command)
        if not self._trying.acquire(blocking=False):
            raise RedisUnavailableError(f"Redis at {self.address} is not reachable: {trouble}")
        try:
            return self._call(command)
        finally:
            self._trying.release()

    def _call(self, command: Callable[[], Any]) -> Any:
        began = self._clock()
        try:
            found = command()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._lost(error, began)
            raise RedisUnavailableError(f"Redis at {self.address} is not reachable: {error}") from error
        except redis.RedisError as error:
            self._refused(error)
            raise RedisUnavailableError(f"Redis at {self.address} refuses: {_named(error)}") from error
        self._succeeded = self._clock()
        if self._trouble or not self._known:
            self._found(began)
        return found

    def close(self) -> None:
        """Close the connections. A command after this opens another; the log hears no more of it."""
        self._closed = True
        self.client.connection_pool.disconnect(inuse_connections=False)

    def _connect(self) -> redis.Redis:
        # No retries: a message whose answer was lost on the way would be published twice. RESP2, whichever the
        # library's default: it says in which shape answers come.
        keepalive = {} if self._url.startswith("unix:") else {"socket_keepalive": True}
        try:
            pool = redis.ConnectionPool.from_url(
                self._url,
                **keepalive,
                socket_timeout=COMMAND_TIMEOUT,
                socket_connect_timeout=CONNECT_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                client_name="pushdemo",
                protocol=2,
            )
            if pool.connection_kwargs["protocol"] != 2 or pool.connection_kwargs.get("decode_responses"):
                raise ValueError
            pool.make_connection()  # does not connect yet: it raises for an option that there is not
        except (TypeError, ValueError, redis.RedisError):
            raise ValueError("not a URL that the redis package can use") from None
        return redis.Redis(connection_pool=pool)

    def _found(self, began: float) -> None:
        with self._lock:
            if began < self._failed:
                return  # it may have been answered before Redis went: the next look tells
            lost, known = self._trouble, self._known
            self._trouble, self._known = "", True
        if lost and known:
            log.warning("Redis at %s is back", self.address)

    def _lost(self, error: Exception, began: float) -> None:
        with self._lock:
            if began < self._succeeded:
                return  # another thread's command has been answered since: this is old news, or the next one fails too
            self._failed = self._clock()
            known = bool(self._trouble) and self._known
            self._trouble, self._known = str(error) or type(error).__name__, True
        if not known and not self._closed:
            log.error(
                "Redis at %s is not reachable (%s): shared topics pause, memorized values are this process's own; "
                "trying again until it is back",
                self.address,
                self._trouble,
            )

    def _refused(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {str(error).partition(' ')[0]}"
        with self._lock:
            now = self._clock()
            quiet = now < self._quiet_until.get(kind, now)
            if not quiet:
                self._quiet_until[kind] = now + QUIET
        if not quiet:
            log.error("Redis at %s refuses: %s (not said again for %g s)", self.address, _named(error), QUIET)


class Script:
    """A Lua script at Redis."""

    def __init__(self, link: Link, source: str) -> None:
        self._link = link
        self._source = source
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What the script returns. Raises RedisUnavailableError."""
        return self._link.call(lambda: self._run(len(keys), *keys, *args))

    def _run(self, *rest: str | bytes | int) -> Any:
        pool = self._link.client.connection_pool
        connection = pool.get_connection()
        try:
            try:
                connection.send_command("EVALSHA", self._digest, *rest)
                return connection.read_response()
            except redis.exceptions.NoScriptError:
                connection.send_command("EVAL", self._source, *rest)
                return connection.read_response()
        except redis.ResponseError:
            raise
        except BaseException:  # an interrupt too: its answer would be taken for the next command's
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


class Listener:
    """A connection that hears what is published on the link's channel; one thread's."""

    def __init__(self, link: Link, connection: ConnectionInterface) -> None:
        self._link = link
        self._connection = connection

    def open(self) -> None:
        """Begin to hear: what is published after this. Raises RedisUnavailableError."""
        self._link.call(self._subscribe)

    def next(self) -> bytes | None:
        """What is published next; None after a second without, in which Redis has said that it is there.

        Raises ListenerLostError where the connection ends. That says nothing of Redis: to open it again tells.
        """
        try:
            kind, *_, what = self._answer()
        except (redis.RedisError, OSError) as error:
            raise ListenerLostError from error
        return what if kind == b"message" else None

    def close(self) -> None:
        """Hear no more, until it is opened again."""
        self._connection.disconnect()

    def _subscribe(self) -> None:
        self._connection.send_command("SUBSCRIBE", self._link.channel, check_health=False)
        self._read()

    def _answer(self) -> Any:
        with suppress(redis.TimeoutError):
            return self._connection.read_response(disconnect_on_error=False)
        # That nothing is published is no error; that the connection is dead shows only when it is used.
        self._connection.send_command("PING", check_health=False)
        return self._read()

    def _read(self) -> Any:
        """What Redis says within COMMAND_TIMEOUT; each try takes SILENCE."""
        for _ in range(round(COMMAND_TIMEOUT / SILENCE) - 1):
            with suppress(redis.TimeoutError):
                return self._connection.read_response(disconnect_on_error=False)
        return self._connection.read_response()


def _named(error: Exception) -> str:
    """The error with its kind, which the client library takes out of the text."""
    return f"{type(error).__name__}: {error}"
