"""What `config.include("pushdemo")` adds to a Pyramid application.

Everything of one application hangs on its registry, under keys that begin with `pushdemo.`; two applications in one
process share nothing. Runs while the application is configured; what it leaves behind is for any thread.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_registry

from pushdemo.cache.functions import Caches, UnknownFunctionError, outside
from pushdemo.topics import content
from pushdemo.topics.catalog import Topics
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.web.broker import Backend, InProcess
from pushdemo.web.push import RETRY_AFTER, Clients, push
from pushdemo.web.sessions import Sessions
from pushdemo.web.settings import Settings, SettingsError

log = logging.getLogger("pushdemo")

_OTHER_FILES = 200  # open files that are no parked clients: listening sockets, connections between two requests, logs
_CLOSING = 1.0  # seconds that generators have for their last step and their `finally`, when the application stops
_SERVING = ("pyramid.scripts.pserve", "gunicorn.app.base", "waitress.runner", "uwsgi", "mod_wsgi")  # modules


def includeme(config: Configurator) -> None:
    """Add `config.add_topic`, `request.push`, `request.publish`, and `memorize` and `json_yield` by the ini's settings.

    The settings begin with `pushdemo.`. Raises SettingsError for one that is unknown or wrong.
    """
    settings = Settings.from_ini(config.registry.settings)
    registry = config.registry
    registry["pushdemo.settings"] = settings
    backend = registry["pushdemo.backend"] = _backend(settings)
    topics = registry["pushdemo.topics"] = Topics()
    registry["pushdemo.clients"] = Clients(settings)
    registry["pushdemo.caches"] = Caches(
        duration=settings.memorize_duration,
        stale=settings.memorize_stale,
        stale_if_error=settings.memorize_stale_if_error,
        maxsize=settings.memorize_maxsize,
        functions={name: {"duration": duration} for name, duration in settings.memorize_durations.items()},
        store=backend.store,
    )
    sessions = registry["pushdemo.generators"] = Sessions(
        timeout=settings.generators_timeout,
        limit=settings.generators_limit,
        batch_timeout=settings.longpoll_timeout,
        ownership=backend.ownership,
    )
    # When the application goes: with its registry, or with the process.
    weakref.finalize(registry, _close, topics, sessions, backend)
    config.add_directive("add_topic", add_topic)
    config.add_request_method(push)
    config.add_request_method(publish)
    config.add_request_method(_CachesOfRequest(), "memorized")
    config.include("pushdemo.web.json_yield")
    config.add_tween("pushdemo.web.config.tween")
    _check_open_files(settings.max_clients)


def add_topic(
    config: Configurator,
    name: str,
    source: Callable[[], Any] | None = None,
    *,
    interval: float | None = None,
    content_type: str = content.XML,
    shared: bool = True,
) -> None:
    """Configurator directive: a topic that all its clients share.

    `source` makes its messages: a function, called every `interval` seconds (the ini's `pushdemo.interval` where it is
    left out), or a generator function, asked for its next value as often; with `interval` 0 it sets its own pace.
    Without a source the topic is only published to. Two topics of one name are a ConfigurationConflictError. Where
    nodes share topics at a Redis, one that is not `shared` is each node's own, such as its own figures.
    """
    source = config.maybe_dotted(source)
    registry = config.registry
    settings: Settings = registry["pushdemo.settings"]
    backend: Backend = registry["pushdemo.backend"] if shared else InProcess()
    topic = backend.topic(name, content_type=content_type, history=settings.history)
    if source is not None:
        if not callable(source):
            raise TypeError(f"topic {name}: its source must be a function or a generator function, not {source!r}")
        pace = settings.interval if interval is None else interval
        topic.source = backend.producer(topic, source, pace, around=registry["pushdemo.caches"].active)
    introspectable = config.introspectable("pushdemo topics", name, name, "topic")
    introspectable.update(name=name, source=source, content_type=content_type)
    config.action(
        ("pushdemo.topic", name),
        lambda: registry["pushdemo.topics"].add(topic),
        introspectables=(introspectable,),
    )


def publish(request: Request, name: str, value: Any) -> Message:
    """Request method: add a message with `value` to the topic `name`; KeyError where there is none.

    What `value` may be is the topic's content type's to say: see `Topic.publish`, which works in any
    thread. Raises HTTPServiceUnavailable, with Retry-After, where topics are shared at a Redis that cannot take the
    message now; `Topic.publish` raises its ConnectionError.
    """
    topic: Topic = request.registry["pushdemo.topics"][name]
    try:
        return topic.publish(value)
    except ConnectionError as error:  # it is in the log, where Redis is no secret
        reason = f"nothing can be published to {name} at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error


class _CachesOfRequest:
    """Request attribute: the application's memorized values, to look at with `info()`, to forget with `clear(name)`.

    Pyramid binds it as it binds a request method. For a property it would make a class, anew for each request, which
    takes a sixth of all the time that a small view does.
    """

    def __get__(self, request: Request, owner: type) -> Caches:
        caches: Caches = request.registry["pushdemo.caches"]
        return caches


def tween(handler: Callable[[Request], Response], registry: Registry) -> Callable[[Request], Response]:
    """Tween: memorized functions that a request calls use this application's cache and durations.

    It is made when the application is, and so all that waits for the end of the configuration begins here: a subscriber
    to ApplicationCreated would have Pyramid look for subscribers four times in each request.
    """
    _check_functions(registry)
    registry["pushdemo.backend"].start(registry["pushdemo.topics"].values())
    known = _server_is_another()
    if known:
        _warn_of_threads(registry)
    unknown = [] if known else [True]  # any thread empties it; of several at once, `pop` lets one succeed
    caches: Caches = registry["pushdemo.caches"]
    caches.serve()
    active = caches.active

    def with_caches(request: Request) -> Response:
        if unknown:
            with suppress(IndexError):
                unknown.pop()
                if "pushdemo.park" not in request.environ:
                    _warn_of_threads(registry)
        with active():
            return handler(request)

    return with_caches


# Pyramid knows the application in callbacks and outer tweens too, and in scripts and shells that it has bootstrapped.
outside.in_request = lambda: get_current_registry().get("pushdemo.caches")


def _server_is_another() -> bool:
    """Whether a program that serves makes the application, and has not loaded our server: pserve does so first.

    Of other programs it is not known before the first request.
    """
    return "pushdemo.server" not in sys.modules and any(program in sys.modules for program in _SERVING)


def _warn_of_threads(registry: Registry) -> None:
    if registry["pushdemo.topics"]:
        log.warning(
            "the server of this application cannot park responses: each waiting client holds a thread of it, and no "
            "more than %d may (pushdemo.max_threads). With `use = egg:pushdemo` in the ini's [server:main], which is "
            "waitress with all of its settings, a waiting client holds none, and %d may wait (pushdemo.max_clients)",
            registry["pushdemo.settings"].max_threads,
            registry["pushdemo.settings"].max_clients,
        )


def _check_functions(registry: Registry) -> None:
    """All modules are imported now: what the ini says of one function must be said of one that there is."""
    try:
        registry["pushdemo.caches"].check()
    except UnknownFunctionError as error:
        duration = registry["pushdemo.settings"].memorize_durations[error.name]
        raise SettingsError(f"pushdemo.memorize.{error.name}.duration = {duration:g}: {error}") from None


def _backend(settings: Settings) -> Backend:
    if not settings.redis_url:
        return InProcess()
    try:
        from pushdemo.redis.backend import RedisBackend
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise SettingsError('pushdemo.redis_url needs the redis package: pip install "pushdemo[redis]"') from None
    try:
        return RedisBackend(settings.redis_url)
    except ValueError as error:
        raise SettingsError(f"pushdemo.redis_url: {error}, such as redis://localhost:6379/0") from None


def _close(topics: Topics, sessions: Sessions, backend: Backend) -> None:
    topics.close()
    sessions.close(_CLOSING)
    backend.close()


def _check_open_files(max_clients: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < max_clients + _OTHER_FILES:
        log.warning(
            "pushdemo.max_clients = %d needs %d open files, and this process may have %d: raise the limit (ulimit -n) "
            "or lower the setting",
            max_clients,
            max_clients + _OTHER_FILES,
            limit,
        )
