"""What tests share: a real `pserve` on a free port, the server within the test's process, a browser, raw sockets."""

from __future__ import annotations

import configparser
import itertools
import os
import pickle
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pushdemo.server import Server

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0  # seconds after which what a test waits for will not come; a noisy machine takes its time
SOON = 5.0  # seconds in which a noisy machine does what must not wait for the next heartbeat

# Below those that Linux gives to connections by itself (32,768 and up): a port stays free until a server is started
# there, or started again. No browser refuses one of them.
_ports = itertools.islice(itertools.cycle(range(10_100, 16_000)), random.SystemRandom().randrange(5_900), None)

_threads_before: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # alive when the test began


def note_threads() -> None:
    """A test begins: the threads that run now are not its own."""
    _threads_before.clear()
    _threads_before.update(threading.enumerate())


def threads(name: str) -> list[threading.Thread]:
    """The running threads of this name that began during this test; those of tests before it are not its concern."""
    return [thread for thread in threading.enumerate() if thread.name == name and thread not in _threads_before]


def require(found: object, what: str, package: str) -> None:
    """Skip where a program is missing, and say how to get it; fail where everything must be there (CI=true)."""
    if not found:
        message = f"{what} is missing: install it (Debian: apt-get install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message, allow_module_level=True)


def wait_until(condition: Any, timeout: float = PATIENCE, what: str = "what the test waits for") -> Any:
    """The first true value of `condition()`, asked for again and again; fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come within {timeout} s")
        threading.Event().wait(0.01)
    return value


def in_child(call: Callable[[], Any]) -> Any:
    """What `call` returns in a forked child of this process, which ends after it; fails with what it raises there."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: "multi-threaded, use of fork()"
        child = os.fork()
    if not child:
        try:
            outcome = True, call()
        except BaseException as error:
            outcome = False, "".join(traceback.format_exception(error))
        try:
            os.write(writer, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        ready = select.select([pipe], [], [], PATIENCE)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
        data = pipe.read()
    os.waitpid(child, 0)
    assert ready, "the child does not come to an end"
    fine, value = pickle.loads(data)
    assert fine, value
    return value


def small_pair() -> tuple[socket.socket, socket.socket]:
    """Connected sockets, of which the first does not block and has the least buffer that there is."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    ours.setblocking(False)
    return ours, theirs


def fill(sock: socket.socket) -> None:
    """Write to a non-blocking socket until it takes no more."""
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65_536))


def at_once(sock: socket.socket) -> bytes:
    """What can be read without waiting; nothing where there is nothing."""
    sock.setblocking(False)
    try:
        return sock.recv(65_536)
    except BlockingIOError:
        return b""


def self_signed(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key, in one file."""
    require(shutil.which("openssl"), "openssl", "openssl")
    subject = "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {subject} -keyout key.pem -out certificate.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    with (folder / "certificate.pem").open("a") as file:
        file.write((folder / "key.pem").read_text())
    return folder / "certificate.pem"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, another each time."""
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as sock, suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False


class Pserve:
    """A running `pserve`; `port` is the port that it listens on, `log` what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], logfile: Path) -> None:
        self.process = process
        self.logfile = logfile
        self.port = 0

    @property
    def log(self) -> str:
        return self.logfile.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def write_ini(folder: Path, app: dict[str, Any] | None = None, server: dict[str, Any] | None = None) -> Path:
    """development.ini with keys of [app:main] and [server:main] set anew; `listen` is a free port unless given."""
    ini = configparser.RawConfigParser(delimiters="=")
    ini.read(ROOT / "development.ini", encoding="utf-8")
    ini["app:main"].update({key: str(value) for key, value in (app or {}).items()})
    server = {"listen": "127.0.0.1:0"} | (server or {})
    ini["server:main"].update({key: str(value) for key, value in server.items()})
    path = folder / f"test-{time.monotonic_ns()}.ini"
    with path.open("w", encoding="utf-8") as file:
        ini.write(file)
    return path


def pserve_command(ini: Path) -> dict[str, Any]:
    """What subprocess needs to run `pserve` on an ini file, which may name an application of tests/fixtureapps."""
    pserve = Path(sys.executable).with_name("pserve")
    return {"args": [str(pserve), str(ini)], "cwd": ini.parent, "env": os.environ | {"PYTHONPATH": str(ROOT)}}


@contextmanager
def pserve(
    tmp_path: Path, app: dict[str, Any] | None = None, server: dict[str, Any] | None = None, port: int = 0
) -> Iterator[Pserve]:
    """A running `pserve` with the ini of `write_ini`, on `port` or a free one."""
    ini = write_ini(tmp_path, app, {"listen": f"127.0.0.1:{port or free_port()}"} | (server or {}))
    logfile = ini.with_suffix(".log")
    with logfile.open("wb") as log, subprocess.Popen(**pserve_command(ini), stdout=log, stderr=log) as process:
        running = Pserve(process, logfile)
        try:
            running.port = int(wait_until(lambda: _address(running), what="pserve's address").group(1))
            yield running
        finally:
            if process.poll() is None:
                process.kill()


def _address(running: Pserve) -> re.Match[str] | None:
    if running.process.poll() is not None:
        pytest.fail(f"pserve ended: {running.log}")
    return re.search(r"Serving on http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)", running.log)


@contextmanager
def serving(app: Any, **settings: Any) -> Iterator[Server]:
    """Our server in a thread of this process, on a free port of 127.0.0.1 unless `settings` say where."""
    if not {"listen", "unix_socket", "sockets"} & settings.keys():
        settings["listen"] = "127.0.0.1:0"
    server = Server(app, **settings)
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def port_of(server: Server) -> int:
    """The port that a server listens on."""
    return int(server.addresses[0][1])


class Client:
    """A raw HTTP/1.1 client on one socket."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = PATIENCE) -> None:
        self.sock = socket.create_connection((host, port), timeout)
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def get(self, path: str, *headers: str, version: str = "1.1", method: str = "GET") -> Client:
        """Send a request."""
        lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers, "", ""]
        self.sock.sendall("\r\n".join(lines).encode())
        return self

    def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`; EOFError when the connection ends before it."""
        while mark not in self.buffer:
            data = self.sock.recv(65_536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (names in lower case) of the response."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").rstrip("\r\n").split("\r\n")
        fields = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in fields}

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        while len(self.buffer) < size:
            data = self.sock.recv(65_536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def some(self) -> bytes:
        """Whatever has come; b"" is the end of the connection."""
        found, self.buffer = self.buffer or self.sock.recv(65_536), b""
        return found

    def chunk(self) -> bytes:
        """The next chunk of a chunked response; b"" is the last."""
        size = int(self.until(b"\r\n"), 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """A whole response with a Content-Length."""
        status, headers = self.head()
        return status, headers, self.exactly(int(headers.get("content-length", 0)))

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while data := self.sock.recv(65_536):
            self.buffer += data
        found, self.buffer = self.buffer, b""
        return found


CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--window-size=1200,900",
)


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A headless Chromium driven by Selenium; its console is read with `get_log("browser")`."""
    require(shutil.which("chromium"), "Chromium", "chromium chromium-driver")
    require(shutil.which("chromedriver"), "ChromeDriver", "chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*CHROMIUM_FLAGS, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()
