"""A real HTTP server that says exactly the bytes that a test gives it, and breaks off where it wants."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BOUND = 20.0  # seconds that anything here may take

Script = Callable[["Exchange"], None]


class Exchange:
    """One request, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.method = handler.command
        self.headers = handler.headers
        self.query = {name: values[-1] for name, values in parse_qs(urlsplit(handler.path).query).items()}

    @property
    def last_event_id(self) -> str:
        """Where the client goes on from: a browser's own reconnection says it in the header."""
        return self.headers.get("Last-Event-ID") or self.query.get("last_event_id", "")

    def answer(self, status: int, content_type: str = "", body: bytes = b"", **headers: str) -> None:
        """A whole answer; a header's `_` is its `-`."""
        self._head(status, content_type, Content_Length=str(len(body)), **headers)
        self._handler.wfile.write(body)

    def stream(self, content_type: str, *chunks: bytes) -> None:
        """The head of a stream and its first bytes."""
        self._head(200, content_type, Transfer_Encoding="chunked", Cache_Control="no-store")
        self.write(*chunks)

    def write(self, *chunks: bytes) -> None:
        """Each as an HTTP chunk of its own."""
        self._handler.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk))

    def end(self) -> None:
        """The clean end of a stream."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """The connection breaks."""
        self._handler.close_connection = True
        self._handler.connection.shutdown(socket.SHUT_RDWR)

    def until_gone(self) -> None:
        """Waits until the client has left."""
        assert self.gone_within(BOUND)

    def gone_within(self, seconds: float) -> bool:
        """Whether the client leaves in that time."""
        self._handler.connection.settimeout(seconds)
        try:
            return not self._handler.connection.recv(1)
        except TimeoutError:
            return False

    def _head(self, status: int, content_type: str, **headers: str) -> None:
        self._handler.send_response(status)
        if content_type:
            self._handler.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()


class Wire:
    """The server. A path's first request is answered by its first script, and so on; the last script goes on."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files
        self.requests: list[Exchange] = []
        self.failures: list[BaseException] = []
        self._scripts: dict[str, list[Script]] = {}
        self._count = 0  # requests since the last call of `on`
        self._lock = threading.Lock()  # over all of these: each request has a thread
        self._asked = threading.Condition(self._lock)  # told of each request
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each small write waits 40 ms for the client's acknowledgement

            def do_GET(self) -> None:
                wire._serve(self)

            do_DELETE = do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def on(self, path: str, *scripts: Script) -> str:
        """The URL that these scripts answer, one request each."""
        with self._lock:
            self._scripts[path] = list(scripts)
            self._count = 0
        return self.url + path

    def until_asked(self, count: int = 1) -> None:
        """Waits until so many requests have come since the last call of `on`."""
        with self._asked:
            assert self._asked.wait_for(lambda: self._count >= count, BOUND), self._count

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        exchange = Exchange(handler)
        path = urlsplit(handler.path).path
        if path in self.files:
            types = {".js": "text/javascript", ".mjs": "text/javascript", ".html": "text/html"}
            file = self.files[path]
            return exchange.answer(200, types[file.suffix], file.read_bytes())
        with self._lock:
            self.requests.append(exchange)
            scripts = self._scripts[path]
            script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
            self._count += 1
            self._asked.notify_all()
        try:
            script(exchange)
        except OSError:
            handler.close_connection = True  # the client left while it was written to
        except BaseException as failure:
            self.failures.append(failure)
        return None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no error here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
