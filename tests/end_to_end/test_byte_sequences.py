"""Sequences of bytes that servers have been led astray with, sent to waitress as it is and to ours, side by side.

Both have the same application. Each sequence is sent at once, and again byte by byte; what comes back must be the same
but for the Date and the differences that are meant (`meant`).
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import waitress.server
from waitress import wasyncore

from pushdemo.server import Server
from tests.support import PATIENCE, port_of

HOST = b"Host: localhost\r\n"
GET = b"GET /first HTTP/1.1\r\n" + HOST


def post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST /first HTTP/" + version, b"Host: localhost", *headers, b"", b""]) + body


SECOND = b"GET /second HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"

SEQUENCES: dict[str, bytes] = {
    "one": GET + b"\r\n",
    "two": GET + b"\r\n" + SECOND,
    "many": (GET + b"\r\n") * 20 + SECOND,
    "head": b"HEAD /first HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "head, no length": b"HEAD /chunks HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "old": b"GET /first HTTP/1.0\r\n\r\n" + SECOND,
    "old, kept": b"GET /first HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + SECOND,
    "oldest": b"GET /first\r\n\r\n" + SECOND,
    "version 2": b"GET /first HTTP/2.0\r\n" + HOST + b"\r\n" + SECOND,
    "version, odd": b"GET /first HTTP/1.x\r\n" + HOST + b"\r\n" + SECOND,
    "no host": b"GET /first HTTP/1.1\r\n\r\n" + SECOND,
    "two hosts": GET + b"Host: other\r\n\r\n" + SECOND,
    "blank lines before": b"\r\n\r\n\r\n" + GET + b"\r\n" + SECOND,
    "line feeds alone": b"GET /first HTTP/1.1\nHost: localhost\n\n" + SECOND,
    "carriage returns alone": b"GET /first HTTP/1.1\rHost: localhost\r\r" + SECOND,
    "space before colon": GET + b"X-Own : a\r\n\r\n" + SECOND,
    "space in name": GET + b"X Own: a\r\n\r\n" + SECOND,
    "folded": GET + b"X-Own: a\r\n b\r\n\r\n" + SECOND,
    "no colon": GET + b"nothing\r\n\r\n" + SECOND,
    "null in value": GET + b"X-Own: a\x00b\r\n\r\n" + SECOND,
    "null in name": GET + b"X-\x00Own: a\r\n\r\n" + SECOND,
    "carriage return in value": GET + b"X-Own: a\rb\r\n\r\n" + SECOND,
    "high bytes": GET + b"X-Own: \xff\xfe\r\n\r\n" + SECOND,
    "underscore": GET + b"X_Own: a\r\nX-Own: b\r\n\r\n" + SECOND,
    "length": post(b"Content-Length: 5", body=b"hello") + SECOND,
    "length, plus": post(b"Content-Length: +5", body=b"hello") + SECOND,
    "length, minus": post(b"Content-Length: -5", body=b"hello") + SECOND,
    "length, hexadecimal": post(b"Content-Length: 0x5", body=b"hello") + SECOND,
    "length, underscore": post(b"Content-Length: 0_5", body=b"hello") + SECOND,
    "length, two": post(b"Content-Length: 5, 5", body=b"hello") + SECOND,
    "length, twice": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!") + SECOND,
    "length, huge": post(b"Content-Length: 99999999999999999999", body=b"hello") + SECOND,
    "length, arabic": post(b"Content-Length: \xd9\xa5", body=b"hello") + SECOND,
    "length, empty": post(b"Content-Length: ", body=b"") + SECOND,
    "chunks": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"5\r\nhello\r\n0\r\n\r\n")
    + SECOND,
    "chunks, old": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n", version=b"1.0") + SECOND,
    "chunks, extension": post(b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks, extension with line feed": post(b"Transfer-Encoding: chunked", body=b"5;a\nb\r\nhello\r\n0\r\n\r\n")
    + SECOND,
    "chunks, trailer": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\nX-Own: a\r\n\r\n") + SECOND,
    "chunks, plus": post(b"Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks, 0x": post(b"Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks, minus": post(b"Transfer-Encoding: chunked", body=b"-5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks, too long": post(b"Transfer-Encoding: chunked", body=b"4\r\nhello\r\n0\r\n\r\n") + SECOND,
    "chunks, line feeds": post(b"Transfer-Encoding: chunked", body=b"5\nhello\n0\n\n") + SECOND,
    "encoding, space": post(b"Transfer-Encoding: chunked ", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "encoding, tab": post(b"Transfer-Encoding:\tchunked", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "encoding, vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "encoding, odd": post(b"Transfer-Encoding: xchunked", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "encoding, gzip": post(b"Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n") + SECOND,
    "encoding, twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n") + SECOND,
    "expects": post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello") + SECOND,
    "expects nothing": GET + b"Expect: 100-continue\r\n\r\n" + SECOND,
    "absolute address": b"GET http://localhost/first HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "slashes": b"GET //first//x HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "connect": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "lower case": b"get /first HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "fragment": b"GET /first#x HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "spaces": b"GET  /first  HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SECOND,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n" + SECOND,
    "headers without end": GET + b"X-Own: " + b"a" * 300_000 + b"\r\n\r\n" + SECOND,
    "many headers": GET + b"X-Own: a\r\n" * 500 + b"\r\n" + SECOND,
    "no body for 204": b"GET /empty HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "a body for 304": b"GET /body304 HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "too few bytes": b"GET /few HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "too many bytes": b"GET /more HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "an error": b"GET /fails HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "an error after the headers": b"GET /breaks HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
    "no length": b"GET /chunks HTTP/1.1\r\n" + HOST + b"\r\n" + SECOND,
}


def meant(name: str, stock: bytes) -> bytes:
    """What ours is to say where waitress says `stock`: the differences that are meant."""
    # waitress ends a body without a length behind the headers of a HEAD too (RFC 9110 section 9.3.2).
    return stock.removesuffix(b"0\r\n\r\n") if name == "head, no length" else stock


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """Says what it has been asked."""
    path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
    own = sorted((name, value) for name, value in environ.items() if name.startswith("HTTP_"))
    text = repr((environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], path, environ["QUERY_STRING"], own, body)).encode()
    plain = ("Content-Type", "text/plain")
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/body304":
        start_response("304 Not Modified", [])
        return [b"must not be there"]
    if path == "/few":
        start_response("200 OK", [plain, ("Content-Length", "100")])
        return [b"few"]
    if path == "/more":
        start_response("200 OK", [plain, ("Content-Length", "3")])
        return [b"more", b"and more"]
    if path == "/fails":
        raise ValueError("on purpose")
    if path in ("/breaks", "/chunks"):
        return _pieces(path, start_response, plain)
    start_response("200 OK", [plain, ("Content-Length", str(len(text)))])
    return [text]


def _pieces(path: str, start_response: Any, header: tuple[str, str]) -> Iterator[bytes]:
    start_response("200 OK", [header])
    yield b"one"
    if path == "/breaks":
        raise ValueError("on purpose")
    yield b""
    yield b"two"


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """Those of waitress as it is, and of ours."""
    map: dict[int, Any] = {}
    stock = waitress.server.create_server(app, map=map, listen="127.0.0.1:0", asyncore_use_poll=True)
    ours = Server(app, listen="127.0.0.1:0")
    over = threading.Event()

    def run_stock() -> None:
        while not over.is_set():
            wasyncore.poll2(0.1, map)

    threads = [threading.Thread(target=run_stock), threading.Thread(target=ours.run)]
    for thread in threads:
        thread.start()
    yield int(stock.effective_port), port_of(ours)
    over.set()
    ours.stop()
    for thread in threads:
        thread.join(PATIENCE)
    stock.task_dispatcher.shutdown()
    wasyncore.close_all(map)


def said_to(port: int, data: bytes, *, slowly: bool) -> bytes:
    """All that comes back to `data`, until the end of the connection or for as long as it is quiet."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):  # it has heard enough; what it has said is still to be read
            for piece in [data[n : n + 1] for n in range(len(data))] if slowly else [data]:
                sock.sendall(piece)
        sock.settimeout(0.4)
        try:
            while piece := sock.recv(65_536):
                said += piece
        except TimeoutError:
            said += b"(and it waits)"
        except ConnectionError:  # there was more to read than it wanted to
            pass
    return re.sub(rb"Date: [^\r]*", b"Date: -", said)


# Byte by byte some take too long. Of one, waitress reads what follows as headers of this request, from where it is when
# it says 100.
SLOWLY = [name for name, data in SEQUENCES.items() if len(data) <= 10_000 and name != "expects nothing"]


@pytest.mark.parametrize(
    ("name", "slowly"),
    [(name, False) for name in SEQUENCES]
    + [pytest.param(name, True, marks=pytest.mark.heavy, id=f"{name}-slowly") for name in SLOWLY],
)
def test_ours_says_what_waitress_says(
    ports: tuple[int, int], name: str, slowly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stock, ours = (said_to(port, SEQUENCES[name], slowly=slowly) for port in ports)
    assert ours == meant(name, stock)
