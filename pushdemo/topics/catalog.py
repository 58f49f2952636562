"""All topics of one application, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from pushdemo.forking import call_in_child
from pushdemo.topics.merged import MergedTopic
from pushdemo.topics.topic import Topic


class Topics(Mapping[str, Topic]):
    """The topics by name. Filled while the application is configured; read by any thread afterwards."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._begin_in_child()
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Begin without merged topics. In a forked process they would have the ids of the parent's topics."""
        self._lock = threading.Lock()  # guards the next line; a merged topic lives while a client refers to it
        self._merged: WeakValueDictionary[tuple[str, ...], MergedTopic] = WeakValueDictionary()

    def add(self, topic: Topic) -> Topic:
        """Add a topic under its name; ValueError where the name is taken."""
        if topic.name in self._topics:
            raise ValueError(f"there is a topic {topic.name} already")
        self._topics[topic.name] = topic
        return topic

    def merged(self, names: Sequence[str]) -> Topic:
        """The topics of these names as one, the same for all clients at one time; KeyError for no topic."""
        key = tuple(sorted(set(names)))
        parts = [self[name] for name in key]
        with self._lock:
            if (topic := self._merged.get(key)) is None:
                topic = self._merged[key] = MergedTopic(parts)
            return topic

    def close(self) -> None:
        """The application stops: no source makes anything more."""
        for topic in self._topics.values():
            topic.close()

    def __getitem__(self, name: str) -> Topic:
        try:
            return self._topics[name]
        except KeyError:
            raise KeyError(f"no topic {name}; there are: {', '.join(self._topics) or 'none'}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._topics

    def __iter__(self) -> Iterator[str]:
        return iter(self._topics)

    def __len__(self) -> int:
        return len(self._topics)
