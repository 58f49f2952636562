"""What nodes tell each other of their clients: how many listen to which topic, and orders to end some of them.

Each node keeps a hash of its own with the number of its clients by topic, which expires with the node; once a second it
sends what has changed. Orders are a short stream, and news on a channel. The reader's thread runs all of it, but for
what says otherwise.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pushdemo.redis.connection import Call, Fields, Link
from pushdemo.redis.scripts import COUNT_LISTENERS, FORMAT, LISTENERS, ORDER, ORDERS
from pushdemo.redis.topic import RedisTopic

EXPIRY = 3.0  # seconds until the clients of a node that has died are counted no more
_REMEMBERED = 300.0  # seconds that an order stays at Redis, for nodes whose connection was lost meanwhile


class Presence:
    """How many clients this node has, for the others, and they for it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._id = uuid.uuid4().hex
        self._tell = link.script(LISTENERS, writes=False)
        self._count = link.script(COUNT_LISTENERS, writes=False)
        self._told: dict[str, int] = {}  # topic -> clients, as Redis has it; the reader's thread's

    @property
    def node(self) -> str:
        """This process, which may have been forked from another."""
        return f"{self._id}-{os.getpid()}"

    def turn(self, followers: Sequence[object]) -> None:
        """Send what has changed since the last turn. Raises RedisUnavailableError."""
        counts = {each.name: each.clients for each in followers if isinstance(each, RedisTopic) and each.clients > 0}
        if not counts and not self._told:
            return
        if not self._told or not self._send("changes", _changes(self._told, counts)):
            self._send("all", counts)  # Redis knows nothing of this node yet, or any more
        self._told = counts

    def _send(self, what: str, clients: dict[str, int]) -> bool:
        words = [word for name, count in clients.items() for word in (name, count)]
        keys = [self._nodes, self._key(self.node)]
        return bool(self._tell(keys, [self.node, round(EXPIRY * 1000), what, *words]))

    def count(self, topic: str, here: int) -> int:
        """Return the clients of a topic on all nodes, `here` of them in this process. Any thread.

        Raises RedisUnavailableError.
        """
        return here + int(self._count([self._nodes], [topic, self.node, self._key("")]))

    @property
    def _nodes(self) -> str:
        return self._link.key(FORMAT, "nodes")

    def _key(self, node: str) -> str:
        return self._link.key(FORMAT, "listeners", node)


def _changes(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What is to be said so that `before` becomes `after`; 0 for a topic without clients."""
    changed = {name: count for name, count in after.items() if before.get(name) != count}
    return changed | dict.fromkeys(before.keys() - after.keys(), 0)


class Orders:
    """The orders of other nodes to end clients. A Follower, see redis/reader.py."""

    wanted = True

    def __init__(self, link: Link, node: Callable[[], str]) -> None:
        self.channel = link.news(FORMAT, "orders")
        self.current = False
        self.end: Callable[[str | None, str | None], None] = lambda owner, topic: None
        self._key = link.key(FORMAT, "orders")
        self._node = node
        self._order = link.script(ORDER, publishes=True)
        self._orders = link.script(ORDERS, writes=False)
        self._last: bytes | None = None  # the id of the newest order that is known here

    def give(self, owner: str | None, topic: str | None) -> None:
        """Have the other nodes end clients. Any thread; raises RedisUnavailableError."""
        text = json.dumps([owner, topic])
        self._order([self._key], [text, self._node(), self.channel, round(_REMEMBERED * 1000)])

    def absorb(self, news: Fields) -> bool:
        """See Follower."""
        if self._last is None or news[b"p"] != self._last:
            return False
        self._take(news[b"i"], news[b"w"], news[b"b"])
        return True

    def look(self) -> Call:
        """See Follower."""
        return self._orders.with_([self._key], [self._last or b""])

    def take_over(self, call: Call, answer: Any) -> None:
        """See Follower. What was ordered before this node began concerns none of its clients."""
        begins = self._last is None
        newest, *orders = answer
        for id, node, text in zip(orders[::3], orders[1::3], orders[2::3], strict=True):
            if not begins:
                self._take(id, node, text)
        self._last = newest

    def tell(self) -> None:
        """See Follower. Nobody waits for orders."""

    def cut_off(self, cut: bool) -> None:
        """See Follower. Nobody waits for orders."""

    def _take(self, id: bytes, node: bytes, text: bytes) -> None:
        self._last = id
        if node.decode() == self._node():
            return
        owner, topic = json.loads(text)
        self.end(owner, topic)
