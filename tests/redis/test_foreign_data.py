"""What others have put into keys and onto channels, one at a time: that topic says so once, and everything goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from pushdemo.redis.topic import RedisTopic
from tests.redis.support import Node, RedisServer, entries, namespace, redis_server
from tests.support import wait_until

Spoil = Callable[[redis.Redis, RedisTopic], Any]

GARBAGE = [b"", b"garbage", b"\xff\xfe\0\r\n", b"1 ", b"-1", b"9" * 400, b"1" * 100_000]

TYPES: dict[str, Callable[[redis.Redis, str], Any]] = {
    "text": lambda client, key: client.set(key, b"garbage"),
    "number": lambda client, key: client.set(key, 7),
    "list": lambda client, key: client.rpush(key, "a"),
    "set": lambda client, key: client.sadd(key, "a"),
    "sorted set": lambda client, key: client.zadd(key, {"a": 1, b"\xff": 2**60}),
    "hash": lambda client, key: client.hset(key, mapping={"a": 1}),
    "stream": lambda client, key: client.xadd(key, {"a": "b"}),
}

ENTRIES: dict[str, dict[bytes, bytes]] = {
    "a stranger's": {b"hello": b"world"},
    "of a later version": {b"n": b"x1", b"p": b"", b"t": b"1", b"b": b"a", b"v": b"2"},
    "of an unknown kind": {b"n": b"x1", b"p": b"", b"t": b"1", b"b": b"a", b"v": b"1", b"k": b"colour"},
    "without a body": {b"n": b"x1", b"p": b"", b"t": b"1", b"v": b"1"},
    "with a time that is none": {b"n": b"x1", b"p": b"", b"t": b"soon", b"b": b"a", b"v": b"1"},
    "with a time of a thousand digits": {b"n": b"x1", b"p": b"", b"t": b"9" * 1000, b"b": b"a", b"v": b"1"},
    "that is no text": {b"n": b"x1", b"p": b"", b"t": b"1", b"b": b"\xff", b"v": b"1"},
    "with a line break in its event": {b"n": b"x1", b"p": b"", b"t": b"1", b"b": b"a", b"v": b"1", b"e": b"a\nb"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Pair:
    """Two nodes with two topics, of which the first is spoilt, and the second must go on."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client
        self.space = namespace()
        self.nodes = [self._node(server), self._node(server)]
        self.here, self.there = (node.topics["news"] for node in self.nodes)

    def _node(self, server: RedisServer) -> Node:
        node = Node(server.url, self.space)
        node.topic("news")
        node.topic("other")
        return node.start(listening=True)

    def goes_on(self) -> None:
        """Both topics bring messages to both nodes, and neither node is in trouble."""
        for name in ("other", "news"):
            here, there = (node.topics[name] for node in self.nodes)
            for text in ("x", "y"):
                here.publish(text)
                wait_until(lambda there=there, text=text: entries(there)[-1:] == [text], what=f"{text} of {name}")  # type: ignore[misc]
                assert entries(here)[-1:] == [text]
        assert not any(node.backend.trouble for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def pair(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr("pushdemo.redis.reader.LOOK", 0.1)
    pair = Pair(server)
    pair.here.publish("a")
    wait_until(lambda: pair.there.number == 1, what="the first message")
    yield pair
    pair.close()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("key", ["state", "stream", "clock", "changes", "deletions", "declared", "channels", "node"])
def test_a_key_of_another_type(pair: Pair, key: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    topic = pair.here
    name = {
        "state": topic.key,
        "stream": topic.stream,
        "clock": f"{{{pair.space}}}:1:clock",
        "changes": f"{{{pair.space}}}:1:changes",
        "deletions": f"{{{pair.space}}}:deletions",
        "declared": f"{{{pair.space}}}:1:declared:news",
        "channels": f"{{{pair.space}}}:1:channels",
        "node": f"{{{pair.space}}}:1:node:{pair.nodes[0].backend._leases.node}",
    }[key]
    pair.client.delete(name)
    TYPES[kind](pair.client, name)
    pair.goes_on()
    assert not [line for line in said(caplog) if "met an error" in line]


@pytest.mark.heavy
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda value: repr(value[:12]))
@pytest.mark.parametrize("field", ["epoch", "number", "notices", "nonce", "fence", "holder", "history", "lifetime"])
def test_a_field_of_the_state_that_is_garbage(
    pair: Pair, field: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pair.client.hset(pair.here.key, field, garbage)  # type: ignore[arg-type]
    pair.goes_on()
    assert not [line for line in said(caplog) if "met an error" in line]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_after_the_last_one(pair: Pair, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    pair.client.xadd(pair.here.stream, ENTRIES[entry])  # type: ignore[arg-type]
    pair.goes_on()
    assert not [line for line in said(caplog) if "met an error" in line]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_the_state_knows_of_is_passed_over_with_a_reset(
    pair: Pair, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a later version would have written it."""
    topic = pair.here
    before = pair.there.head
    pair.client.xadd(topic.stream, ENTRIES[entry], id="2-0")  # type: ignore[arg-type]
    pair.client.hset(topic.key, mapping={"number": 2, "nonce": "x1"})
    pair.nodes[0].topics["other"].publish("so that there is a change")
    topic.catch_up()
    pair.there.catch_up()
    pair.goes_on()
    assert entries(pair.there, before)[0] == "(reset)"
    lines = [line for line in said(caplog) if "passes over" in line]
    assert len(lines) <= 2, "once for each node"
    assert all("topic news passes over what it does not know" in line for line in lines)


NEWS = [
    *GARBAGE,
    b"1\n",
    b"1 n\nbody",
    b"1 n x p y t z i q l e\nbody",
    b"1 n x p  t 1 i 99-0 l nobody\nbody",
    b"2 whatever a later version says\nbody",
    b"1 k free\n",
    b"1 k taken l x f y h z\n",
    b"1 k gone\n\xff",
    b"1 n x p  t 9999999999999999999 i 1e9-5 l x\n",
]


@pytest.mark.heavy
@pytest.mark.parametrize("news", NEWS, ids=lambda value: repr(value[:24]))
@pytest.mark.parametrize("channel", ["topic", "nodes", "deletions"])
def test_garbage_on_a_channel(pair: Pair, channel: str, news: bytes, caplog: pytest.LogCaptureFixture) -> None:
    backend = pair.nodes[0].backend
    name = {"topic": pair.here.channel, "nodes": backend._leases.channel, "deletions": backend._deletions.channel}
    assert pair.client.publish(name[channel], news) == 2
    pair.goes_on()
    assert pair.here.epoch == pair.there.epoch
    assert "(reset)" not in entries(pair.there)
    assert not [line for line in said(caplog) if "met an error" in line]


@pytest.mark.parametrize("kind", TYPES)
def test_a_node_starts_whatever_is_there(tmp_path: Path, kind: str) -> None:
    with redis_server(tmp_path) as server:
        space = namespace()
        prefix = f"{{{space}}}"
        for name in ("1:topic:news", "1:stream:news", "1:clock", "1:changes", "deletions", "1:declared:news"):
            TYPES[kind](server.client, f"{prefix}:{name}")
        node = Node(server.url, space)
        topic = node.topic()
        node.start(listening=True)
        with suppress(ConnectionError):
            topic.publish("a")
        wait_until(lambda: entries(topic)[-1:] == ["a"], what="the message")
        assert not node.backend.trouble
