"""What `config.include("pushdemo")` adds to a Pyramid application.

Everything of one application hangs on its registry, under keys that begin with `pushdemo.`; two applications in one
process share nothing. Runs while the application is configured; what it leaves behind is for any thread.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from pyramid.config import Configurator
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response

from pushdemo import content
from pushdemo.cache import Caches
from pushdemo.catalogue import Topics
from pushdemo.generators import Sessions
from pushdemo.messages import Message
from pushdemo.producers import Producer
from pushdemo.responses import Clients, push
from pushdemo.settings import Settings
from pushdemo.topics import Topic

log = logging.getLogger("pushdemo")

_OTHER_FILES = 200  # open files that are no parked clients: listening sockets, connections between two requests, logs


def includeme(config: Configurator) -> None:
    """Add `config.add_topic`, `request.push`, `request.publish`, and `memorize` and `json_yield` by the ini's settings.

    The settings begin with `pushdemo.`. Raises SettingsError for one that is unknown or wrong.
    """
    settings = Settings.from_ini(config.registry.settings)
    registry = config.registry
    registry["pushdemo.settings"] = settings
    topics = registry["pushdemo.topics"] = Topics()
    registry["pushdemo.clients"] = Clients(settings)
    registry["pushdemo.caches"] = Caches(duration=settings.memorize_duration, maxsize=settings.memorize_maxsize)
    sessions = registry["pushdemo.generators"] = Sessions(
        timeout=settings.generators_timeout,
        limit=settings.generators_limit,
        batch_timeout=settings.longpoll_timeout,
    )
    # When the application goes: with its registry, or with the process.
    weakref.finalize(registry, _close, topics, sessions)
    config.add_directive("add_topic", add_topic)
    config.add_request_method(push)
    config.add_request_method(publish)
    config.add_tween("pushdemo.addon.caches_tween")
    _check_open_files(settings.max_clients)


def add_topic(
    config: Configurator,
    name: str,
    source: Callable[[], Any] | None = None,
    *,
    interval: float | None = None,
    content_type: str = content.XML,
) -> None:
    """Configurator directive: a topic that all its clients share.

    `source` makes its messages: a function, called every `interval` seconds (the ini's `pushdemo.interval` where it is
    left out), or a generator function, asked for its next value as often; with `interval` 0 it sets its own pace.
    Without a source the topic is only published to. Two topics of one name are a ConfigurationConflictError.
    """
    source = config.maybe_dotted(source)
    registry = config.registry
    settings: Settings = registry["pushdemo.settings"]
    topic = Topic(name, content_type=content_type, history=settings.history)
    if source is not None:
        pace = settings.interval if interval is None else interval
        topic.source = Producer(topic, source, pace, around=registry["pushdemo.caches"].active)
    introspectable = config.introspectable("pushdemo topics", name, name, "topic")
    introspectable.update(name=name, source=source, content_type=content_type)
    config.action(
        ("pushdemo.topic", name),
        lambda: registry["pushdemo.topics"].add(topic),
        introspectables=(introspectable,),
    )


def publish(request: Request, name: str, value: Any) -> Message:
    """Request method: add a message with `value` to the topic `name`; KeyError where there is none.

    What `value` may be is the topic's content type's to say: see `pushdemo.topics.Topic.publish`.
    """
    topic: Topic = request.registry["pushdemo.topics"][name]
    return topic.publish(value)


def caches_tween(handler: Callable[[Request], Response], registry: Registry) -> Callable[[Request], Response]:
    """Tween: memorized functions that a request calls use this application's cache and durations."""
    active = registry["pushdemo.caches"].active

    def tween(request: Request) -> Response:
        with active():
            return handler(request)

    return tween


def _close(topics: Topics, sessions: Sessions) -> None:
    topics.close()
    sessions.close()


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
