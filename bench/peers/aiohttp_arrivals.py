"""The application of arrivals.py in aiohttp + uvloop: streams, long polls, a plain page, and `/publish`.

usage: aiohttp_arrivals.py PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop
from aiohttp import web

HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


class Feed:
    """The newest message, and who waits for the next."""

    def __init__(self) -> None:
        self.number = 1
        self.body = "the first"
        self.streams: set[web.StreamResponse] = set()
        self.changed = asyncio.Event()

    async def publish(self, request: web.Request) -> web.Response:
        self.number += 1
        self.body = request.query_string
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        for stream in list(self.streams):
            await stream.write(self.event())
        return web.Response(text=str(self.number))

    def event(self) -> bytes:
        return f"id: {self.number}\ndata: {self.body}\n\n".encode()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("transport") == "longpoll":
            return await self.poll(request)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        await response.write(self.event())
        self.streams.add(response)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.streams.discard(response)
        return response

    async def poll(self, request: web.Request) -> web.Response:
        last = request.query.get("last_event_id", "")
        while last == str(self.number):
            await self.changed.wait()
        messages = [{"id": str(self.number), "content": self.body}]
        return web.json_response({"state": "ready", "messages": messages, "last_event_id": str(self.number)})


async def page(_request: web.Request) -> web.Response:
    return web.Response(text="a plain page")


async def main(port: int) -> None:
    feed, app = Feed(), web.Application()
    app.add_routes([web.get("/stream", feed.stream), web.get("/page", page), web.get("/publish", feed.publish)])
    runner = web.AppRunner(app, access_log=None, handle_signals=True, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096, shutdown_timeout=1).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(web.GracefulExit):
        uvloop.run(main(int(sys.argv[1])))
