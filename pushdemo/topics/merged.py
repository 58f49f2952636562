"""Several topics on one connection: on HTTP/1.1 a browser holds six connections to a host, and a page may want more.

A merged topic is one whose messages are those of others, in the order in which they came, each with its topic's name
and an id that covers all of them: `name:epoch-number,name:epoch-number`. It lives while it has clients. Locks are taken
downwards only: the merged topic's own, then those of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pushdemo.topics.message import EntryKind, Message, join_event_ids, split_event_ids
from pushdemo.topics.topic import EARLIEST, LATEST, Beginning, Topic

_LOST = "lost"  # no topic's id: whoever comes back with it gets a reset


class MergedTopic(Topic):
    """`parts`, as one topic. Nothing can be published to it."""

    def __init__(self, parts: Sequence[Topic]) -> None:
        super().__init__(
            ",".join(part.name for part in parts),
            history=sum(part.kept for part in parts),
            pattern=",".join(dict.fromkeys(part.pattern for part in parts)),
            clock=parts[0].clock,
        )
        self.parts = parts
        # Under the lock: how far each part has been taken over, and the id of its last message up to there.
        self._taken = {part.name: part.head for part in parts}
        self._ids = {part.name: part.id_at(self._taken[part.name]) for part in parts}
        self._first = join_event_ids(self._ids)  # the id before all
        self.ended = all(part.ended for part in parts)

    # -- what clients do

    def join(self) -> None:
        """One client more; with the first, this is a client of each part."""
        with self.lock:
            self.clients += 1
            if self.clients == 1:
                for part in self.parts:
                    part.listen(self._pull)
                    part.join()
                self._catch_up()  # with what came since the first client asked where to begin

    def start_again(self) -> None:
        """As for one topic, for each part."""
        for part in self.parts:
            part.start_again()

    def leave(self) -> None:
        """One client less."""
        with self.lock:
            self.clients -= 1
            if self.clients == 0:
                for part in self.parts:
                    part.unlisten(self._pull)
                    part.leave()

    def begin(self, last_event_id: str = "") -> Beginning:
        """As for one topic, for each part: the newest message of each, or what each has had since the id."""
        ids = split_event_ids(last_event_id)
        reset = False
        entries: list[tuple[Message, str]] = []
        with self.lock:
            begun = []
            for part in self.parts:
                wanted = last_event_id if last_event_id in (EARLIEST, LATEST) else ids.get(part.name, "")
                position, gap, _ = part.begin(wanted)
                begun.append((part, position))
                reset = reset or gap or bool(last_event_id and not wanted)
            self._take_over()  # asked where to begin, a part may have found more
            known = dict(self._ids)
            for part, position in begun:
                known[part.name] = part.id_at(position)
                found, gap = _between(part, position, self._taken[part.name])
                entries += [(entry, part.name) for entry in found]
                reset = reset or gap
            backlog = []
            for entry, name in sorted(entries, key=lambda item: item[0].time):
                known[name] = entry.id
                backlog.append(self._renamed(entry, name, known, self.head))
            return Beginning(self.head, reset, tuple(backlog))

    def id_at(self, position: int) -> str:
        """See Topic."""
        with self.lock:
            entry = self._entry(position)
            return entry.id if entry else _LOST if position else self._first

    # -- taking over

    def _pull(self, part: Topic) -> None:
        """A part has changed."""
        with self.lock:
            self._catch_up()
            self.notify_all()
        self._tell()

    def _catch_up(self) -> None:
        ended = all(part.ended for part in self.parts)  # asked first: what was said right before the end is then found
        self._take_over()
        self.ended = ended
        self.closed = any(part.closed for part in self.parts)

    def _take_over(self) -> None:
        for part in self.parts:
            while True:
                entry, gap = part.following(self._taken[part.name])
                if entry is None:
                    break
                if gap:  # with the ids before it: who comes back from there has yet to get the entry
                    self._keep(self._renamed(entry, part.name, self._ids, self.head + 1, kind="reset"))
                self._taken[part.name] = entry.position
                self._ids[part.name] = entry.id
                self._keep(self._renamed(entry, part.name, self._ids, self.head + 1))

    def _renamed(
        self, entry: Message, name: str, ids: Mapping[str, str], position: int, kind: EntryKind | None = None
    ) -> Message:
        return Message(
            position,
            self.number + 1,
            join_event_ids(ids),
            entry.body,
            entry.content_type,
            kind=kind or entry.kind,
            time=entry.time,
            topic=name,
            event=entry.event,
        )


def _between(part: Topic, position: int, last: int) -> tuple[list[Message], bool]:
    """Return the entries after `position` up to `last`, and whether some have left the history meanwhile."""
    entries: list[Message] = []
    gap = False
    while position < last and not gap:
        entry, gap = part.following(position)
        if entry is None or entry.position > last:
            break
        entries.append(entry)
        position = entry.position
    return entries, gap
