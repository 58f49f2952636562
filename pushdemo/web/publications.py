"""What an application publishes: at once, or when a transaction has been committed; and what becomes of it, counted.

Any thread calls anything.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from types import ModuleType
from typing import Any

from pyramid.registry import Registry

from pushdemo.delivery.metrics import Counters
from pushdemo.topics import content
from pushdemo.topics.catalog import Catalog, TopicLimitError
from pushdemo.topics.message import Message
from pushdemo.topics.pattern import Reference
from pushdemo.topics.topic import Prepared
from pushdemo.web.rendering import body_of

log = logging.getLogger("pushdemo")

_TOGETHER = 1000  # messages sent in one round trip


class Publication:
    """A message that is encoded, and not sent yet: what changes of its value later changes nothing of it."""

    __slots__ = ("_owner", "body", "event", "reference", "value")

    def __init__(self, owner: Publications, reference: Reference, body: bytes, event: str, value: Any) -> None:
        self._owner = owner
        self.reference = reference
        self.body = body
        self.event = event
        self.value = value if owner.sent else None  # for tests alone

    def prepare(self) -> Prepared | None:
        """What publishes it together with others; None where `send` does it as well."""
        try:
            return self._owner.catalog.open(self.reference).prepare(self.body, event=self.event)
        except TopicLimitError:
            return None

    def send(self) -> Message | None:
        """Publish it. Raises what Catalog.publish does."""
        message = self._owner.catalog.publish_body(self.reference, self.body, event=self.event)
        self.was_sent()
        return message

    def was_sent(self) -> None:
        """Tell whoever wants to know."""
        if self._owner.sent:
            self._owner.sent(self)

    def dropped(self) -> None:
        """Its transaction was rolled back."""
        self._owner.counters.unsent(self.reference.pattern, "aborted")

    def failed(self, error: Exception) -> None:
        """It could not be sent after its commit."""
        self._owner.counters.unsent(self.reference.pattern, "failed")
        log.error("a message to %s is lost after its commit: %s", self.reference.pattern, error)


class Later:
    """Another thing to do after a commit."""

    __slots__ = ("_act", "_what")

    def __init__(self, what: str, act: Callable[[], object]) -> None:
        self._what = what
        self._act = act

    def send(self) -> None:
        """Do it."""
        self._act()

    def dropped(self) -> None:
        """Its transaction was rolled back."""

    def failed(self, error: Exception) -> None:
        """It could not be done after its commit."""
        log.error("%s failed after its commit: %s", self._what, error)


class Publications:
    """One application's. The registry is not kept alive by it."""

    def __init__(self, registry: Registry, catalog: Catalog, counters: Counters) -> None:
        self.catalog = catalog
        self.counters = counters
        self.sent: Callable[[Publication], None] | None = None  # told of each message, by pushdemo.testing
        self._registry = weakref.ref(registry)

    def make(
        self, reference: Reference, value: Any, *, event: str, renderer: str = "", package: ModuleType | None = None
    ) -> Publication:
        """Check and encode a message. Raises what Topic.publish does."""
        content.check_event(event)
        if renderer:
            encode = self.encoder(renderer, package)
            body = encode(self.catalog.content_type(reference), value)
        else:
            body = self.catalog.encode(reference, value)
        return Publication(self, reference, body, event, value)

    def encoder(self, renderer: str = "", package: ModuleType | None = None) -> Callable[[str, Any], bytes]:
        """Return what makes a body of a content type and a value, by the application's renderers."""
        return partial(_encode, self._registry, renderer=renderer, package=package)


def send_all(waiting: Sequence[Publication | Later]) -> None:
    """Do in order what has waited for a commit. What fails is logged and counted, and the others go on."""
    for is_message, group in groupby(waiting, key=lambda each: isinstance(each, Publication)):
        if is_message:
            publish_all([each for each in group if isinstance(each, Publication)])
            continue
        for each in group:
            try:
                each.send()
            except Exception as error:
                each.failed(error)


def publish_all(publications: Sequence[Publication]) -> None:
    """Publish messages of one application as one burst: in few round trips, where topics are shared at a Redis."""
    waiting: list[tuple[Publication, Prepared]] = []
    for each in publications:
        try:
            prepared = each.prepare()
            if prepared is None:
                each.send()
            else:
                waiting.append((each, prepared))
        except Exception as error:
            each.failed(error)
    for begin in range(0, len(waiting), _TOGETHER):
        _send_together(waiting[begin : begin + _TOGETHER])


def _send_together(waiting: Sequence[tuple[Publication, Prepared]]) -> None:
    try:
        answers = waiting[0][1].send([prepared.call for _, prepared in waiting])
    except Exception as error:
        answers = [error] * len(waiting)
    for (publication, prepared), answer in zip(waiting, answers, strict=True):
        try:
            prepared.finish(answer)
            publication.was_sent()
        except Exception as error:
            publication.failed(error)


def _encode(
    registry: weakref.ref[Registry], content_type: str, value: Any, *, renderer: str, package: ModuleType | None
) -> bytes:
    found = registry()
    if found is None:  # the application is gone, and its last source is about to go
        return content.body(content_type, value)
    return body_of(found, content_type, value, renderer, package)
