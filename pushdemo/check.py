"""`pushdemo-check URL`: what the way from the server to a client does to a stream.

The command asks with HEAD which transports the address offers, subscribes to each of them as a browser does, and
concludes from what came and when. Standard library alone; imports nothing of the package. Exit status: 0 nothing found,
1 something found, 2 nothing could be asked.

The server is not trusted. One deadline ends everything, however slowly bytes drip; `_MOST_BYTES` bounds what is read
and unpacked; the headers that the user gives go to the first address's origin alone; and control characters that a
server sends are shown as text. Each subscription has a thread of its own, which alone writes the attributes of its
`Probe`; the main thread reads them.
"""

from __future__ import annotations

import argparse
import http.client
import re
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import NamedTuple, TextIO
from urllib.parse import SplitResult, urljoin, urlsplit

FINE, FOUND, UNASKED = 0, 1, 2

# The transports that are subscribed to, and one more that an address may insist on (`?transport=jsonlines`).
_ASKED = {"multipart": "multipart/x-mixed-replace", "sse": "text/event-stream"}
_STREAMS = {**_ASKED, "jsonlines": "application/x-ndjson"}

# How the lines of each transport begin that carry a message's id, and those by which the server itself ends a stream.
_MESSAGES = {"multipart": rb"X-Message-Id: ", "sse": rb"id: .+\n(?!\n)", "jsonlines": rb'\{"id": '}
_LAST_WORDS = {
    "multipart": rb"(?:--\w+--\r$|X-Retry: )",
    "sse": rb"(?:event: end$|retry: )",
    "jsonlines": rb'\{"state": "(?:done|waiting)"',
}

_PREAMBLE = re.compile(rb"\Aretry: \d+\n")  # each stream of events begins with it; later it is the last word
_TIMEOUT = 10.0  # seconds for a connection, and for the answers to HEAD
_REDIRECTS = 5
_TAIL = 400  # bytes at the end of a stream in which the last words are looked for
_LINE = 1_024  # bytes of a line that are kept while it grows: all that is looked for is shorter
_PIECE = 65_536  # bytes that are read, or unpacked, at a time
_MOST_BYTES = 64 * 1024 * 1024  # of one stream, read and unpacked: what has come until then says enough

_FIRST = 5.0  # seconds for the first byte, which the server writes at once
_QUIET = 1.5  # heartbeats without a byte, after which push.js too takes a stream for held back
_SLACK = 1.0  # seconds beside these: the server looks twice a second, and networks are not even
_IDLE = 0.3  # seconds; nothing cuts a connection that has been silent for less
_PROGRESS = 5.0  # seconds between two lines of progress
_STEP = 0.1  # seconds between two looks at the probes

# Browsers offer these encodings over TLS, and a proxy may compress by any of them; the last two are not unpacked here.
_HEADERS = {
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cache-Control": "no-cache",
    "User-Agent": "Mozilla/5.0 (pushdemo-check)",
}

_REMEDIES = {
    "buffers": {
        "nginx": "proxy_buffering off;  # and no proxy_ignore_headers X-Accel-Buffering\ngzip off;",
        "Caddy": "reverse_proxy ... {\n    flush_interval -1  # and no response_buffers\n}\n@others not path PATH\n"
        "encode @others zstd gzip  # it collects what it compresses",
        "HAProxy": "option http-no-delay  # and no http-response wait-for-body",
        "Apache": "ProxyPass / http://127.0.0.1:6543/ flushpackets=on\nSetEnvIf Request_URI ^PATH no-gzip=1",
    },
    "compresses": {
        "nginx": "gzip off;",
        "Caddy": "@others not path PATH\nencode @others zstd gzip",
        "HAProxy": "compression type text/html text/css text/javascript  # and not the type of the stream",
        "Apache": "SetEnvIf Request_URI ^PATH no-gzip=1",
    },
    "cuts": {
        "nginx": "proxy_read_timeout 1h;",
        "Caddy": "reverse_proxy ... {\n    transport http {\n        read_timeout 1h\n    }\n}",
        "HAProxy": "timeout server 1h\ntimeout client 1h",
        "Apache": "ProxyPass / http://127.0.0.1:6543/ timeout=3600",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, the process's own unless given; return its exit status."""
    options = _options(argv)
    deadline = time.monotonic() + options.seconds
    try:
        trust = ssl.create_default_context(cafile=options.cafile)
        if options.insecure:
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        way = Way(_origin(options.url), dict(options.header), trust, options.unix_socket)
        url, by, probes = _subscribe(options.url, way, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:
        _say(f"pushdemo-check: {options.url}: {str(error) or type(error).__name__}", file=sys.stderr)
        return UNASKED
    _say(f"{url} is answered by {by or 'a server that does not say its name'}")
    with suppress(KeyboardInterrupt):
        _listen(probes, options.seconds, deadline)
    for probe in probes:
        probe.stop()
        _say(_summary(probe))
    found = {probe.transport: judge(probe, options.heartbeat) for probe in probes}
    if any(found.values()):
        _report(found, probes, url, by)
        return FOUND
    if not any(probe.status == 200 for probe in probes):
        return UNASKED
    _say("Nothing on the way was seen to buffer, compress or cut the stream.")
    return FINE


def _say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines. What a server has sent may be among them: a terminal must not take it for orders."""
    for line in lines:
        shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        print(shown, file=file or sys.stdout, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pushdemo-check",
        description="Subscribe to a running site's stream as a browser would, and say whether something on the way "
        "buffers it, compresses it, or cuts quiet connections.",
        epilog="Exit status: 0 nothing found, 1 something found, 2 nothing could be asked.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="of a stream, such as https://example.org/server/index")
    why = "how long to ask and listen; 65, since proxies cut quiet connections after up to 60 unless told"
    add("--seconds", type=_seconds, default=65.0, help=why)
    add("--heartbeat", type=_seconds, default=15.0, help="the site's pushdemo.heartbeat; 15")
    what = (
        "a header to send, such as the cookie of someone who has logged in; as often as needed. It is sent to the "
        "scheme, host and port of URL, and nowhere else that URL redirects to"
    )
    add("-H", "--header", type=_header, action="append", default=[], metavar="'NAME: VALUE'", help=what)
    add("--cafile", metavar="FILE", help="certificates (PEM) that are trusted instead of the system's")
    add("--insecure", action="store_true", help="trust any certificate, such as a self-signed one")
    add("--unix-socket", metavar="PATH", help="connect to this socket; URL says host and path")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name.strip() and colon):
        raise ValueError
    return name.strip(), value.strip()


# -- asking


class Way(NamedTuple):
    """How the server is reached, and what it is told."""

    origin: tuple[str, str, int | None]  # of the address that the user gave
    own: dict[str, str]  # the user's headers, for that origin alone
    trust: ssl.SSLContext
    unix_socket: str | None = None  # a path; None: by TCP, to the host of the address

    def headers(self, url: str, accept: str) -> dict[str, str]:
        """Return the headers of a request for `url`."""
        return {**_HEADERS, "Accept": accept, **(self.own if _origin(url) == self.origin else {})}


def _subscribe(url: str, way: Way, deadline: float) -> tuple[str, str, list[Probe]]:
    """The address that answers, the name of its server, and a probe for each transport that it offers.

    Raises ValueError where there is no stream, OSError or http.client.HTTPException where nobody answers.
    """
    probes: dict[str, Probe] = {}
    by = refusal = ""
    for accept in _ASKED.values():
        url, response = _head(url, accept, way, min(deadline, time.monotonic() + _TIMEOUT))
        by = response.headers.get("Server", by)
        media_type = response.headers.get_content_type()
        name = next((name for name, known in _STREAMS.items() if known == media_type), "")
        if response.status == 200 and name:
            probes[name] = Probe(name, url, accept, way, deadline)
        elif response.status != 406:  # which a picture is by Server-Sent Events
            said = f"{response.status} {response.reason}"
            refusal = said if response.status != 200 else f"no stream, but {media_type}"
    if not probes:
        raise ValueError(refusal or "406 Not Acceptable")
    return url, by, list(probes.values())


def _head(url: str, accept: str, way: Way, deadline: float) -> tuple[str, http.client.HTTPResponse]:
    """Follow redirections; return the address that they led to, and its answer to HEAD."""
    for _ in range(_REDIRECTS):
        response = _Head("head", url, accept, way, deadline).response()
        location = response.headers["Location"]
        if response.status not in (301, 302, 303, 307, 308) or not location:
            return url, response
        url = urljoin(url, location)
    raise ValueError(f"{url}: more than {_REDIRECTS} redirections")


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port. Raises ValueError for an address that cannot be asked."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url}: must be the http:// or https:// address of a stream")
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


class _Asking(threading.Thread):
    """A request, made in a thread of its own: a server may drip its headers for ever, or a name server not answer."""

    def __init__(self, name: str, url: str, accept: str, way: Way, deadline: float) -> None:
        super().__init__(name=name, daemon=True)
        self.url = url
        self.headers = way.headers(url, accept)
        self.way = way
        self.deadline = deadline  # of the monotonic clock, in seconds
        self._socket: socket.socket | None = None

    def connect(self) -> http.client.HTTPConnection:
        scheme, host, port = _origin(self.url)
        timeout = max(0.001, min(_TIMEOUT, self.deadline - time.monotonic()))
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self.way.trust)
        if path := self.way.unix_socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(path)
            connection.sock = self.way.trust.wrap_socket(sock, server_hostname=host) if scheme == "https" else sock
        else:
            connection.connect()
        self._socket = connection.sock
        return connection

    def request(self, connection: http.client.HTTPConnection, method: str) -> http.client.HTTPResponse:
        parts: SplitResult = urlsplit(self.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers=self.headers)
        return connection.getresponse()

    def abandon(self) -> None:
        """Leave, as a browser does. A thread that does not notice ends with the process."""
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.join(1.0)


class _Head(_Asking):
    """A HEAD request."""

    _response: http.client.HTTPResponse | None = None
    _error: Exception | None = None

    def response(self) -> http.client.HTTPResponse:
        """Ask, and wait for the answer. Raises TimeoutError after the deadline; else what the request raises."""
        self.start()
        self.join(max(0.0, self.deadline - time.monotonic()))
        response, error = self._response, self._error
        self.abandon()
        if error:
            raise error
        if response is None:
            raise TimeoutError("no answer in time")
        return response

    def run(self) -> None:
        try:
            with closing(self.connect()) as connection:
                response = self.request(connection, "HEAD")
                response.close()
                self._response = response
        except Exception as error:
            self._error = error


# -- listening


class Probe(_Asking):
    """A subscription to `url` by the transport `name`: `start` it, and `stop` it."""

    def __init__(self, name: str, url: str, accept: str, way: Way, deadline: float) -> None:
        super().__init__(f"probe-{name}", url, accept, way, deadline)
        self.transport = name
        self.status = 0  # of the response; 0 while there is none
        self.encoding = ""  # Content-Encoding
        self.started = self.last = time.monotonic()  # when it was asked, and when the last byte came
        self.first: float | None = None  # seconds from there to the first byte of the body
        self.messages = 0
        self.silence = 0.0  # seconds, the longest between two arrivals
        self.ended: float | None = None  # seconds from the start to the end of the response
        self.full = False  # `_MOST_BYTES` have come: it listens no more
        self.clean = False  # the server has said that it ends the stream
        self.error = ""
        self._stopping = False  # set by the thread that stops it, once
        self._left = _MOST_BYTES
        self._rest = self._tail = b""  # a line under way, and the last whole lines

    def start(self) -> None:
        """Ask, and listen from now on."""
        self.started = self.last = time.monotonic()
        super().start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopping = True
        self.abandon()

    def quiet(self) -> float:
        """Seconds from the last byte, or from the request where there was none, to now or to the end."""
        if self.full:
            return 0.0
        return time.monotonic() - self.last if self.ended is None else self.started + self.ended - self.last

    def run(self) -> None:
        error = ""
        try:
            with closing(self.connect()) as connection:
                connection.sock.settimeout(None)
                with closing(self.request(connection, "GET")) as response:
                    self.status = response.status
                    self.encoding = response.headers.get("Content-Encoding", "").replace("identity", "")
                    if response.status == 200:
                        self._listen(response)
                    else:
                        error = f"{response.status} {response.reason}"
        except http.client.IncompleteRead:
            pass  # the response has ended
        except (OSError, ValueError, http.client.HTTPException, zlib.error) as failure:
            error = str(failure) or type(failure).__name__
        if not (self._stopping or self.full):  # else the end is our own
            self.error = error
            self.ended = time.monotonic() - self.started

    def _listen(self, response: http.client.HTTPResponse) -> None:
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if self.encoding in ("gzip", "deflate") else None
        while not self.full and (packed := response.read1(_PIECE)):
            self._left -= len(packed)
            while packed and not self.full:
                text = unpack.decompress(packed, _PIECE) if unpack else packed
                packed = unpack.unconsumed_tail if unpack else b""
                self._left -= len(text) if unpack else 0
                self.full = self._left <= 0
                if text:  # else it is the header of a compressed body, of which nothing can be read yet
                    self._take(text)

    def _take(self, text: bytes) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now - self.started
            text = _PREAMBLE.sub(b"", text)
        self.silence = max(self.silence, now - self.last)
        self.last = now
        lines, newline, rest = text.rpartition(b"\n")
        if not newline:
            self._rest = (self._rest + rest)[:_LINE]
            return
        lines = self._rest + lines + newline
        self._rest = rest[:_LINE]
        self.messages += len(re.findall(b"^" + _MESSAGES[self.transport], lines, re.M))
        self._tail = (self._tail + lines)[-_TAIL:]
        self.clean = bool(re.search(b"^" + _LAST_WORDS[self.transport], self._tail, re.M))


def _listen(probes: Sequence[Probe], seconds: float, deadline: float) -> None:
    """Listen until the deadline, or until nothing more can be learnt; say every few seconds how it goes."""
    for probe in probes:
        probe.start()
    told = time.monotonic()
    pause = threading.Event()
    while (now := time.monotonic()) < deadline:
        if all(map(_settled, probes)):
            break
        if now >= told + _PROGRESS:
            told = now
            state = ", ".join(f"{probe.transport} {probe.messages} messages" for probe in probes)
            _say(f"{seconds - deadline + now:4.0f} of {seconds:g} s: {state}", file=sys.stderr)
        pause.wait(min(_STEP, deadline - now))


def _settled(probe: Probe) -> bool:
    return probe.ended is not None or probe.full or (probe.first is None and probe.quiet() > _FIRST)


# -- concluding


def judge(probe: Probe, heartbeat: float) -> dict[str, str]:
    """What was found, "buffers", "compresses", "cuts" (for its silence) or "ends", each with what shows it."""
    found = {}
    if probe.encoding:
        found["compresses"] = f"Content-Encoding: {probe.encoding}"
    if probe.ended is not None and not probe.clean and probe.status in (200, 502, 504):
        how = probe.error or "without a word from the server"
        idle = probe.quiet() >= max(probe.silence, _IDLE)  # else a longer silence has been let pass before
        found["cuts" if idle else "ends"] = (
            f"the response ended after {probe.ended:.1f} s, {probe.quiet():.1f} s after the last byte: {how}"
        )
    elif probe.status in (0, 200) and not probe.error:
        silence = max(probe.silence, probe.quiet())
        late = probe.first is None or probe.first > _FIRST
        if late or silence > _QUIET * heartbeat + _SLACK:
            promised = "the first bytes at once" if late else f"every {heartbeat:g} s or sooner"
            found["buffers"] = f"nothing came for {silence:.1f} s, and the server writes {promised}"
    return found


def _summary(probe: Probe) -> str:
    if probe.first is None:
        return f"{probe.transport}: {probe.error or 'not a byte of the stream'}"
    silence = max(probe.silence, probe.quiet())
    said = f"{probe.transport}: first byte after {probe.first:.2f} s, {probe.messages} messages"
    end = f", ended by the server after {probe.ended:.1f} s" if probe.ended and probe.clean else ""
    end = f", left after {_MOST_BYTES >> 20} MB" if probe.full else end
    return f"{said}, longest silence {silence:.1f} s{end}"


def _report(found: dict[str, dict[str, str]], probes: Sequence[Probe], url: str, by: str) -> None:
    for kind in (*_REMEDIES, "ends"):
        evidence = [f"{name}: {findings[kind]}" for name, findings in found.items() if kind in findings]
        if not evidence:
            continue
        _say("", f"Something between here and the server {kind} the stream.")
        _say(*(f"  {line}" for line in evidence))
        if kind == "ends":
            _say("Not for its silence: a limit on how long a response may take, or a server that was killed.")
            continue
        _say("What mends it, by where it is:")
        remedies = _REMEDIES[kind]
        for proxy in sorted(remedies, key=lambda proxy: proxy.lower() not in by.lower()):
            path = urlsplit(url).path or "/"
            _say(f"  {proxy}:", *(f"      {line.replace('PATH', path)}" for line in remedies[proxy].splitlines()))
        if kind == "cuts":
            silence = min(probe.quiet() for probe in probes if kind in found[probe.transport])
            _say("  the application's ini, so that it is never quiet for so long:")
            _say(f"      pushdemo.heartbeat = {silence / 2:.2g}")


if __name__ == "__main__":
    sys.exit(main())
