"""A topic: a named series of messages that all its clients share. It numbers them and keeps a short, bounded history.

No client is known here but as a count: a client is a cursor (a position) that it keeps itself. What makes the messages
is a producer (producer.py) or a publisher; a catalog (catalog.py) makes topics and forgets them. Any thread may call
anything; `lock` guards the state, and the history is also read without it, as `following` says.
"""

from __future__ import annotations

import secrets
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from pushdemo.forking import call_in_child
from pushdemo.topics import content
from pushdemo.topics.message import EntryKind, Message, event_id, parse_event_id
from pushdemo.topics.pattern import parse

_number = attrgetter("number")

EARLIEST = "earliest"  # as a last event id: everything that the history holds
LATEST = "latest"  # as a last event id: nothing but what comes from now on

_making = threading.Lock()  # held while a topic's condition is made, and for nothing else


class Beginning(NamedTuple):
    """Where a client begins: after `position`, after a reset or not, and with `backlog` before anything else."""

    position: int
    reset: bool = False
    backlog: tuple[Message, ...] = ()


class Prepared(NamedTuple):
    """A message that can be sent together with those of other topics: what `send` is given and answers for each."""

    send: Callable[[Sequence[Any]], list[Any]]
    call: Any
    finish: Callable[[Any], Message]


class MessageProducer(Protocol):
    """What makes a topic's messages while someone listens; called under the topic's lock, so it must not block."""

    @property
    def fresh(self) -> bool:
        """Whether the newest message is what a new client should see: not old, with a new one about to be made."""

    @property
    def has_room(self) -> bool:
        """Whether there is a thread for it."""

    def start(self) -> None:
        """The first client has come."""

    def start_again(self) -> None:
        """Go on, if the system had no thread left before; called now and then, without the lock."""

    def stop(self) -> None:
        """The last client has gone."""

    def close(self) -> None:
        """The application stops: make nothing more."""

    def begin_in_child(self) -> None:
        """In a forked process: the thread is the parent's, and so are the clients."""


class Topic:
    """A named series of messages.

    `name` is up to 100 letters, digits, `_`, `.` or `-`, or what a pattern has made. `history` is the number of entries
    kept, and `history_bytes` bounds their bodies, but for the newest. `content_type` is the type of every body. Raises
    ValueError for a name or a content type that will not do.
    """

    __slots__ = (
        "__weakref__",
        "_condition",
        "_history",
        "_listeners",
        "_size",
        "clients",
        "clock",
        "closed",
        "content_type",
        "encode",
        "ended",
        "epoch",
        "head",
        "kept",
        "kept_bytes",
        "lock",
        "name",
        "number",
        "on_clients",
        "pattern",
        "producer",
        "used",
        "values",
    )

    def __init__(
        self,
        name: str,
        *,
        content_type: str = content.XML,
        history: int = 100,
        history_bytes: int | None = None,
        pattern: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not pattern:
            parse(name)
        self.name = name
        self.pattern = pattern or name  # what is counted by, since names may be many and private
        self.content_type = content.check_type(content_type)
        self.encode: Callable[[str, Any], bytes] = content.body  # an application may have its own renderers
        self.clock = clock
        self.epoch = secrets.token_hex(4)  # the topic's life: a process started anew, or forked, is another one
        self.producer: MessageProducer | None = None
        self.head = 0  # position of the newest entry; 0: none yet
        self.number = 0  # number of the newest message
        self.ended = False  # the source is finished; nothing comes any more
        self.closed = False  # the application stops
        self.clients = 0
        self.kept = history
        self.kept_bytes = history_bytes
        self._history: list[Message] = []  # the newest entries, the oldest of them first, at consecutive positions
        self._size = 0  # bytes of the bodies in the history
        self._listeners: tuple[Callable[[Topic], None], ...] = ()
        # Guards all of the above, and the producer's state. Reentrant, since a garbage collection under it may close a
        # stream that nobody iterates any more.
        self.lock = threading.RLock()
        self._condition: threading.Condition | None = None  # made for the first thread that waits: it takes 1 KB
        # The catalog's, which alone sets them. The first is called without the lock when the first client has come or
        # the last one gone; `used` is when the topic was last of use; `values` are those of its pattern.
        self.on_clients: Callable[[Topic], None] | None = None
        self.used = 0.0
        self.values: tuple[tuple[str, str], ...] = ()

        if not pattern:  # else its catalog calls: one registration for all of its topics
            call_in_child(self.begin_in_child)

    def begin_in_child(self) -> None:
        """In a forked process: begin another life, without the parent's clients.

        The parent and each child number messages on their own, so that an id of one must mean nothing to the others.
        """
        self.lock = threading.RLock()
        self._condition = None
        self._listeners = ()
        self.clients = 0
        self.epoch = secrets.token_hex(4)
        self._history = [self._born_again(entry) for entry in self._history]
        if self.producer:
            self.producer.begin_in_child()

    def _born_again(self, entry: Message) -> Message:
        return Message(
            entry.position,
            entry.number,
            "",
            entry.body,
            entry.content_type,
            kind=entry.kind,
            time=entry.time,
            topic=entry.topic,
            event=entry.event,
            epoch=self.epoch,
        )

    @property
    def changed(self) -> threading.Condition:
        """The condition of `lock` that is notified after every change; to wait for one, or to lock."""
        if (condition := self._condition) is None:
            with _making:
                condition = self._condition = self._condition or threading.Condition(self.lock)
        return condition

    def notify_all(self) -> None:
        """Wake the threads that wait for a change; under the lock."""
        if self._condition:
            self._condition.notify_all()

    # -- what publishers and producers do

    def publish(self, value: Any, *, event: str = "") -> Message:
        """Add a message with `value` as its content and tell everyone. Never waits for a client.

        `event` is the event's name. Any thread may call it, but no signal handler: that may interrupt a `publish` of
        its own thread, whose lock it would wait for. A handler can set an event that a thread waits for. Raises
        TypeError or ValueError where `value` cannot be a body of the topic's type (content.body says when), ValueError
        for a name that no event can have, and RuntimeError once the topic has ended.
        """
        return self.publish_body(self.encode(self.content_type, value), event=event)

    def publish_body(self, body: bytes, *, event: str = "") -> Message:
        """As `publish`, of a value that is a body of the topic's type already."""
        return self._append(body, "message", content.check_event(event))

    def prepare(self, body: bytes, *, event: str = "") -> Prepared | None:
        """What publishes a body together with others; None where `publish_body` does it as well."""
        return None

    def notify(self, kind: EntryKind) -> None:
        """Tell every client "reset" or "failing", at this place in the order."""
        self._append(b"", kind)

    def end(self) -> None:
        """Nothing comes any more: every client gets what there is, and a clean end."""
        with self.lock:
            self.ended = True
            self.notify_all()
        self._tell()

    def close(self) -> None:
        """The application stops: the producer too, and threads that wait here go on. Publishing is an error now."""
        with self.lock:
            self.closed = True
            self.notify_all()
            if self.producer:
                self.producer.close()
        self._tell()

    def _append(self, body: bytes, kind: EntryKind, event: str = "") -> Message:
        with self.lock:
            if self.ended or self.closed:
                raise RuntimeError(f"topic {self.name} has ended: nothing can be published to it")
            position, number = self.head + 1, self.number + (1 if kind == "message" else 0)
            if number == position:
                number = position  # the same object: a history of large numbers takes half the memory for them
            message = Message(
                position,
                number,
                "",
                body,
                self.content_type,
                kind=kind,
                time=self.clock(),
                topic=self.name,
                epoch=self.epoch,
                event=event,
            )
            self._keep(message)
        self._tell()
        return message

    def _keep(self, message: Message) -> None:
        """Add an entry to the history, which forgets its oldest ones; under the lock."""
        self._history.append(message)
        self._size += len(message.body)
        while len(self._history) > self.kept or self._is_heavy():
            self._size -= len(self._history.pop(0).body)
        self.number = message.number
        self.head = message.position  # last: whoever reads it without the lock then finds the entry
        self.notify_all()

    def _is_heavy(self) -> bool:
        return self.kept_bytes is not None and self._size > self.kept_bytes and len(self._history) > 1

    def _entry(self, position: int) -> Message | None:
        """Return the entry at a position, or None; without the lock, None may also be said of one that there is."""
        entries = self._history
        try:
            index = position - entries[0].position
            entry = entries[index]
        except IndexError:
            return None
        return entry if entry.position == position else None

    def _newest_entry(self) -> Message | None:
        """The last entry of the history; also without the lock."""
        try:
            return self._history[-1]
        except IndexError:
            return None

    def _forget_history(self) -> None:
        """Have no entries any more; under the lock."""
        self._history.clear()
        self._size = 0

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self)

    # -- what clients do

    def join(self) -> None:
        """One client more; the first starts the producer."""
        with self.lock:
            self.clients += 1
            first = self.clients == 1
            if first and self.producer and not self.ended:
                self.producer.start()
        if first and self.on_clients:
            self.on_clients(self)

    def start_again(self) -> None:
        """Have the producer go on that the system had no thread for; whoever holds clients calls it now and then."""
        if self.producer:
            self.producer.start_again()

    def leave(self) -> None:
        """One client less; the last stops the producer."""
        with self.lock:
            self.clients -= 1
            last = self.clients == 0
            if last and self.producer:
                self.producer.stop()
        if last and self.on_clients:
            self.on_clients(self)

    def listen(self, listener: Callable[[Topic], None]) -> None:
        """Call `listener(topic)` after every change, in the thread that made it; it must not block or raise."""
        with self.lock:
            self._listeners += (listener,)

    def unlisten(self, listener: Callable[[Topic], None]) -> None:
        """Undo `listen`."""
        with self.lock:
            self._listeners = tuple(known for known in self._listeners if known != listener)

    def following(self, position: int) -> tuple[Message | None, bool]:
        """Return the next entry after `position`, or None, and whether older ones have left the history before it.

        In that case the entry is the newest. The usual case takes no lock: an entry is in the list before `head` says
        so, and an entry that another thread has just moved in the list is looked for again under the lock.
        """
        if position >= self.head:
            return None, False
        message = self._entry(position + 1)
        if message is not None:
            return message, False
        with self.lock:
            message = self._entry(position + 1)
            return (message, False) if message is not None else (self._history[-1], True)

    def reached(self) -> tuple[bool, int]:
        """Whether the topic has ended, and its newest position.

        Read in this order, without the lock: where it has ended, all that was said before is up to the position.
        """
        return self.ended, self.head

    def wait(self, position: int, timeout: float) -> bool:
        """Wait for an entry after `position` or for the end, at most `timeout` seconds; whether there is one."""
        with self.changed:
            return self.changed.wait_for(lambda: self.head > position or self.ended or self.closed, timeout)

    def begin(self, last_event_id: str = "") -> Beginning:
        """Where a client begins that has everything up to `last_event_id`; a new one, without an id, at the newest."""
        if last_event_id == EARLIEST:
            return Beginning(self.oldest())
        if last_event_id == LATEST:
            return Beginning(self.head)
        located = self.locate(last_event_id) if last_event_id else None
        if located is not None:
            return Beginning(located)
        return Beginning(self.newest(), reset=bool(last_event_id))

    def locate(self, last_event_id: str) -> int | None:
        """The position of a client that has everything up to this id, or None where the history cannot tell.

        It cannot when the id is of another life of the topic, is not one at all, or lies before the history.
        """
        parsed = parse_event_id(last_event_id)
        if parsed is None or parsed[0] != self.epoch:
            return None
        number = parsed[1]
        if (newest := self._newest_entry()) is not None and newest.number == number:
            return newest.position  # without the lock: mostly they come back with the newest, and many at once
        with self.lock:
            if number > self.number:
                return None
            entries = self._history
            known = bisect_right(entries, number, key=_number)  # so many have numbers up to this one
            if known:
                return entries[known - 1].position
            if not entries:
                return self.head if number == self.number else None
            first = entries[0]  # a notice has the number of the message before it, which has left the history
            return first.position - 1 if first.number == number + 1 and first.kind == "message" else None

    def id_at(self, position: int) -> str:
        """The id that resumes after `position`: that of the last message up to it."""
        with self.lock:
            entry = self._entry(position)
            if entry:
                return entry.id
            first = self._history[0] if self._history else None
            if first is None or position >= first.position:
                return event_id(self.epoch, self.number)
            # The entry has left the history: as if all since had been messages, so that none is passed over silently.
            number = first.number - (1 if first.kind == "message" else 0) - (first.position - 1 - position)
            return event_id(self.epoch, max(0, number))

    def newest_id(self, before: float) -> str:
        """The id of the newest message that was there at a moment, by `clock`; at the latest the newest of all."""
        with self.lock:
            position = self.head
            for entry in reversed(self._history):
                if entry.time < before:
                    break
                position = entry.position - 1
        return self.id_at(position)

    def newest(self) -> int:
        """The position before the newest message, from where a new client starts.

        It is `head` where there is none, or where the producer has slept and is about to make a fresh one; and before
        the notice that the source fails, where it has never made any.
        """
        with self.lock:
            if self.producer and not self.producer.fresh and not self.ended:
                return self.head
            for entry in reversed(self._history):
                if entry.kind == "message":
                    return entry.position - 1
            newest = self._entry(self.head)
            return self.head - 1 if newest and newest.kind == "failing" and not self.ended else self.head

    def oldest(self) -> int:
        """The position before all that the history holds."""
        with self.lock:
            return self._history[0].position - 1 if self._history else self.head
