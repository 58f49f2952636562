"""aiohttp + uvloop with a queue a client, what one would write where each client has a topic of its own.

usage: aiohttp_queues.py PORT RATE CLIENTS. `/stream/7` is client 7's; `/pair/7` brings it what all are told as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import defaultdict, deque

import uvloop
from aiohttp import web
from message import body, turns

HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
HISTORY = 10


class Topic:
    def __init__(self) -> None:
        self.number = 0
        self.history: deque[bytes] = deque(maxlen=HISTORY)
        self.queues: set[asyncio.Queue[bytes]] = set()

    def publish(self) -> None:
        self.number += 1
        data = f"id: 5e4d10c0-{self.number}\ndata: {body()}\n\n".encode()
        self.history.append(data)
        for queue in self.queues:
            queue.put_nowait(data)


topics: defaultdict[str, Topic] = defaultdict(Topic)


async def publish(names: list[str], rate: float) -> None:
    at = 0
    for pause, count in turns(rate):
        await asyncio.sleep(pause)
        for _ in range(count):
            topics[names[at]].publish()
            at = (at + 1) % len(names)


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(request)
    await response.write(b":\n\n")
    queue: asyncio.Queue[bytes] = asyncio.Queue(HISTORY)
    own = request.match_info.get("client", "all")
    names = {own, "all"} if request.path.startswith("/pair") else {own}
    for name in names:
        topics[name].queues.add(queue)
    try:
        while True:
            await response.write(await queue.get())
    finally:
        for name in names:
            topics[name].queues.discard(queue)


async def main(port: int, rate: float, clients: int, told: str) -> None:
    app = web.Application()
    app.add_routes([web.get("/stream", stream), web.get("/stream/{client}", stream), web.get("/pair/{client}", stream)])
    runner = web.AppRunner(app, access_log=None, handle_signals=True, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096, shutdown_timeout=1).start()
    await publish([str(number) for number in range(clients)] if told == "each" else ["all"], rate)


if __name__ == "__main__":
    with contextlib.suppress(web.GracefulExit):
        uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
