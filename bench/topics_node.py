"""A node of the bench of many topics: it obeys the lines on its standard input, and answers each with one of JSON.

    listen N      be a client of topics 0 to N - 1
    source N S    be a client of topics 0 to N - 1, each with a source that makes a message every S seconds
    publish A B R T  publish R messages a second to topics A to B - 1 in turn, for T seconds
    begin         forget what has been measured so far
    figures       seconds of CPU, messages, how late they were (p50, p99, most, in ms), leases held and lost

A message is the time when it was published; one of a source that when it was made. "late" of a source's message is how
much longer than S after the one before it came.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from pushdemo.redis.backend import RedisBackend
from pushdemo.redis.topic import RedisTopic
from pushdemo.topics.pool import SourcePool
from pushdemo.topics.topic import Topic

SIZE = 1024  # bytes of a message


class Node:
    def __init__(self, url: str) -> None:
        self.backend = RedisBackend(url, "bench", pool=SourcePool(8, 100))
        self.backend.start([])
        self.interval = 0.0
        self.late: list[float] = []
        self.came: dict[str, float] = {}
        self.positions: dict[str, int] = {}
        self.topics: dict[int, RedisTopic] = {}
        self.began = time.process_time()

    def topic(self, number: int) -> RedisTopic:
        if number not in self.topics:
            name = f"bench.~{number}"
            self.topics[number] = self.backend.topic(
                name, content_type="text/plain", history=10, lifetime=3600, pattern="bench.{n}"
            )
        return self.topics[number]

    def listen(self, count: str) -> None:
        for number in range(int(count)):
            topic = self.topic(number)
            topic.begin()
            self.positions[topic.name] = topic.head
            topic.listen(self._came)
            topic.join()

    def source(self, count: str, seconds: str) -> None:
        self.interval = float(seconds)
        for number in range(int(count)):
            self.topic(number).producer = self.backend.producer(
                self.topic(number), lambda: f"{time.time()}", self.interval, around=self._around, spread=True
            )
        self.listen(count)

    def _around(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def _came(self, topic: Topic) -> None:
        while True:
            message, _ = topic.following(self.positions[topic.name])
            if message is None:
                return
            self.positions[topic.name] = message.position
            if message.kind != "message":
                continue
            now = time.time()
            if self.interval:
                before = self.came.get(topic.name)
                self.came[topic.name] = now
                if before is not None:
                    self.late.append(max(0.0, now - before - self.interval))
            else:
                self.late.append(now - float(message.body.split()[0]))

    def publish(self, first: str, end: str, rate: str, seconds: str) -> None:
        topics = [self.topic(number) for number in range(int(first), int(end))]
        threads = 4
        until = time.monotonic() + float(seconds)

        def run(offset: int) -> None:
            due, turn = time.monotonic() + offset / float(rate), offset
            while due < until:
                time.sleep(max(0.0, due - time.monotonic()))
                topics[turn % len(topics)].publish(f"{time.time()} ".ljust(SIZE, "x"))
                turn += threads
                due += threads / float(rate)

        for offset in range(threads):
            threading.Thread(target=run, args=(offset,), daemon=True).start()

    def begin(self) -> None:
        self.late = []
        self.came = {}
        self.began = time.process_time()

    def figures(self) -> dict[str, Any]:
        late = sorted(self.late) or [0.0]
        return {
            "cpu": time.process_time() - self.began,
            "messages": len(self.late),
            "p50": late[len(late) // 2] * 1000,
            "p99": late[int(len(late) * 0.99)] * 1000,
            "most": late[-1] * 1000,
            "held": self.backend._leases.held,
            "lost": self.backend._leases.lost,
            "trouble": self.backend.trouble,
            "current": sum(topic.current for topic in self.topics.values()),
        }


def main() -> None:
    node = Node(sys.argv[1])
    for line in sys.stdin:
        command, *words = line.split()
        print(json.dumps(getattr(node, command)(*words)), flush=True)


if __name__ == "__main__":
    main()
