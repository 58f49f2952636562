"""The catalog: what topics an application has declared, and those of them that live.

A declaration is a name, or a pattern with placeholders. A topic is made by its first client or its first message, and
forgotten when it has no client and its lifetime has passed since it last had a client or a message; an application's
own names have none unless it says so, and live on. At most `limit` topics with a lifetime live at once: idle ones are
forgotten early, the longest idle first, to make room for a new one.

What may never happen: two topics of one name at once, one with clients and the other with the messages. A forgotten
topic may still be known to a client that has yet to join, or to a publisher. So long as anybody refers to it, it is
among `_forgotten`, and whoever asks for its name, or joins it, makes it live again. Only when nobody does is its epoch
gone, and the next of its name another life.

Any thread calls anything. `_lock` guards what lives; it is taken before a topic's own, never after it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from pushdemo.forking import call_in_child
from pushdemo.topics.content import XML, body
from pushdemo.topics.merged import MergedTopic
from pushdemo.topics.message import Message
from pushdemo.topics.pattern import Pattern, Reference
from pushdemo.topics.pool import Call, SourcePool
from pushdemo.topics.topic import MessageProducer, Topic

log = logging.getLogger("pushdemo")

FOREVER = float("inf")
_MANY = 1000  # topics forgotten at a time, so that others can ask for theirs in between
_SWEEP = 0.05  # seconds between two sweeps at least


class TopicLimitError(RuntimeError):
    """As many topics live as may (pushdemo.topics.limit), and all of them have clients."""


class SourceLimitError(RuntimeError):
    """As many threads as may are kept by slow sources (pushdemo.sources.limit)."""


@dataclass(eq=False, slots=True)
class Declaration:
    """What an application has declared: a pattern, how to make a topic of it, and what makes the topic's messages.

    `make` and `equip` are called under the catalog's lock, and must not block; `forget` likewise.
    """

    pattern: Pattern
    make: Callable[[Reference], Topic]
    content_type: str = XML
    equip: Callable[[Topic, Mapping[str, str]], MessageProducer] | None = None
    forget: Callable[[Topic], None] | None = None
    lifetime: float = FOREVER
    encode: Callable[[str, Any], bytes] | None = None  # a value as a body of a type; else as content.body does
    # Under the catalog's lock:
    idle: OrderedDict[str, Topic] = field(default_factory=OrderedDict)  # without clients, the longest idle first
    forgotten: int = 0
    dropped: int = 0  # messages for which there was no room for a topic
    published: int = 0  # messages of the topics that are forgotten


class Figures(NamedTuple):
    """What has become of one declaration.

    `topics` live, and `idle` of them have no client; others are `forgotten`. They have `clients`, the `busiest` of them
    so many. Counted since the start: messages `published`, and those `dropped` since there was no room for a topic.
    `ended`: all that live have ended.
    """

    topic: str
    content_type: str
    topics: int
    idle: int
    forgotten: int
    clients: int
    busiest: int
    published: int
    dropped: int
    ended: bool


class Catalog(Mapping[str, Topic]):
    """The topics of one application. As a mapping: those that live, by name."""

    def __init__(
        self,
        *,
        limit: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
        pool: SourcePool | None = None,
    ) -> None:
        self.limit = limit
        self.clock = clock
        self.pool = pool or SourcePool(clock=clock)
        self._declared: dict[str, Declaration] = {}  # by pattern; filled while the application is configured
        # Under the lock:
        self._live: dict[str, Topic] = {}
        self._mortal = 0  # of them, those with a lifetime
        self._closed = False
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin without clients, which are the parent's in a forked process; each topic there begins another life."""
        self._lock = threading.RLock()  # reentrant: a garbage collection under it may close a client
        # Under the lock:
        self._forgotten: WeakValueDictionary[str, Topic] = WeakValueDictionary()
        # Joined ids are of the parent's topics, and these live while a client refers to them.
        self._merged: WeakValueDictionary[tuple[str, ...], MergedTopic] = WeakValueDictionary()
        self._sweep_call: Call | None = None
        for topic in list(self._live.values()):
            topic.begin_in_child()
            declaration = self._declared[topic.pattern]
            if declaration.lifetime != FOREVER:
                topic.used = self.clock()
                declaration.idle[topic.name] = topic  # swept once anything happens here: a thread would begin too early

    # -- while the application is configured

    def declare(self, declaration: Declaration) -> None:
        """Add a declaration; a name without placeholders and lifetime is made at once.

        Raises ValueError where there is one with this name, or with the same text around other placeholders.
        """
        pattern = declaration.pattern
        for known in self._declared.values():
            if known.pattern.shape == pattern.shape:
                raise ValueError(f"there is a topic {known.pattern.text} already")
        self._declared[pattern.text] = declaration
        if not pattern.placeholders and declaration.lifetime == FOREVER:
            self.open(pattern.refer({}))

    def add(self, topic: Topic) -> Topic:
        """Add a topic that somebody has made, under its name; ValueError where the name is taken."""
        self.declare(Declaration(Pattern(topic.name), lambda reference: topic, topic.content_type))
        return topic

    # -- references

    def refer(self, pattern: str | Reference, values: Mapping[str, object] | None = None) -> Reference:
        """The topic of a declared pattern and these values.

        Raises KeyError, which names what there is, where it is not declared; else what Pattern.refer does.
        """
        if isinstance(pattern, str):
            return self.pattern(pattern).refer(values or {})
        if not isinstance(pattern, Reference):
            raise TypeError(f"a topic is a name, a pattern or a reference, not {pattern!r:.100}")
        self._declaration(pattern.pattern)
        if values:
            raise TypeError(f"{pattern.pattern} has its values already, and takes no more: {', '.join(values)}")
        return pattern

    def refer_all(self, topics: Sequence[str | Reference], values: Mapping[str, object]) -> list[Reference]:
        """The topics of several patterns, each of which takes those of the values that it has placeholders for."""
        if len(topics) == 1 and not values:
            return [self.refer(topics[0])]
        found = []
        unused = set(values)
        for topic in topics:
            names = self.pattern(topic).placeholders if isinstance(topic, str) else ()
            unused -= set(names)
            found.append(self.refer(topic, {name: values[name] for name in names if name in values}))
        if unused:
            texts = ", ".join(topic if isinstance(topic, str) else topic.pattern for topic in topics) or "no topic"
            raise TypeError(f"{texts}: there is no placeholder {', '.join(sorted(unused))}")
        return found

    def pattern(self, text: str) -> Pattern:
        """A declared pattern. Raises KeyError, which names what there is, where it is not declared."""
        return self._declaration(text).pattern

    def content_type(self, reference: Reference) -> str:
        """The type of the messages of a topic, which need not live."""
        return self._declaration(reference.pattern).content_type

    def _declaration(self, text: str) -> Declaration:
        try:
            return self._declared[text]
        except KeyError:
            raise KeyError(f"no topic {text}; there are: {', '.join(self._declared) or 'none'}") from None

    # -- topics

    def open_for_client(self, reference: Reference) -> Topic:
        """As `open`, for a client that is about to join; raises SourceLimitError where there is no thread for it."""
        topic = self.open(reference)
        if topic.producer and not topic.producer.has_room:
            raise SourceLimitError(
                f"all {self.pool.limit} threads that slow sources may keep are taken (pushdemo.sources.limit)"
            )
        return topic

    def open(self, reference: Reference) -> Topic:
        """The topic of a reference, made if it does not live. Raises TopicLimitError.

        As long as the caller refers to it, it is the only one of its name.
        """
        topic = self._live.get(reference.name)
        if topic is not None and topic.clients:
            return topic  # it lives as long as its client does, or else among the forgotten
        with self._lock:
            declaration = self._declared[reference.pattern]
            topic = self._live.get(reference.name)
            if topic is None:
                topic = self._forgotten.get(reference.name)
                if topic is None:
                    topic = self._make(declaration, reference)
                self._begin_life(declaration, topic)
            self._touch(declaration, topic)
            return topic

    def find(self, reference: Reference) -> Topic | None:
        """The topic of a reference if it lives; it is not made, and its lifetime does not begin anew."""
        topic = self._live.get(reference.name)
        if topic is None:
            with self._lock:
                topic = self._live.get(reference.name) or self._forgotten.get(reference.name)
        return topic

    def encode(self, reference: Reference, value: Any) -> bytes:
        """A value as a body of a topic, which need not live. Raises what Topic.publish does."""
        declaration = self._declaration(reference.pattern)
        return (declaration.encode or body)(declaration.content_type, value)

    def publish(self, reference: Reference, value: Any, *, event: str = "") -> Message | None:
        """Publish to a topic; see Topic.publish. None where there was no room for a new topic: that is counted."""
        return self.publish_body(reference, self.encode(reference, value), event=event)

    def publish_body(self, reference: Reference, body: bytes, *, event: str = "") -> Message | None:
        """As `publish`, of a value that is a body of the topic's type already."""
        try:
            topic = self.open(reference)
        except TopicLimitError as error:
            self._drop(self._declared[reference.pattern], error)
            return None
        return topic.publish_body(body, event=event)

    def merged(self, topics: Sequence[Topic]) -> Topic:
        """These topics as one, the same for all clients of the same topics at one time; a single one is itself."""
        parts = sorted(dict.fromkeys(topics), key=lambda topic: topic.name)
        if len(parts) == 1:
            return parts[0]
        key = tuple(topic.name for topic in parts)
        with self._lock:
            if (topic := self._merged.get(key)) is None:
                topic = self._merged[key] = MergedTopic(parts)
            return topic

    def close(self) -> None:
        """The application stops: no source makes anything more."""
        with self._lock:
            self._closed = True
            topics = [*self._live.values(), *self._forgotten.values()]
            self._plan_sweep()
        for topic in topics:
            topic.close()

    # -- what lives, and for how long; under the lock

    def _make(self, declaration: Declaration, reference: Reference) -> Topic:
        mortal = declaration.lifetime != FOREVER
        if mortal and not self._make_room():
            raise TopicLimitError(f"all {self.limit} topics that may live have clients (pushdemo.topics.limit)")
        topic = declaration.make(reference)
        if declaration.encode:
            topic.encode = declaration.encode
        if mortal:
            topic.on_clients = self._clients_changed
            topic.values = reference.values
        return topic

    def _make_room(self, places: int = 1) -> bool:
        """Forget the longest idle topics until there is room for so many more; whether there is."""
        while self._mortal + places > self.limit:
            fronts = [(next(iter(known.idle.values())), known) for known in self._declared.values() if known.idle]
            if not fronts:
                return False
            topic, declaration = min(fronts, key=lambda front: front[0].used)
            self._forget(declaration, topic)
        return True

    def _begin_life(self, declaration: Declaration, topic: Topic) -> None:
        if declaration.lifetime != FOREVER:
            self._make_room()  # where there is none, one that lives again is kept nevertheless
            self._mortal += 1
        self._live[topic.name] = topic
        declaration.published -= topic.number  # it counts itself while it lives
        if declaration.equip:
            producer = declaration.equip(topic, dict(topic.values))
            with topic.lock:
                topic.producer = producer
                if topic.clients:
                    producer.start()

    def _touch(self, declaration: Declaration, topic: Topic) -> None:
        """A topic has had a client or a message now, or is about to."""
        if topic.clients or declaration.lifetime == FOREVER:
            return
        topic.used = self.clock()
        declaration.idle[topic.name] = topic
        declaration.idle.move_to_end(topic.name)
        self._make_room(0)  # more live than there is room for where forgotten ones had to live again
        due = max(topic.used + declaration.lifetime, self.clock() + _SWEEP)
        if self._sweep_call is None or due < self._sweep_call.due:
            self._plan_sweep()

    def _clients_changed(self, topic: Topic) -> None:
        """The first client has come, or the last one gone; which of them was the latest, the topic knows."""
        with self._lock:
            declaration = self._declared[topic.pattern]
            if topic.clients:
                declaration.idle.pop(topic.name, None)
                if topic.name not in self._live:
                    self._begin_life(declaration, topic)
            elif topic.name in self._live:
                self._touch(declaration, topic)

    def _forget(self, declaration: Declaration, topic: Topic) -> None:
        """Let an idle topic go, unless a client has just joined it."""
        declaration.idle.pop(topic.name, None)
        with topic.lock:
            if topic.clients:
                return
            producer, topic.producer = topic.producer, None
            if producer:
                producer.close()
        del self._live[topic.name]
        self._forgotten[topic.name] = topic
        self._mortal -= 1
        declaration.forgotten += 1
        declaration.published += topic.number
        if declaration.forget:
            declaration.forget(topic)

    def sweep(self) -> None:
        """Forget the topics whose lifetime is over. The pool calls it when there may be one."""
        now = self.clock()
        left = _MANY
        with self._lock:
            for declaration in self._declared.values():
                while declaration.idle and left:
                    topic = next(iter(declaration.idle.values()))
                    if topic.used + declaration.lifetime > now:
                        break
                    self._forget(declaration, topic)
                    left -= 1
            self._plan_sweep()

    def _plan_sweep(self) -> None:
        if self._sweep_call:
            self.pool.cancel(self._sweep_call)
            self._sweep_call = None
        dues = [
            next(iter(known.idle.values())).used + known.lifetime for known in self._declared.values() if known.idle
        ]
        if dues and not self._closed:
            self._sweep_call = self.pool.call_at(max(min(dues), self.clock() + _SWEEP), self.sweep)

    def _drop(self, declaration: Declaration, error: TopicLimitError) -> None:
        with self._lock:
            declaration.dropped += 1
            first = declaration.dropped == 1
        if first:
            log.warning(
                "a message to %s is dropped, as will be others without a word: %s", declaration.pattern.text, error
            )

    # -- to look at

    @property
    def patterns(self) -> Sequence[str]:
        """The declared names and patterns."""
        return list(self._declared)

    def figures(self) -> list[Figures]:
        """What has become of each declaration, at this moment."""
        with self._lock:
            topics: dict[str, list[Topic]] = {text: [] for text in self._declared}
            for topic in self._live.values():
                topics[topic.pattern].append(topic)
            return [_figures(known, topics[text]) for text, known in self._declared.items()]

    def items(self) -> ItemsView[str, Topic]:
        return dict(self._live).items()  # a copy: topics come and go

    def values(self) -> ValuesView[Topic]:
        return dict(self._live).values()

    def __getitem__(self, name: str) -> Topic:
        try:
            return self._live[name]
        except KeyError:
            raise KeyError(f"no topic {name}; there are: {', '.join(self._declared) or 'none'}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)


def _figures(declaration: Declaration, topics: Sequence[Topic]) -> Figures:
    clients = [topic.clients for topic in topics]
    return Figures(
        topic=declaration.pattern.text,
        content_type=declaration.content_type,
        topics=len(topics),
        idle=clients.count(0),
        forgotten=declaration.forgotten,
        clients=sum(clients),
        busiest=max(clients, default=0),
        published=declaration.published + sum(topic.number for topic in topics),
        dropped=declaration.dropped,
        ended=bool(topics) and all(topic.ended for topic in topics),
    )
