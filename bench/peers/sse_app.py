"""sse-starlette on uvicorn + uvloop: one EventSourceResponse a client. Rate: the environment's BENCH_RATE."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from message import event, pauses
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

HISTORY = 100


class Feed:
    """The last messages, encoded once, and the event that tells all clients of the next."""

    def __init__(self) -> None:
        self.number = 0
        self.events = [b""] * HISTORY
        self.changed = asyncio.Event()

    async def publish(self, rate: float) -> None:
        for pause in pauses(rate):
            await asyncio.sleep(pause)
            self.number += 1
            self.events[self.number % HISTORY] = event(self.number)
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()

    async def stream(self) -> AsyncIterator[bytes]:
        number = self.number
        yield b":\n\n"
        while True:
            while number == self.number:
                await self.changed.wait()
            number += 1
            yield self.events[number % HISTORY]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.feed = Feed()
    publishing = asyncio.create_task(app.state.feed.publish(float(os.environ["BENCH_RATE"])))
    yield
    publishing.cancel()


async def stream(request: Request) -> EventSourceResponse:
    return EventSourceResponse(request.app.state.feed.stream())


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("a plain page")


app = Starlette(routes=[Route("/stream", stream), Route("/page", page)], lifespan=lifespan)
