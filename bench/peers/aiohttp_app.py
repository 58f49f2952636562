"""aiohttp + uvloop: one coroutine a client holds the stream, one task writes each message to all of them.

usage: aiohttp_app.py PORT RATE. It also answers long polls, in the same JSON as pushdemo: each waits for an event that
all share.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop
from aiohttp import web
from message import body, pauses

HISTORY = 100
HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


class Feed:
    def __init__(self) -> None:
        self.number = 0
        self.bodies = [""] * HISTORY
        self.streams: set[web.StreamResponse] = set()
        self.changed = asyncio.Event()

    async def publish(self, rate: float) -> None:
        for pause in pauses(rate):
            await asyncio.sleep(pause)
            self.number += 1
            self.bodies[self.number % HISTORY] = text = body()
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()
            data = f"id: 5e4d10c0-{self.number}\ndata: {text}\n\n".encode()
            for stream in list(self.streams):
                try:
                    await stream.write(data)
                except ConnectionError:
                    self.streams.discard(stream)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("transport") == "longpoll":
            return await self.poll(request)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        await response.write(b":\n\n")
        self.streams.add(response)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.streams.discard(response)
        return response

    async def poll(self, request: web.Request) -> web.Response:
        last = int(request.query.get("last_event_id", self.number))
        while last == self.number:
            await self.changed.wait()
        messages = [
            {"id": str(number), "content": self.bodies[number % HISTORY]} for number in range(last + 1, self.number + 1)
        ]
        return web.json_response({"state": "ready", "messages": messages, "last_event_id": str(self.number)})


async def page(request: web.Request) -> web.Response:
    return web.Response(text="a plain page")


async def main(port: int, rate: float) -> None:
    feed, app = Feed(), web.Application()
    app.add_routes([web.get("/stream", feed.stream), web.get("/page", page)])
    runner = web.AppRunner(app, access_log=None, handle_signals=True, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096, shutdown_timeout=1).start()
    await feed.publish(rate)


if __name__ == "__main__":
    with contextlib.suppress(web.GracefulExit):
        uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
