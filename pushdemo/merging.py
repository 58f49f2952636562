"""Several topics on one connection: on HTTP/1.1 a browser holds six connections to a host, and a page may want more.

A merged topic is one whose messages are those of others, in the order in which they came, each with its topic's name
and an id that covers all of them: `name:epoch-number,name:epoch-number`. It lives while it has clients. Locks are taken
downwards only: the merged topic's own, then those of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pushdemo.messages import Message
from pushdemo.topics import EARLIEST, Beginning, Topic


class MergedTopic(Topic):
    """`parts`, as one topic. Nothing can be published to it."""

    def __init__(self, parts: Sequence[Topic]) -> None:
        super().__init__("merged", history=sum(part.kept for part in parts), clock=parts[0].clock)
        self.name = ",".join(part.name for part in parts)
        self.parts = parts
        self.source = self
        self.fresh = True
        # Under the lock: how far each part has been taken over, and the id of its last message up to there.
        self._taken = {part.name: part.head for part in parts}
        self._ids = {part.name: part.id_at(part.head) for part in parts}

    # -- its own source: called under its lock

    def start(self) -> None:
        """The first client has come: be a client of each part."""
        for part in self.parts:
            part.listen(self._pull)
            part.join()
        self._take_over()  # what came since the first client asked where to begin
        self.ended = all(part.ended for part in self.parts)

    def stop(self) -> None:
        """The last client has gone."""
        for part in self.parts:
            part.unlisten(self._pull)
            part.leave()

    # -- what clients do

    def begin(self, last_event_id: str = "") -> Beginning:
        """As for one topic, for each part: the newest message of each, or what each has had since the id."""
        ids = dict(part.partition(":")[::2] for part in last_event_id.split(",")) if last_event_id else {}
        reset = False
        entries: list[tuple[Message, str]] = []
        with self.changed:
            self._take_over()
            known = dict(self._ids)
            for part in self.parts:
                wanted = EARLIEST if last_event_id == EARLIEST else ids.get(part.name, "")
                position, gap, _ = part.begin(wanted)
                reset = reset or gap or bool(last_event_id and not wanted)
                known[part.name] = part.id_at(position)
                entries += [(entry, part.name) for entry in _between(part, position, self._taken[part.name])]
            backlog = []
            for entry, name in sorted(entries, key=lambda item: item[0].time):
                known[name] = entry.id
                backlog.append(self._renamed(entry, name, known, self.head))
            return Beginning(self.head, reset, tuple(backlog))

    def id_at(self, position: int) -> str:
        """The id that resumes behind `position`."""
        with self.changed:
            entry = self._history.get(position)
            return entry.id if entry else _joined(self._ids)

    # -- taking over

    def _pull(self, part: Topic) -> None:
        """A part has changed."""
        with self.changed:
            self._take_over()
            self.ended = all(part.ended for part in self.parts)
            self.closed = any(part.closed for part in self.parts)
            self.changed.notify_all()
        self._tell()

    def _take_over(self) -> None:
        for part in self.parts:
            while True:
                entry, gap = part.following(self._taken[part.name])
                if entry is None:
                    break
                self._taken[part.name] = entry.position
                self._ids[part.name] = entry.id
                if gap:
                    self._keep(self._renamed(entry, part.name, self._ids, self.head + 1, reset=True))
                self._keep(self._renamed(entry, part.name, self._ids, self.head + 1))

    def _renamed(
        self, entry: Message, name: str, ids: dict[str, str], position: int, *, reset: bool = False
    ) -> Message:
        return Message(
            position,
            self.number + 1,
            _joined(ids),
            entry.body,
            entry.content_type,
            kind="reset" if reset else entry.kind,
            time=entry.time,
            topic=name,
        )


def _between(part: Topic, position: int, last: int) -> list[Message]:
    """The entries behind `position`, up to and with `last`."""
    entries = []
    while position < last:
        entry, _ = part.following(position)
        if entry is None or entry.position > last:
            break
        entries.append(entry)
        position = entry.position
    return entries


def _joined(ids: dict[str, str]) -> str:
    return ",".join(f"{name}:{id}" for name, id in ids.items())
