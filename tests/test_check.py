"""`pushdemo-check` against servers of a few lines, each of which does one thing that a real one may do."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pushdemo import check
from tests.support import PATIENCE, self_signed, threads, wait_until

MULTIPART, SSE, JSONLINES = "multipart/x-mixed-replace; boundary=b", "text/event-stream", "application/x-ndjson"
PART = b"--b\r\nX-Message-Id: 1\r\nContent-Length: 1\r\n\r\nx\r\n--b\r\n"
EVENT = b"id: 1\ndata: x\n\n"
LINE = b'{"id": "1", "content": "x"}\n'

Answer = Callable[[socket.socket, str, str], None]  # a connection, the request's first line, and all of it


class Site:
    """A server with a thread for each connection: `answer` has it with its request, then it is closed."""

    def __init__(
        self,
        answer: Answer,
        wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock,
        listener: socket.socket | None = None,
    ) -> None:
        self.asked: list[str] = []  # the requests
        self.over = threading.Event()  # the test is over: an answer that waits goes home
        self._answer = answer
        self._wrap = wrap
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = 0 if listener else self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        request = b""
        with suppress(OSError), self._wrap(sock) as sock:  # the client has left, or trusts nobody
            while b"\r\n\r\n" not in request and (data := sock.recv(65_536)):
                request += data
            self.asked.append(request.decode())
            self._answer(sock, self.asked[-1].partition("\r\n")[0], self.asked[-1])


@contextmanager
def site(answer: Answer, *how: Any, **more: Any) -> Iterator[Site]:
    running = Site(answer, *how, **more)
    try:
        yield running
    finally:
        running.close()


def head(kind: str, *more: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more, "", ""]).encode()


@contextmanager
def streaming(
    *body: bytes | float, kind: str = SSE, headers: tuple[str, ...] = (), hold: bool = False
) -> Iterator[Site]:
    """A site that writes these bytes, with pauses of so many seconds, by one transport; `hold`: and says no more."""
    running: list[Site] = []

    def answer(sock: socket.socket, line: str, request: str) -> None:
        if f"Accept: {kind.partition(';')[0]}" not in request:
            sock.sendall(head("text/plain", status="406 Not Acceptable"))
            return
        sock.sendall(head(kind, *headers))
        if line.startswith("GET"):
            for piece in body:
                sock.sendall(piece) if isinstance(piece, bytes) else running[0].over.wait(piece)
            if hold:
                running[0].over.wait(PATIENCE)

    with site(answer) as made:
        running.append(made)
        yield made


def run(url: str, *options: str, seconds: float = 0.6) -> int:
    return check.main([url, "--seconds", str(seconds), *options])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_kind_of_redirection_is_followed(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(sock: socket.socket, line: str, request: str) -> None:
        if " /there" in line:
            sock.sendall(head(SSE) + (b"event: end\n\n" if line.startswith("GET") else b""))
        else:
            sock.sendall(head("text/plain", "Location: there", status=f"{status} Elsewhere"))

    with site(answer) as running:
        assert run(running.url) == check.FINE
        assert f"{running.url}there is answered by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "location"), [(300, "Location: there"), (304, "Location: there"), (302, "X-None: 1")]
)
def test_what_is_no_redirection_is_no_stream(status: int, location: str, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda sock, line, request: sock.sendall(head(SSE, location, status=f"{status} Odd"))) as running:
        assert run(running.url) == check.UNASKED
        assert f"{status} Odd" in capsys.readouterr().err


@pytest.mark.parametrize(("hops", "status"), [(4, check.FINE), (5, check.UNASKED)])
def test_redirections_have_an_end(hops: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(sock: socket.socket, line: str, request: str) -> None:
        number = int(line.split()[1][1:] or 0)
        if number < hops:
            sock.sendall(head("text/plain", f"Location: /{number + 1}", status="302 Found"))
        else:
            sock.sendall(head(SSE) + (b"event: end\n\n" if line.startswith("GET") else b""))

    with site(answer) as running:
        assert run(running.url) == status
    assert ("more than 5 redirections" in capsys.readouterr().err) == (status == check.UNASKED)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MULTIPART, b"--b--\r\n"),
        (MULTIPART, b"X-Retry: 700\r\n"),
        (SSE, b"event: end\ndata:\n\n"),
        (SSE, b"retry: 700\n\n"),
        (JSONLINES, b'{"state": "done", "last_event_id": "1"}\n'),
        (JSONLINES, b'{"state": "waiting", "retry": 700}\n'),
    ],
)
def test_the_last_words_of_each_transport_are_known(
    kind: str, words: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {MULTIPART: PART, SSE: EVENT, JSONLINES: LINE}[kind]
    with site(
        lambda sock, line, _: sock.sendall(head(kind) + (first + words if line.startswith("GET") else b""))
    ) as it:
        assert run(it.url) == check.FINE
    assert re.search(
        r"1 messages, longest silence 0\.\d s, ended by the server after 0\.\d s\n", capsys.readouterr().out
    )


def test_the_last_words_may_come_in_pieces_but_must_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    with streaming(EVENT, b"event: e", 0.1, b"nd\n\n") as running:
        assert run(running.url) == check.FINE
    with streaming(b"event: end\n\n" + EVENT * 100) as running:
        assert run(running.url) == check.FOUND
    assert "100 messages" in capsys.readouterr().out


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("pieces", "kind", "silence"),
    [
        ([EVENT, 0.5], "cuts", r"0\.[5-9]"),  # nothing has been as quiet before
        ([EVENT, 0.8, EVENT, 0.5], "ends", r"0\.[5-7]"),  # a longer silence has been let pass
        ([EVENT] * 3, "ends", r"0\.[0-2]"),  # in the midst of messages
    ],
)
def test_a_stream_that_ends_without_a_word_was_cut_for_its_silence_or_for_something_else(
    pieces: list[bytes | float], kind: str, silence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with streaming(*pieces) as running:
        assert run(running.url, seconds=PATIENCE) == check.FOUND
    said = capsys.readouterr().out
    assert f"Something between here and the server {kind} the stream" in said
    assert re.search(rf"s, {silence} s after the last byte: without a word from the server", said)


@pytest.mark.parametrize("status", ["502 Bad Gateway", "504 Gateway Timeout"])
def test_a_proxy_that_gives_up_before_the_first_byte_cuts(status: str, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(sock: socket.socket, line: str, request: str) -> None:
        get = line.startswith("GET")
        if get:
            running.over.wait(0.4)
        sock.sendall(head("text/html", status=status) if get else head(SSE))

    with site(answer) as running:
        assert run(running.url, seconds=PATIENCE) == check.FOUND
    said = capsys.readouterr().out
    assert "server cuts the stream" in said
    assert f"after the last byte: {status}" in said


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_stream_is_read_where_it_can_be(encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    packed = packer.compress(EVENT * 7) + packer.flush(zlib.Z_SYNC_FLUSH)
    with streaming(packed, headers=(f"Content-Encoding: {encoding}",), hold=True) as running:
        assert run(running.url) == check.FOUND
    said = capsys.readouterr().out
    assert f"sse: Content-Encoding: {encoding}" in said
    assert f"{7 if encoding in ('gzip', 'deflate') else 0} messages" in said


def test_a_damaged_compressed_stream_is_an_error_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with streaming(b"this is not gzip", headers=("Content-Encoding: gzip",), hold=True) as running:
        assert run(running.url, seconds=PATIENCE) == check.FOUND
    assert "Error -3 while decompressing data" in capsys.readouterr().out


def test_identity_is_no_compression() -> None:
    with streaming(EVENT, headers=("Content-Encoding: identity",), hold=True) as running:
        assert run(running.url) == check.FINE


def test_what_never_comes_is_held_back_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "_FIRST", 0.3)
    with streaming(hold=True) as running:
        assert run(running.url, seconds=PATIENCE) == check.FOUND
    assert re.search(r"nothing came for 0\.[3-9] s, and the server writes the first bytes", capsys.readouterr().out)


@pytest.mark.heavy
def test_silence_beyond_the_heartbeat_is_held_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "_SLACK", 0.0)
    with streaming(EVENT, hold=True) as running:
        assert run(running.url, "--heartbeat", "0.2", seconds=2) == check.FOUND
        assert "writes every 0.2 s or sooner" in capsys.readouterr().out
        assert run(running.url, "--heartbeat", "20") == check.FINE  # of which the silence is less than one and a half


def test_an_interrupt_ends_it_with_what_has_been_seen() -> None:
    with streaming(EVENT, hold=True) as running:
        command = [sys.executable, "-m", "pushdemo.check", running.url]
        heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a job in the background does not
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeds) as process:
            wait_until(lambda: any(request.startswith("GET") for request in running.asked))
            assert process.stdout is not None
            assert "is answered by" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == check.FINE
    assert said.startswith("sse: ")
    assert "Traceback" not in errors


def test_it_asks_as_a_browser_does_and_with_the_headers_that_are_given() -> None:
    with streaming(b"event: end\n\n") as running:
        assert run(f"{running.url}path?a=b", "-H", "Cookie: a=b", "--header", "X-Two:  c ") == check.FINE
    assert {request.split()[0] for request in running.asked} == {"HEAD", "GET"}
    for request in running.asked:
        assert request.split(" ", 2)[1] == "/path?a=b"
        lines = request.split("\r\n")
        for line in ("Accept-Encoding: gzip, deflate, br, zstd", "Cache-Control: no-cache", "Cookie: a=b", "X-Two: c"):
            assert line in lines


def test_a_server_says_its_name_and_its_lines_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    with streaming(EVENT, 0.4, headers=("Server: haproxy/3.0",)) as running:
        assert run(running.url, seconds=PATIENCE) == check.FOUND
        assert f"{running.url} is answered by haproxy/3.0" in (said := capsys.readouterr().out)
    assert re.findall(r"^  (\w+):$", said, re.M)[0] == "HAProxy"
    with streaming(b"event: end\n\n") as running:
        run(running.url)
        assert "is answered by a server that does not say its name" in capsys.readouterr().out


# -- servers that mean harm


def in_time(url: str, *options: str, seconds: float = 0.6) -> int:
    began = time.monotonic()
    status = run(url, *options, seconds=seconds)
    assert time.monotonic() - began < seconds + 2.5  # the thread that is left gets a second for its farewell
    return status


def endless(sock: socket.socket, data: bytes, over: threading.Event, pause: float = 0.02) -> None:
    while not over.wait(pause):
        sock.sendall(data)


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("opening", "dripped"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 50),
        (b"", b""),
    ],
    ids=["status", "name", "headers", "continue", "much-continue", "silence"],
)
def test_headers_that_never_end_do_not_outlast_the_deadline(method: str, opening: bytes, dripped: bytes) -> None:
    def answer(sock: socket.socket, line: str, request: str) -> None:
        if line.startswith(method):
            sock.sendall(opening)
            endless(sock, dripped, running.over)
        else:
            sock.sendall(head(SSE))

    with site(answer) as running:
        assert in_time(running.url) == (check.UNASKED if method == "HEAD" else check.FOUND)
        assert not any(threads(name) for name in ("head", "probe-sse"))


@pytest.mark.heavy
def test_a_name_that_does_not_resolve_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(PATIENCE))
    assert in_time("http://example.org/") == check.UNASKED
    over.set()


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [SSE, MULTIPART])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((), b"x" * 65_536),  # a line without an end
        ((), b"id: 1\n" * 10_000),
        (("Transfer-Encoding: chunked",), b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n"),
    ],
    ids=["line", "lines", "chunks"],
)
def test_an_endless_body_has_a_bound(
    kind: str,
    headers: tuple[str, ...],
    body: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "_MOST_BYTES", 20_000_000)

    def answer(sock: socket.socket, line: str, request: str) -> None:
        sock.sendall(head(kind, *headers))
        if line.startswith("GET"):
            endless(sock, body, running.over, pause=0.0)

    tracemalloc.start()
    try:
        with site(answer) as running:
            assert run(running.url, seconds=PATIENCE) == check.FINE
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert "s, left after 19 MB" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_unpacked_up_to_the_bound(encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    assert len(bomb) < 300_000
    tracemalloc.start()
    try:
        with streaming(bomb, headers=(f"Content-Encoding: {encoding}",), hold=True) as running:
            assert run(running.url, seconds=PATIENCE) == check.FOUND
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    said = capsys.readouterr().out
    assert f"left after {check._MOST_BYTES >> 20} MB" in said
    assert "buffers" not in said


SECRETS = ("-H", "Cookie: session=SECRET", "-H", "Authorization: Bearer SECRET", "-H", "X-Own: SECRET")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2"])
def test_headers_that_are_given_go_to_the_first_origin_alone(host: str) -> None:
    with streaming(b"event: end\n\n") as other:

        def answer(sock: socket.socket, line: str, request: str) -> None:
            where = f"http://{host}:{other.port}/" if " /there" in line else "/there"
            sock.sendall(head("text/plain", f"Location: {where}", status="302 Found"))

        with site(answer) as first:
            assert run(first.url, *SECRETS) == (check.FINE if host != "127.0.0.2" else check.UNASKED)
    assert len(first.asked) == 2
    assert all(request.count("SECRET") == 3 for request in first.asked)
    assert len(other.asked) == (3 if host != "127.0.0.2" else 0)
    assert not any("SECRET" in request for request in other.asked)


def test_headers_that_are_given_are_sent_again_where_the_way_leads_back() -> None:
    """By way of another origin, which may choose the path, and no more than any link could."""

    def answer(sock: socket.socket, line: str, request: str) -> None:
        if " /back" in line:
            sock.sendall(head(SSE) + (b"event: end\n\n" if line.startswith("GET") else b""))
        else:
            sock.sendall(head("text/plain", f"Location: {other.url}", status="302 Found"))

    def back(sock: socket.socket, line: str, request: str) -> None:
        sock.sendall(head("text/plain", f"Location: {first.url}back", status="302 Found"))

    with site(answer) as first, site(back) as other:
        assert run(first.url, *SECRETS) == check.FINE
    assert not any("SECRET" in request for request in other.asked)
    assert all("SECRET" in request for request in first.asked)


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\tand more"


@pytest.mark.parametrize("where", ["Server", "Location", "Content-Encoding", "Content-Type", "reason", "GET reason"])
def test_control_characters_of_a_server_are_shown_as_text(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(sock: socket.socket, line: str, request: str) -> None:
        more, status, kind = [f"{where}: {EVIL}"], "200 OK", SSE
        if where == "Location" and "there" not in line:
            status, more = "302 Found", [f"Location: /there{EVIL}"]
        elif where == "Content-Type":
            kind, more = f"text/{EVIL}", []
        elif where == "reason" or (where == "GET reason" and line.startswith("GET")):
            status, more = f"502 {EVIL.partition(chr(13))[0]}", []
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    with site(answer) as running:
        run(running.url)
    said = "".join(capfd.readouterr())
    assert "\\x1b" in said
    assert not [char for char in said if not char.isprintable() and char != "\n"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key."""
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.mark.parametrize("trusted", ["nobody", "cafile", "insecure"])
def test_a_self_signed_certificate_is_refused_unless_told(
    certificate: Path, trusted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def answer(sock: socket.socket, line: str, request: str) -> None:
        sock.sendall(head(SSE) + (EVENT if line.startswith("GET") else b""))

    with site(answer, lambda sock: context.wrap_socket(sock, server_side=True)) as running:
        options = {"nobody": [], "cafile": ["--cafile", str(certificate)], "insecure": ["--insecure"]}[trusted]
        status = run(running.url.replace("http:", "https:"), *options)
    said = capsys.readouterr()
    if trusted == "nobody":
        assert (status, "CERTIFICATE_VERIFY_FAILED" in said.err) == (check.UNASKED, True)
    else:
        assert "sse: first byte after" in said.out


def test_a_unix_socket_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "server.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer(sock: socket.socket, line: str, request: str) -> None:
        sock.sendall(head(SSE) + (EVENT if line.startswith("GET") else b""))

    with site(answer, listener=listener) as running:
        run("http://example.org/stream", "--unix-socket", str(path))
        assert "sse: first byte after" in capsys.readouterr().out
        assert running.asked[0].startswith("HEAD /stream HTTP/1.1\r\nHost: example.org\r\n")


def test_a_file_without_certificates_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("https://127.0.0.1:1/", "--cafile", str(tmp_path / "none.pem")) == check.UNASKED
    assert "No such file" in capsys.readouterr().err
