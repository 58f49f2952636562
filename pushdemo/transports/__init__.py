"""How a message travels to one client: one module a transport, bytes in and bytes out, no I/O, no state.

Each module of `STREAMS` offers what `StreamTransport` says; `longpoll` answers with whole responses instead. The body
of a message belongs to its topic, the framing belongs here. Any thread may call them.
"""

from __future__ import annotations

from pushdemo.topics.message import Message
from pushdemo.transports import jsonlines, longpoll, multipart, sse
from pushdemo.transports.base import Notice, StreamTransport, Transport

__all__ = ["STREAMS", "TRANSPORTS", "Notice", "StreamTransport", "Transport", "encode"]

# In the order in which the server prefers them.
STREAMS: dict[str, StreamTransport] = {"multipart": multipart, "sse": sse, "jsonlines": jsonlines}
TRANSPORTS: dict[str, Transport] = {**STREAMS, "longpoll": longpoll}


def encode(transport: StreamTransport, message: Message) -> bytes:
    """The entry `message` as `transport` writes it, whatever its kind; made once and kept with the message."""
    return message.encoded(transport.name, lambda entry: _encode(transport, entry))


def _encode(transport: StreamTransport, message: Message) -> bytes:
    return transport.encode(message) if message.kind == "message" else transport.notice(message.kind, after=message.id)
