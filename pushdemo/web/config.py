"""What `config.include("pushdemo")` adds to a Pyramid application.

Everything of one application hangs on its registry, under keys that begin with `pushdemo.`; two applications in one
process share nothing. Runs while the application is configured; what it leaves behind is for any thread.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_registry
from pyramid.tweens import EXCVIEW

from pushdemo.abandoned import end_in_thread
from pushdemo.cache.functions import Caches, UnknownFunctionError, outside
from pushdemo.topics import content
from pushdemo.topics.catalog import FOREVER, Catalog, Declaration
from pushdemo.topics.pattern import Pattern, Reference
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.producer import check_source
from pushdemo.topics.topic import MessageProducer, Topic
from pushdemo.web.admission import Clients
from pushdemo.web.broker import Backend, InProcess
from pushdemo.web.listening import count_listeners, end_here, end_streams, newest_event_id
from pushdemo.web.publications import Publications
from pushdemo.web.publish import RequestMemorized, end_topic, publish
from pushdemo.web.push import BEGAN, push
from pushdemo.web.sessions import Sessions
from pushdemo.web.settings import Settings, SettingsError

log = logging.getLogger("pushdemo")

_OTHER_FILES = 200  # open files that are no parked clients: listening sockets, connections between two requests, logs
_CLOSING = 1.0  # seconds that generators have for their last step and their `finally`, when the application stops
_SERVING = ("pyramid.scripts.pserve", "gunicorn.app.base", "waitress.runner", "uwsgi", "mod_wsgi")  # modules


def includeme(config: Configurator) -> None:
    """Add server push to an application: `config.include("pushdemo")`.

    Reads the settings that begin with `pushdemo.`; raises SettingsError for one that is unknown or wrong. Adds:

    - `config.add_topic`, a directive;
    - `request.push`, `request.publish`, `request.end_topic`, `request.step`, `request.end_streams`,
      `request.count_listeners` and `request.newest_event_id`, methods, and `request.memorized`, an attribute;
    - an exception view for what the generators of json_yield raise, with a predicate of its own: other exceptions, and
      those that the application has a view for, are not its concern;
    - a tween, within which memorized functions use this application's cache and durations;
    - to the registry, under keys that begin with `pushdemo.`: `settings` (Settings), `topics` (Catalog), `backend`
      (where topics and values live), `clients` (admission and timing), `caches` and `generators` (sessions of
      json_yield). They end with the registry, or with the process.
    """
    settings = Settings.from_ini(config.registry.settings)
    registry = config.registry
    registry["pushdemo.settings"] = settings
    clock: Callable[[], float] = registry.get("pushdemo.clock", time.monotonic)  # pushdemo.testing's can be moved
    pool = SourcePool(settings.sources_threads, settings.sources_limit, clock)
    backend = registry["pushdemo.backend"] = _backend(settings, pool)
    topics = registry["pushdemo.topics"] = Catalog(limit=settings.topics_limit, clock=clock, pool=pool)
    clients = registry["pushdemo.clients"] = Clients(settings)
    registry["pushdemo.publications"] = Publications(registry, topics, clients.counters)
    registry["pushdemo.caches"] = Caches(
        duration=settings.memorize_duration,
        stale=settings.memorize_stale,
        stale_if_error=settings.memorize_stale_if_error,
        maxsize=settings.memorize_maxsize,
        functions={name: {"duration": duration} for name, duration in settings.memorize_durations.items()},
        store=backend.store,
        timer=clock,
    )
    sessions = registry["pushdemo.generators"] = Sessions(
        timeout=settings.generators_timeout,
        limit=settings.generators_limit,
        batch_timeout=settings.longpoll_timeout,
        ownership=backend.ownership,
        clock=clock,
    )
    weakref.finalize(registry, end_in_thread, partial(_close, topics, sessions, backend))
    config.add_directive("add_topic", add_topic)
    config.add_request_method(push)
    config.add_request_method(publish)
    for method in (end_topic, end_streams, count_listeners, newest_event_id):
        config.add_request_method(method)
    backend.hear_orders(partial(end_here, registry["pushdemo.clients"], sessions))
    config.add_request_method(RequestMemorized(), "memorized")
    config.include("pushdemo.web.json_yield")
    # Over all that begins a transaction: a message of what is committed after this tween's first line is a newer one.
    config.add_tween("pushdemo.web.config.tween", over=("pyramid_tm.tm_tween_factory", EXCVIEW))
    _check_open_files(settings.max_clients)


def add_topic(
    config: Configurator,
    name: str,
    source: Callable[..., Any] | None = None,
    *,
    interval: float | None = None,
    content_type: str = content.XML,
    renderer: str = "",
    history: int | None = None,
    history_bytes: int | None = None,
    lifetime: float | None = None,
    shared: bool = True,
) -> None:
    """Configurator directive: a topic that all its clients share, or many of one pattern.

    `name` is the topic's name, or a pattern with placeholders such as `orders.{user}`: a topic for each user.
    `source` makes its messages: a function, called every `interval` seconds (the ini's `pushdemo.interval` where it is
    left out), or a generator function, asked for its next value as often; with `interval` 0 it sets its own pace. It is
    called with the pattern's values, as text, by keyword; and with the registry, if its first parameter is `registry`.
    Without a source the topic is only published to. A `renderer` makes the body of each value, for all clients, with a
    blank request; JSON is made by the application's own. `history` is
    the number of messages kept (`pushdemo.history`), `history_bytes` bounds their bodies (`pushdemo.history_bytes`). A
    topic of a pattern is forgotten `lifetime` seconds (`pushdemo.topics.lifetime`) after it last had a client or a
    message; one with a name of its own only where `lifetime` is given. Where nodes share topics at a Redis, one that is
    not `shared` is each node's own, such as its own figures.

    Raises ValueError or TypeError for what will not do. Two topics of one name, or of patterns that differ in their
    placeholders' names alone, are a ConfigurationConflictError.
    """
    pattern = Pattern(name)
    source = config.maybe_dotted(source)
    registry = config.registry
    settings: Settings = registry["pushdemo.settings"]
    backend: Backend = registry["pushdemo.backend"]
    if not shared:
        backend = InProcess(backend.pool)
    if lifetime is None:
        lifetime = settings.topics_lifetime if pattern.placeholders else FOREVER
    if history is None:
        history = settings.history
    if history_bytes is None:
        history_bytes = settings.history_bytes
    for option, number in (("history", history), ("history_bytes", history_bytes), ("lifetime", lifetime)):
        if number is not None and not number > 0:
            raise ValueError(f"topic {name}: {option} = {number}: must be above 0")
    content.check_type(content_type)
    equip = None
    if source is not None:
        pace = settings.interval if interval is None else interval
        check_source(name, source, pace)
        source = with_registry(registry, source)
        _check_keywords(pattern, source)
        equip = _equip(backend, pattern, source, pace, registry["pushdemo.caches"].active)
    declaration = Declaration(
        pattern,
        partial(
            _make,
            backend,
            content_type=content_type,
            history=history,
            history_bytes=history_bytes,
            lifetime=None if lifetime == FOREVER else lifetime,
        ),
        content_type=content_type,
        equip=equip,
        forget=backend.forget,
        lifetime=lifetime,
        encode=registry["pushdemo.publications"].encoder(renderer, config.package),
    )
    introspectable = config.introspectable("pushdemo topics", name, name, "topic")
    introspectable.update(name=name, source=source, content_type=content_type)
    config.action(
        ("pushdemo.topic", pattern.shape),
        partial(_declare, registry, backend, declaration, history=history),
        introspectables=(introspectable,),
    )


def with_registry(registry: Registry, source: Callable[..., Any]) -> Callable[..., Any]:
    """Return a source that is given the registry, if its first parameter is called `registry`.

    A source that rests does not keep the registry, whose end is the application's.
    """
    try:
        first = next(iter(inspect.signature(source).parameters), "")
    except ValueError:  # a builtin may have none
        return source
    if first != "registry":
        return source
    reference = weakref.ref(registry)
    if inspect.isgeneratorfunction(source):

        def generating(**values: str) -> Iterator[Any]:
            yield from source(reference(), **values)

        return _described(generating, source)

    def calling(**values: str) -> Any:
        return source(reference(), **values)

    return _described(calling, source)


def _described(function: Callable[..., Any], source: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(source)
    _, *others = signature.parameters.values()
    function.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    return function


def _declare(registry: Registry, backend: Backend, declaration: Declaration, *, history: int) -> None:
    registry["pushdemo.topics"].declare(declaration)
    backend.declare(
        declaration.pattern.text,
        content_type=declaration.content_type,
        history=history,
        lifetime=None if declaration.lifetime == FOREVER else declaration.lifetime,
    )


def _make(backend: Backend, reference: Reference, **options: Any) -> Topic:
    return backend.topic(reference.name, pattern=reference.pattern, **options)


def _equip(
    backend: Backend, pattern: Pattern, source: Callable[..., Any], interval: float, around: Callable[[], Any]
) -> Callable[[Topic, Mapping[str, str]], MessageProducer]:
    """What gives a topic of `pattern` its producer."""
    spread = bool(pattern.placeholders)

    def equip(topic: Topic, values: Mapping[str, str]) -> MessageProducer:
        bound = partial(source, **values) if values else source
        return backend.producer(topic, bound, interval, around=around, spread=spread)

    return equip


def _check_keywords(pattern: Pattern, source: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(source)
    except ValueError:  # a builtin may have none
        return
    try:
        signature.bind(**dict.fromkeys(pattern.placeholders, ""))
    except TypeError as error:
        wanted = ", ".join(pattern.placeholders) or "nothing"
        raise TypeError(f"topic {pattern.text}: its source is called with {wanted}: {error}") from None


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
    first = threading.Lock()  # the first request acquires it, for good
    drain = registry["pushdemo.settings"].drain
    caches: Caches = registry["pushdemo.caches"]
    caches.serve()
    active = caches.active

    def with_caches(request: Request) -> Response:
        if not first.locked() and first.acquire(blocking=False):
            if "pushdemo.park" not in request.environ and not known:
                _warn_of_threads(registry)
            if end := request.environ.get("pushdemo.end"):
                end.drain = drain
        request.environ[BEGAN] = time.monotonic()
        with active():
            try:
                response = handler(request)
            except UnicodeDecodeError:
                if _is_utf8(request):
                    raise
                response = HTTPBadRequest("the path or the query is not percent-encoded UTF-8")
        if response.status_code >= 400:  # its text may repeat what the client has sent: a browser must not guess
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    return with_caches


def _is_utf8(request: Request) -> bool:
    """Whether the path and the query are what they should be; otherwise an error is not the application's."""
    try:
        request.environ.get("PATH_INFO", "").encode("latin-1").decode()
        unquote_to_bytes(request.query_string).decode()
    except UnicodeError:
        return False
    return True


# Pyramid knows the application in callbacks and outer tweens too, and in scripts and shells that it has bootstrapped.
outside.in_request = lambda: get_current_registry().get("pushdemo.caches")


def _server_is_another() -> bool:
    """Whether a program that serves makes the application, and has not loaded our server: pserve does so first.

    Of other programs it is not known before the first request.
    """
    return "pushdemo.server" not in sys.modules and any(program in sys.modules for program in _SERVING)


def _warn_of_threads(registry: Registry) -> None:
    if registry["pushdemo.topics"].patterns:
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


def _backend(settings: Settings, pool: SourcePool) -> Backend:
    if not settings.redis_url:
        return InProcess(pool)
    try:
        from pushdemo.redis.backend import RedisBackend
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise SettingsError('pushdemo.redis_url needs the redis package: pip install "pushdemo[redis]"') from None
    try:
        return RedisBackend(settings.redis_url, settings.redis_namespace, pool=pool, stale=settings.redis_stale)
    except ValueError as error:
        raise SettingsError(f"pushdemo.redis_url: {error}, such as redis://localhost:6379/0") from None


def _close(topics: Catalog, sessions: Sessions, backend: Backend) -> None:
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
