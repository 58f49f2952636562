"""A topic: a named series of messages that all its clients share. It numbers them and keeps a short, bounded history.

No client is known here but as a count: a client is a cursor (a position) that it keeps itself. What makes the messages
is a producer's (topics/producer.py) or a publisher's. Any thread may call anything; `changed` guards the state, and the
history is also read without it, as `following` says.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pushdemo.forking import call_in_child
from pushdemo.topics import content
from pushdemo.topics.message import Kind, Message

log = logging.getLogger("pushdemo")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


# What an event source already calls its events (HTML section 9.2), and what the transports tell by one.
_EVENTS = frozenset({"open", "message", "error", "reset", "failing", "end"})

EARLIEST = "earliest"  # as a last event id: everything that the history holds


class Beginning(NamedTuple):
    """Where a client begins: behind `position`, after a reset or not, and with `backlog` before anything else."""

    position: int
    reset: bool = False
    backlog: tuple[Message, ...] = ()


class Source(Protocol):
    """What makes a topic's messages while someone listens; called under the topic's lock, so it must not block."""

    @property
    def fresh(self) -> bool:
        """Whether the newest message is what a new client should see: not old, with a new one about to be made."""

    def start(self) -> None:
        """The first client has come."""

    def stop(self) -> None:
        """The last client has gone."""

    def close(self) -> None:
        """The application stops: make nothing more."""


class Topic:
    """A named series of messages.

    `name` is up to 100 letters, digits, `_`, `.` or `-`. `history` is the number of entries kept. `content_type` is the
    type of every body. Raises ValueError for a name or a content type that will not do.
    """

    def __init__(
        self,
        name: str,
        *,
        content_type: str = content.XML,
        history: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a topic's name is up to 100 letters, digits, _, . or -: not {name!r}")
        if name in _EVENTS:
            raise ValueError(f"a topic cannot be named {name}: an event of that name has a meaning of its own")
        self.name = name
        self.content_type = content.check_type(content_type)
        self.clock = clock
        self.epoch = secrets.token_hex(4)  # the topic's life: a process started anew, or forked, is another one
        self.source: Source | None = None
        self.head = 0  # position of the newest entry; 0: none yet
        self.number = 0  # number of the newest message
        self.ended = False  # the source is finished; nothing comes any more
        self.closed = False  # the application stops
        self.clients = 0
        self._history: dict[int, Message] = {}  # position -> entry, the newest `kept` of them
        self.kept = history
        self._listeners: tuple[Callable[[Topic], None], ...] = ()
        self.changed = threading.Condition(threading.Lock())  # guards all of the above, the source's state too
        call_in_child(self._begin_in_child)

    def _begin_in_child(self) -> None:
        """In a forked process: begin another life, without the parent's clients.

        The parent and each child number messages on their own, so that an id of one must mean nothing to the others.
        """
        self.changed = threading.Condition(threading.Lock())
        self._listeners = ()
        self.clients = 0
        self.epoch = secrets.token_hex(4)
        self._history = {
            position: Message(
                position,
                entry.number,
                f"{self.epoch}-{entry.number}",
                entry.body,
                entry.content_type,
                kind=entry.kind,
                time=entry.time,
            )
            for position, entry in self._history.items()
        }

    # -- what publishers and sources do

    def publish(self, value: Any) -> Message:
        """Add a message with `value` as its content and tell everyone. Never waits for a client.

        Raises TypeError or ValueError where `value` cannot be a body of the topic's type (content.body says when), and
        RuntimeError once the topic has ended.
        """
        return self._append(content.body(self.content_type, value), "message")

    def notify(self, kind: Kind) -> None:
        """Tell every client "reset" or "failing", at this place in the order."""
        self._append(b"", kind)

    def end(self) -> None:
        """Nothing comes any more: every client gets what there is, and a clean end."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._tell()

    def close(self) -> None:
        """The application stops: the source too, and threads that wait here go on. Publishing is an error now."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            if self.source:
                self.source.close()
        self._tell()

    def _append(self, body: bytes, kind: Kind) -> Message:
        with self.changed:
            if self.ended or self.closed:
                raise RuntimeError(f"topic {self.name} has ended: nothing can be published to it")
            number = self.number + (kind == "message")
            id = f"{self.epoch}-{number}"
            message = Message(self.head + 1, number, id, body, self.content_type, kind=kind, time=self.clock())
            self._keep(message)
        self._tell()
        return message

    def _keep(self, message: Message) -> None:
        self._history[message.position] = message
        self._history.pop(message.position - self.kept, None)
        self.number = message.number
        self.head = message.position  # last: whoever reads it without the lock then finds the entry
        self.changed.notify_all()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self)

    # -- what clients do

    def join(self) -> None:
        """One client more; the first starts the source."""
        with self.changed:
            self.clients += 1
            if self.clients == 1 and self.source and not self.ended:
                self.source.start()

    def leave(self) -> None:
        """One client less; the last stops the source."""
        with self.changed:
            self.clients -= 1
            if self.clients == 0 and self.source:
                self.source.stop()

    def listen(self, listener: Callable[[Topic], None]) -> None:
        """Call `listener(topic)` after every change, in the thread that made it; it must not block or raise."""
        with self.changed:
            self._listeners += (listener,)

    def unlisten(self, listener: Callable[[Topic], None]) -> None:
        """Undo `listen`."""
        with self.changed:
            self._listeners = tuple(known for known in self._listeners if known != listener)

    def following(self, position: int) -> tuple[Message | None, bool]:
        """The entry behind `position`, or None; and whether it is the newest since the history reaches no further back.

        The usual case takes no lock: an entry is in the table before `head` says so, and leaves it only when newer ones
        have come.
        """
        if position >= self.head:
            return None, False
        message = self._history.get(position + 1)
        if message is not None:
            return message, False
        with self.changed:
            message = self._history.get(position + 1)
            return (message, False) if message is not None else (self._history[self.head], True)

    def wait(self, position: int, timeout: float) -> bool:
        """Wait until there is something behind `position`, or nothing to wait for, at most `timeout` seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.head > position or self.ended or self.closed, timeout)

    def begin(self, last_event_id: str = "") -> Beginning:
        """Where a client begins that has everything up to `last_event_id`; a new one, without an id, at the newest."""
        if last_event_id == EARLIEST:
            return Beginning(self.oldest())
        located = self.locate(last_event_id) if last_event_id else None
        if located is not None:
            return Beginning(located)
        return Beginning(self.newest(), reset=bool(last_event_id))

    def locate(self, last_event_id: str) -> int | None:
        """The position of a client that has everything up to this id, or None where the history cannot tell.

        It cannot when the id is of another life of the topic, is not one at all, or lies before the history.
        """
        epoch, _, digits = last_event_id.rpartition("-")
        if epoch != self.epoch or not digits.isascii() or not digits.isdigit() or len(digits) > 20:
            return None  # int() refuses thousands of digits, and no topic comes as far as 20
        number = int(digits)
        with self.changed:
            if number > self.number:
                return None
            entries = list(self._history.values())
            known = [entry.position for entry in entries if entry.number <= number]
            if known:
                return max(known)
            if not entries:
                return self.head if number == self.number else None
            first = entries[0]  # a notice has the number of the message before it, which has left the history
            return first.position - 1 if first.number == number + 1 and first.kind == "message" else None

    def id_at(self, position: int) -> str:
        """The id that resumes behind `position`: that of the last message up to it."""
        with self.changed:
            entry = self._history.get(position)
            if entry:
                return entry.id
            first = next(iter(self._history.values()), None)
            if first is None or position >= first.position:
                return f"{self.epoch}-{self.number}"
            # The entry has left the history: as if all since had been messages, so that none is passed over silently.
            number = first.number - (first.kind == "message") - (first.position - 1 - position)
            return f"{self.epoch}-{max(0, number)}"

    def newest(self) -> int:
        """The position in front of the newest message, from where a new client starts.

        It is `head` where there is none, or where the source has slept and is about to make a fresh one; and in front
        of the news that the source fails, where it has never made any.
        """
        with self.changed:
            if self.source and not self.source.fresh and not self.ended:
                return self.head
            for entry in reversed(self._history.values()):
                if entry.kind == "message":
                    return entry.position - 1
            newest = self._history.get(self.head)
            return self.head - 1 if newest and newest.kind == "failing" and not self.ended else self.head

    def oldest(self) -> int:
        """The position in front of all that the history holds."""
        with self.changed:
            return min(self._history, default=self.head + 1) - 1
