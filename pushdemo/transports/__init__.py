"""How a message travels to one client: one module a transport, bytes in and bytes out, no I/O, no state.

Each module of `STREAMS` offers what `StreamTransport` says; `longpoll` answers with whole responses instead. The body
of a message belongs to its topic, the framing belongs here. Any thread may call them.
"""

from __future__ import annotations

from pushdemo.topics.message import Message
from pushdemo.transports import jsonlines, longpoll, multipart, sse
from pushdemo.transports.base import Names, Notice, StreamTransport, Transport
from pushdemo.transports.framing import Frame, ending, whole

__all__ = ["STREAMS", "TRANSPORTS", "Format", "Names", "Notice", "StreamTransport", "Transport", "format_of"]

# In the order in which the server prefers them.
STREAMS: dict[str, StreamTransport] = {"multipart": multipart, "sse": sse, "jsonlines": jsonlines}
TRANSPORTS: dict[str, Transport] = {**STREAMS, "longpoll": longpoll}

_LARGE = 32_768  # bytes: of a larger body no form is kept that nobody is sent


class Format:
    """How the entries of a topic become the bytes of a group of clients: a transport, with names or not, and a framing.

    `format_of` makes one for each combination: a message keeps its bytes by it.
    """

    __slots__ = ("frame", "names", "transport")

    def __init__(self, transport: StreamTransport, names: Names, frame: Frame) -> None:
        self.transport = transport
        self.names = names
        self.frame = frame

    def encode(self, message: Message) -> bytes:
        """An entry, whatever its kind; made once, and kept with the message."""
        return message.encoded(self, self._encode)

    def notice(self, kind: Notice, after: str = "") -> bytes:
        """What `StreamTransport.notice` says, in a frame."""
        return self.frame(self.transport.notice(kind, after=after))

    def ending(self, data: bytes = b"") -> bytes:
        """`data` and the end of the response."""
        return ending(self.frame, data)

    def make(self, message: Message) -> bytes:
        """As `encode`, but made anew and not kept."""
        if message.kind == "message":
            return self.frame(self.transport.encode(message, self.names))
        return self.frame(self.transport.notice(message.kind, after=message.id))

    def _encode(self, message: Message) -> bytes:
        if self.frame is not whole:
            unframed = format_of(self.transport, self.names)
            return self.frame(unframed._encode(message) if len(message.body) > _LARGE else unframed.encode(message))
        return self.make(message)


_formats: dict[tuple[str, Names, Frame], Format] = {}  # any thread adds


def format_of(transport: StreamTransport, names: Names = "", frame: Frame = whole) -> Format:
    """The one format of this kind."""
    key = (transport.name, names, frame)
    return _formats.get(key) or _formats.setdefault(key, Format(transport, names, frame))
