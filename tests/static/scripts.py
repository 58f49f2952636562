"""What the tests' server says: whole requests' worth of answers, by name."""

from __future__ import annotations

import random

from tests.static.formats import STREAMS, Sent
from tests.static.wire import Exchange, Script

HARD = [
    Sent("e-1", "<message>a\n--3f9a0c\n\n--3f9a0c--\nid: e-7\n</message>"),
    Sent("e-2", "<message>Ὀδυσσεύς 𝄞 \u2028 &lt;b&gt;</message>"),
    Sent("e-3", {"list": [1, 2.5, None, "\r\n--3f9a0c\r\n"], "text": "é"}, topic="figures"),
    Sent("e-4", "<message/>"),
]


def says(transport: str, *parts: bytes, end: bool = True) -> Script:
    """Answers with a stream of these parts, and ends it or leaves it open."""
    form = STREAMS[transport]

    def script(exchange: Exchange) -> None:
        exchange.stream(form.content_type, form.opening, *parts)
        if end:
            exchange.end()
        else:
            exchange.until_gone()

    return script


def never(exchange: Exchange) -> None:
    raise AssertionError("asked again")


def refuses(status: int, reason: str = "", content_type: str = "text/plain", **headers: str) -> Script:
    return lambda exchange: exchange.answer(status, content_type, reason.encode(), **headers)


def answers(body: bytes) -> Script:
    return lambda exchange: exchange.answer(200, "application/json", body)


def hangs(exchange: Exchange) -> None:
    """Takes the request and says nothing: what a proxy looks like that collects the whole answer first."""
    exchange.until_gone()


def whole(transport: str) -> bytes:
    """A stream with everything in it that a stream can have."""
    form = STREAMS[transport]
    parts = [form.opening, form.heartbeat, form.message(HARD[0]), form.reset, form.heartbeat]
    parts += [*map(form.message, HARD[1:]), form.failing, form.end]
    return b"".join(parts)


def numbered(transport: str, count: int, chance: random.Random, broken: float) -> Script:
    """`count` messages from where the client is, on connections that stop at any byte; the end when it has all.

    The share `broken` of them stops with a reset rather than an end.
    """
    form = STREAMS[transport]
    preamble = form.opening + form.retry(1)
    begun: list[int] = []  # with what the clients had: after two streams without a message they would rest

    def script(exchange: Exchange) -> None:
        last = int(exchange.last_event_id.removeprefix("e-") or 0)
        sent = [Sent(f"e-{number}", f"<message>{number}</message>") for number in range(last + 1, count + 1)]
        messages = [*map(form.message, sent)]
        data = preamble + b"".join(messages) + form.end
        least = len(preamble) + (len(messages[0]) if messages and begun[-1:] == [last] else 0)
        begun.append(last)
        cut = len(data) if last == count else chance.randrange(least, 500)
        exchange.stream(form.content_type, data[:cut])
        if chance.random() < broken:
            exchange.drop()
        else:
            exchange.end()

    return script
