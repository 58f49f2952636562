"""How the body of a streamed response is framed. Pure functions: bytes to bytes, bytes and bytes to bytes."""

from __future__ import annotations

from collections.abc import Callable

Frame = Callable[[bytes], bytes]


def chunk(data: bytes) -> bytes:
    """`data`, which is not empty, as one chunk of the chunked transfer coding (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(data: bytes) -> bytes:
    """`data` as it is: a response that ends with its connection has no framing (RFC 9112 section 6.3)."""
    return data


def ending(frame: Frame, data: bytes = b"") -> bytes:
    """`data` and the end of the response."""
    framed = frame(data) if data else b""  # an empty chunk would be the last one
    return framed + b"0\r\n\r\n" if frame is chunk else framed
