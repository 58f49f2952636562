"""The URL of a Redis, and the pool of connections that it stands for. Any thread may call anything."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from pushdemo.forking import call_in_child

CONNECT_TIMEOUT = 1.0  # seconds
COMMAND_TIMEOUT = 2.0  # seconds that an answer may take; half a cluster waits as long when Redis hangs
SPARE = 10.0  # seconds after which a connection that nobody has used is closed, unless it is the last
MOST = 50  # connections for commands, unless the URL says otherwise

_ALIASES = {"valkey": "redis", "valkeys": "rediss", "valkey+sentinel": "redis+sentinel"}
_ALIASES["valkeys+sentinel"] = "rediss+sentinel"
_SENTINEL_PORT = 26379
_SENTINEL_TIMEOUT = 0.5  # seconds until the next Sentinel is asked


class Address:
    """Where Redis is: its `text` for the log, its `database`, and how many connections it may take.

    Raises ValueError for a URL that will not do, without repeating it: there may be a password in it.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        scheme = _ALIASES.get(scheme, scheme)
        if "cluster" in scheme:
            raise ValueError(
                "Redis Cluster is not supported, as all of an application is in one of its slots: "
                "use one Redis, or one with replicas behind Sentinel (redis+sentinel://), for a URL"
            )
        try:
            self._pool, self.text = (_sentinel if scheme.endswith("+sentinel") else _plain)(f"{scheme}://{rest}")
            options = self._pool.connection_kwargs
            if options.get("protocol") != 2 or options.get("decode_responses"):
                raise ValueError
            self.connections = int(self._pool.max_connections)
            self.database = int(options.get("db") or 0)
            self.connection()  # it raises for an option that there is not
        except (TypeError, ValueError, redis.RedisError):
            raise ValueError("not a URL that the redis package can use") from None

    def connection(self, **options: Any) -> Any:
        """A new connection, which connects when it is first used, with these options in place of the URL's."""
        return self._pool.connection_class(**{**self._pool.connection_kwargs, **options})


def _plain(url: str) -> tuple[redis.ConnectionPool, str]:
    # No retries: a message whose answer was lost on the way would be published twice. RESP2, whichever the library's
    # default: it says in which shape answers come.
    is_tcp = not url.startswith("unix:")
    if is_tcp and not re.fullmatch(r"/?\d*", urlsplit(url).path):  # the library would pass a name over
        raise ValueError
    options = _defaults(tcp=is_tcp)
    pool = redis.ConnectionPool.from_url(url, **{"max_connections": MOST, **options})
    taken = pool.connection_kwargs
    return pool, taken.get("path") or f"{taken.get('host', 'localhost')}:{taken.get('port', 6379)}"


def _sentinel(url: str) -> tuple[redis.ConnectionPool, str]:
    """For redis[s]+sentinel://[user:password@]host[:port],host[:port]/name[/db]?option=value."""
    parts = urlsplit(url)
    ssl = parts.scheme.startswith("rediss")
    user, hosts = _authority(parts)
    name, _, database = unquote(parts.path.strip("/")).partition("/")
    if not name or not all(host for host, _ in hosts):
        raise ValueError
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel = {key: query.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in query}
    given = parse_url(f"{'rediss' if ssl else 'redis'}:///?{urlencode(query)}")
    given.pop("connection_class", None)
    tls = {key: value for key, value in given.items() if key.startswith("ssl_")} | ({"ssl": True} if ssl else {})
    # Without retries here too: the next Sentinel is asked at once.
    timeouts = {
        "socket_timeout": _SENTINEL_TIMEOUT,
        "socket_connect_timeout": _SENTINEL_TIMEOUT,
        "retry": _no_retries(),
    }
    options = {"max_connections": MOST, **_defaults(tcp=True), **user, **given}
    if database:
        options["db"] = int(database)
    if ssl:
        options["ssl"] = True
    sentinels = Sentinel(hosts, sentinel_kwargs={**tls, **timeouts, **sentinel})
    return SentinelConnectionPool(name, sentinels, **options), f"{parts.netloc.rpartition('@')[2]}/{name}"


def _authority(parts: SplitResult) -> tuple[Mapping[str, str], list[tuple[str, int]]]:
    """User and password, and the hosts with their ports."""
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    given = {"username": unquote(username), "password": unquote(password)}
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return {key: value for key, value in given.items() if value}, [
        (each.hostname or "", each.port or _SENTINEL_PORT) for each in found
    ]


def _no_retries() -> Retry:
    return Retry(NoBackoff(), 0)


def _defaults(*, tcp: bool) -> dict[str, Any]:
    return {
        **({"socket_keepalive": True} if tcp else {}),
        "socket_timeout": COMMAND_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "retry": _no_retries(),
        "client_name": "pushdemo",
        "protocol": 2,
    }


class RedisUnavailableError(ConnectionError):
    """Redis cannot be reached, or cannot do what it is asked to; the message says which."""


class Pool:
    """At most `size` connections; who finds none waits. Those that nobody needs are closed, but one."""

    def __init__(self, connect: Callable[[], Any], size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock = clock
        self.size = size
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin with nothing: in a forked process, the connections are the parent's."""
        # Guards all below. An interrupt in a condition's own `with` would leave it locked.
        # Reentrant: while a connection is made, a garbage collection may run what needs Redis.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[tuple[Any, float]] = []  # the one used last at the end, each with when that was
        # With the generation in which it was taken; without those that an interrupted thread has dropped.
        self._used: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._generation = 0

    @property
    def in_use(self) -> int:
        return len(self._used)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def take(self, timeout: float) -> Any:
        """A connection, which nobody else has; RedisUnavailableError where none is given back in time."""
        with self._lock:
            if not self._changed.wait_for(lambda: len(self._used) < self.size, timeout):
                raise RedisUnavailableError(
                    f"all {self.size} connections to Redis are in use: see max_connections in pushdemo.redis_url"
                )
            connection = self._idle.pop()[0] if self._idle else self._connect()
            self._used[connection] = self._generation
        if connection.is_connected and _is_spoilt(connection):
            connection.disconnect()
        return connection

    def give_back(self, connection: Any) -> None:
        """Let others have it, unless it is from before the last `drop`."""
        with self._lock:
            generation = self._used.pop(connection, None)
            if keep := connection.is_connected and generation == self._generation:
                self._idle.append((connection, self._clock()))
            self._changed.notify()
        if not keep:
            connection.disconnect()

    @property
    def generation(self) -> int:
        """How often the connections were dropped."""
        return self._generation

    def drop(self, because_of: Any = None) -> None:
        """Close all connections, those that are in use when they are given back: they lead to the wrong place.

        Does nothing because of a connection from before the last time.
        """
        with self._lock:
            if because_of is not None and self._used.get(because_of) != self._generation:
                return
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.disconnect()

    def trim(self) -> None:
        """Close what nobody has used for a while, but one."""
        with self._lock:
            since = self._clock() - SPARE
            old = sum(used < since for _, used in self._idle[:-1])
            gone, self._idle = self._idle[:old], self._idle[old:]
        for connection, _ in gone:
            connection.disconnect()


def _is_spoilt(connection: Any) -> bool:
    """Whether the other end has closed the connection, or has said what nobody asked for."""
    try:
        return bool(connection.can_read(0))
    except (redis.RedisError, OSError):
        return True
