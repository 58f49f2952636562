"""A client's place in each of its topics. Whoever owns the client's subscription alone uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pushdemo.delivery.metrics import Tally
from pushdemo.topics.message import Message, split_event_ids
from pushdemo.topics.topic import EARLIEST, LATEST, Topic


class Cursor:
    """A client's place in one topic."""

    __slots__ = ("position", "tally", "topic")

    def __init__(self, topic: Topic, tally: Tally) -> None:
        self.topic = topic
        self.tally = tally
        self.position = 0  # of the last entry that the client has, or is being written

    @property
    def id(self) -> str:
        """The id that resumes here."""
        return self.topic.id_at(self.position)

    @property
    def next_time(self) -> float:
        """When the next entry came; endless where there is none."""
        message, _ = self.topic.following(self.position)
        return message.time if message else float("inf")

    @property
    def over(self) -> bool:
        """Whether the topic has ended and the client has all of it."""
        ended, head = self.topic.reached()
        return ended and self.position == head

    def take(self, most: float = math.inf) -> tuple[Message | None, bool]:
        """Go on to the next entry; None where there is none, or where its body has more than `most` bytes.

        And whether entries before it have been missed.
        """
        message, gap = self.topic.following(self.position)
        if message is None or len(message.body) > most:
            return None, gap
        self.position = message.position
        return message, gap


def beginning(topics: Sequence[Topic], last_event_id: str) -> tuple[list[int], bool, tuple[Message, ...]]:
    """Where a client of these topics begins in each of them, after a reset or not, and what it is given first.

    The id is that of its topic, `name:id` of each of several, "earliest", or empty.
    """
    if len(topics) == 1 and ":" not in last_event_id:
        begun = topics[0].begin(last_event_id)
        return [begun.position], begun.reset, begun.backlog
    known = split_event_ids(last_event_id)
    positions, missed, backlog = list[int](), False, tuple[Message, ...]()
    for topic in topics:
        wanted = last_event_id if len(topics) == 1 or last_event_id in (EARLIEST, LATEST) else ""
        wanted = known.get(topic.name, wanted)
        position, reset, backlog = topic.begin(wanted)
        positions.append(position)
        missed = missed or reset or bool(last_event_id and not wanted)
    return positions, missed, backlog
