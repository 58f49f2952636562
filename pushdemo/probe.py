"""One subscription over the network, made as a browser makes it, and when what of it came. For `pushdemo-check`.

Judges nothing: check.py does. Standard library alone. Each probe has a thread of its own, which alone writes its
attributes; any thread reads them.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
import zlib
from contextlib import closing, suppress
from urllib.parse import SplitResult, urljoin, urlsplit

TIMEOUT = 10.0  # seconds for a connection, and for the answer to HEAD
_REDIRECTS = 5
_TAIL = 400  # bytes in which the last words of a stream are looked for

# A browser asks for these over TLS, and a proxy may compress by any of them. The last two cannot be read here.
_HEADERS = {
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cache-Control": "no-cache",
    "User-Agent": "Mozilla/5.0 (pushdemo-check)",
}
# At the beginning of a line; and how these transports say that the server itself ends the stream.
_MESSAGES = {"multipart": rb"X-Message-Id: ", "sse": rb"id: ", "jsonlines": rb'\{"id": '}
_LAST_WORDS = {
    "multipart": rb"(?:--\w+--\r$|X-Retry: )",
    "sse": rb"(?:event: end$|retry: )",
    "jsonlines": rb'\{"state": "(?:done|waiting)"',
}


def head(url: str, accept: str, headers: dict[str, str]) -> tuple[str, http.client.HTTPResponse]:
    """What HEAD says, and the address that redirections led to.

    Raises OSError or http.client.HTTPException where nobody answers, ValueError for an address that will not do.
    """
    for _ in range(_REDIRECTS):
        parts = urlsplit(url)
        connection = _connect(parts)
        with closing(connection):
            connection.request("HEAD", _target(parts), headers={**_HEADERS, "Accept": accept, **headers})
            response = connection.getresponse()
            response.close()
        location = response.headers["Location"]
        if response.status not in (301, 302, 303, 307, 308) or not location:
            return url, response
        url = urljoin(url, location)
    raise ValueError(f"{url}: more than {_REDIRECTS} redirections")


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{parts.geturl()}: must be the http:// or https:// address of a stream")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
    connection.connect()
    return connection


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class Probe:
    """A subscription to `url` by the transport whose media type is `accept`; `start` it, and `stop` it."""

    def __init__(self, name: str, url: str, accept: str, headers: dict[str, str]) -> None:
        self.name = name
        self.status = 0  # of the response; 0 while there is none
        self.encoding = ""  # Content-Encoding
        self.started = self.last = time.monotonic()  # when it was asked, and when the last byte came
        self.first: float | None = None  # seconds from there to the first byte of the body
        self.messages = 0
        self.silence = 0.0  # seconds, the longest between two arrivals
        self.ended: float | None = None  # seconds from the start to the end of the response
        self.clean = False  # the server has said that it ends the stream
        self.error = ""
        self._url = url
        self._headers = {**_HEADERS, "Accept": accept, **headers}
        self._socket: socket.socket | None = None
        self._stopping = False  # set by the thread that stops it, once
        self._thread = threading.Thread(target=self._run, name=f"probe-{name}", daemon=True)

    def start(self) -> None:
        """Ask, and listen from now on."""
        self.started = self.last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Leave, as a browser does whose page is closed."""
        self._stopping = True
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)

    def quiet(self) -> float:
        """Seconds from the last byte, or from the request where there was none, to now or to the end."""
        return time.monotonic() - self.last if self.ended is None else self.started + self.ended - self.last

    # -- the probe's own thread

    def _run(self) -> None:
        error = ""
        try:
            with closing(_connect(urlsplit(self._url))) as connection, closing(self._ask(connection)) as response:
                if response.status == 200:
                    self._listen(response)
                else:
                    error = f"{response.status} {response.reason}"
        except http.client.IncompleteRead:
            pass  # the end of the response, and of no use in words
        except (OSError, ValueError, http.client.HTTPException, zlib.error) as failure:
            error = str(failure) or type(failure).__name__
        if not self._stopping:  # else it is our own end
            self.error = error
            self.ended = time.monotonic() - self.started

    def _ask(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        self._socket = connection.sock
        connection.sock.settimeout(None)
        connection.request("GET", _target(urlsplit(self._url)), headers=self._headers)
        response = connection.getresponse()
        self.status = response.status
        self.encoding = response.headers.get("Content-Encoding", "").replace("identity", "")
        return response

    def _listen(self, response: http.client.HTTPResponse) -> None:
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32) if self.encoding in ("gzip", "deflate") else None
        message, last_words = (re.compile(b"^" + known[self.name], re.M) for known in (_MESSAGES, _LAST_WORDS))
        rest = tail = b""  # a line under way, and the last whole ones
        while data := response.read1(65_536):
            text = decoder.decompress(data) if decoder else data
            if not text:
                continue  # the header of a compressed body, of which nothing can be read yet
            now = time.monotonic()
            if self.first is None:
                self.first = now - self.started
            self.silence = max(self.silence, now - self.last)
            self.last = now
            lines, newline, rest = (rest + text).rpartition(b"\n")
            lines += newline
            self.messages += len(message.findall(lines))
            tail = (tail + lines)[-_TAIL:]
            self.clean = bool(last_words.search(tail))
