"""The one table of settings: ini key, type, default, meaning.

Everything that the ini can say about pushdemo is a field of `Settings`; `Settings.from_ini` checks it all once, when
the application starts. No other module reads an ini key. Read by: any thread (the object is frozen).
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "pushdemo."

_FUNCTION = re.compile(r"pushdemo\.memorize\.(.+)\.duration")

# An origin as browsers write it (RFC 6454 section 6.2): compared as text, so that a capital or a slash never matches.
# `valkey` stands for `redis`. A Cluster is refused by name, where the URL is used.
_REDIS_URL = re.compile(r"(?:(?:redis|valkey)s?(?:\+(?:sentinel|cluster))?|unix)://")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,50}")

_BASE_URL = re.compile(r"https?://[^/?#\s]+(?:/[^?#\s]*)?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")


class SettingsError(ValueError):
    """A setting is unknown or wrong; the message names the key, the value and what would do."""


class Converter(NamedTuple):
    """What makes a value of a text, or raises ValueError for one that is not as `expected`."""

    convert: Callable[[str], Any]
    expected: str


def _seconds(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise ValueError
    return number


def _seconds_above_0(text: str) -> float:
    number = _seconds(text)
    if number == 0:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _count_or_none(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _origins(text: str) -> tuple[str, ...]:
    found = tuple(text.split())
    if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in found):
        raise ValueError
    return found


def _base_url(text: str) -> str:
    if not _BASE_URL.fullmatch(text):
        raise ValueError
    return text.rstrip("/")


def _redis_url(text: str) -> str:
    if text and not _REDIS_URL.match(text):
        raise ValueError
    return text


def _redis_namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise ValueError
    return text


SECONDS = Converter(_seconds, "a number of seconds, 0 or more")
SECONDS_ABOVE_0 = Converter(_seconds_above_0, "a number of seconds above 0")
COUNT = Converter(_count, "a whole number, 1 or more")
BOOLEAN = Converter(_boolean, "true or false")
COUNT_OR_NONE = Converter(_count_or_none, "a whole number, 0 or more")
ORIGINS = Converter(_origins, "* or origins (scheme://host[:port], in lower case) separated by spaces")
REDIS_URL = Converter(_redis_url, "a redis://, rediss://, unix:// or redis[s]+sentinel:// URL, or nothing")
REDIS_NAMESPACE = Converter(_redis_namespace, "up to 50 letters, digits, _, . or -")
BASE_URL = Converter(_base_url, "an address such as https://example.org/app")
PERMISSION = Converter(str, "the name of a permission, or nothing")


def option(key: str, converter: Converter, default: Any, meaning: str, *, secret: bool = False) -> Any:
    """A row of the table: `key` without the prefix, and the rest. The value of a `secret` one is never shown."""
    metadata = {"key": PREFIX + key, "converter": converter, "meaning": meaning, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the ini says, checked. One row is one key; durations are in seconds."""

    interval: float = option("interval", SECONDS_ABOVE_0, 5.0, "seconds from one message of a topic to the next")
    history: int = option("history", COUNT, 100, "messages that a topic keeps for those who fall behind or come back")
    history_bytes: int = option(
        "history_bytes",
        COUNT,
        16_777_216,
        "bytes of messages that a topic keeps at most; it always keeps the newest one",
    )
    heartbeat: float = option(
        "heartbeat", SECONDS_ABOVE_0, 15.0, "seconds of silence after which a stream sends a heartbeat"
    )
    longpoll_timeout: float = option(
        "longpoll.timeout", SECONDS_ABOVE_0, 25.0, "seconds that a long poll waits for a message"
    )
    stall_timeout: float = option(
        "stall_timeout", SECONDS_ABOVE_0, 30.0, "seconds after which a client that reads nothing is disconnected"
    )
    retry: float = option(
        "retry",
        SECONDS_ABOVE_0,
        3.0,
        "seconds that a client waits before it reconnects; each stream begins by telling it",
    )
    base_url: str = option(
        "base_url", BASE_URL, "http://localhost", "the application's address, for the links in what it publishes"
    )
    max_clients: int = option("max_clients", COUNT, 10_000, "streams and long polls at once; the next one gets 503")
    max_clients_per_user: int = option(
        "max_clients_per_user",
        COUNT_OR_NONE,
        0,
        "streams and long polls at once of one authenticated user; 0: no limit",
    )
    max_clients_per_address: int = option(
        "max_clients_per_address",
        COUNT_OR_NONE,
        0,
        "streams and long polls at once from one address, as a trusted proxy tells it; 0: no limit",
    )
    streams_expire: float = option(
        "streams.expire", SECONDS, 0.0, "seconds after which a stream ends, and its view decides anew; 0: never"
    )
    max_threads: int = option(
        "max_threads", COUNT, 3, "on other servers: how many streams at once; keep it below the server's threads"
    )
    cors_origins: tuple[str, ...] = option(
        "cors_origins", ORIGINS, (), "origins whose pages may read the streams, separated by spaces, or *"
    )
    topics_limit: int = option(
        "topics.limit", COUNT, 100_000, "topics made from patterns at once; a client of a further one gets 503"
    )
    topics_lifetime: float = option(
        "topics.lifetime",
        SECONDS_ABOVE_0,
        3600.0,
        "seconds without clients and messages after which a topic made from a pattern is forgotten",
    )
    sources_threads: int = option(
        "sources.threads", COUNT, 8, "threads that all sources share; one of them keeps the schedule"
    )
    sources_limit: int = option(
        "sources.limit", COUNT, 100, "further threads, for sources that take over 5 s or set their own pace"
    )
    memorize_duration: float = option(
        "memorize.duration",
        SECONDS,
        15.0,
        "seconds that a memorized value is used; 0 turns the cache off",
    )
    memorize_stale: float = option(
        "memorize.stale",
        SECONDS,
        0.0,
        "seconds beyond its duration that an expired value is returned while one caller computes the new one",
    )
    memorize_stale_if_error: float = option(
        "memorize.stale_if_error",
        SECONDS,
        0.0,
        "seconds beyond its duration that an expired value is returned if computing the new one raises",
    )
    memorize_maxsize: int = option("memorize.maxsize", COUNT, 1024, "how many values each memorized function keeps")
    generators_timeout: float = option(
        "generators.timeout", SECONDS_ABOVE_0, 60.0, "seconds without a poll after which a generator session is closed"
    )
    generators_limit: int = option("generators.limit", COUNT, 1000, "generator sessions at once; the next one gets 503")
    access_log: bool = option(
        "access_log", BOOLEAN, False, "a line in the log pushdemo.access for each stream, when it ends: true or false"
    )
    drain: float = option(
        "drain",
        SECONDS,
        0.0,
        "seconds that the server still serves after SIGTERM, while /health/ready answers 503; 0: it stops at once",
    )
    status_permission: str = option(
        "status_permission",
        PERMISSION,
        "",
        "the permission that /status and /metrics require; empty: everybody may read them",
    )
    redis_url: str = option(
        "redis_url",
        REDIS_URL,
        "",
        "URL of the Redis through which processes share topics and memorized values; empty: nothing is shared",
        secret=True,
    )
    redis_namespace: str = option(
        "redis_namespace",
        REDIS_NAMESPACE,
        "pushdemo",
        "prefix of all keys and channels at the Redis, in braces; give each application its own",
    )
    redis_stale: float = option(
        "redis_stale",
        SECONDS_ABOVE_0,
        10.0,
        "seconds without the Redis after which clients are told, once, that what they see may be old",
    )

    # `pushdemo.memorize.<name>.duration`, in seconds, by the name of the function.
    memorize_durations: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_ini(cls, ini: Mapping[str, Any]) -> Settings:
        """The settings among `ini`'s keys that begin with `pushdemo.`; other keys are left alone.

        Raises SettingsError for a key that is unknown (with the nearest known one) and for a value that will not do.
        """
        table = {row.metadata["key"]: row for row in fields(cls) if row.metadata}
        values: dict[str, Any] = {"memorize_durations": {}}
        for key, given in ini.items():
            if not key.startswith(PREFIX):
                continue
            if named := _FUNCTION.fullmatch(key):
                row = table["pushdemo.memorize.duration"]
                values["memorize_durations"][named[1]] = _converted(key, given, row)
                continue
            if key not in table:
                near = difflib.get_close_matches(key, table, n=1, cutoff=0.0)[0]
                shown = "(not shown)" if table[near].metadata["secret"] else given
                known = ", ".join(sorted(table))
                raise SettingsError(f"unknown setting {key} = {shown}; did you mean {near}? Known: {known}")
            row = table[key]
            values[row.name] = _converted(key, given, row)
        return cls(**values)


def _looked_up(key: str, given: Any) -> Any:
    """Return the value that `env:NAME` or `file:PATH` stands for; anything else is the value itself.

    It keeps secrets out of the ini, which PasteDeploy can fill in from nowhere else. Raises SettingsError for a
    variable that is not set and for a file that cannot be read.
    """
    kind, colon, place = str(given).strip().partition(":")
    if kind == "env" and colon:
        if place not in os.environ:
            raise SettingsError(f"{key} = {given}: the environment variable {place} is not set")
        return os.environ[place]
    if kind == "file" and colon:
        try:
            return Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise SettingsError(f"{key} = {given}: the file cannot be read: {reason}") from None
    return given


def _converted(key: str, given: Any, row: Field[Any]) -> Any:
    convert, expected = row.metadata["converter"]
    text = str(_looked_up(key, given)).strip()
    try:
        return convert(text)
    except ValueError:
        shown = "(not shown)" if row.metadata["secret"] else given
        raise SettingsError(f"{key} = {shown}: must be {expected}, such as {_shown(row.default)}") from None


def _shown(value: Any) -> str:
    """A value as the ini has it."""
    if isinstance(value, tuple):
        return " ".join(value) or "https://example.org"
    if isinstance(value, str):
        return value or "redis://localhost:6379/0"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_of(ini: str) -> Settings:
    """The settings of the application of an ini file, or of the section that `path#name` says.

    Raises SettingsError, and what reading such a file does.
    """
    from pyramid.paster import get_appsettings

    return Settings.from_ini(get_appsettings(ini))
