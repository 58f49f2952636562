"""A real nginx in front of a real pserve: streams come through live, and where they cannot, push.js says so."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.readers import STREAMS, TRANSPORTS, Event, Reader
from tests.support import PATIENCE, Client, Pserve, chromium, free_port, pserve, require, wait_until

require(shutil.which("nginx"), "nginx", "nginx")

pytestmark = pytest.mark.heavy

STREAM = "/server/index"
INTERVAL = 0.1  # seconds from one message to the next
HEARTBEAT = 1  # seconds
BOUND = 60.0  # seconds: a browser on a busy machine takes its time

# `deaf` buffers whatever the response says, as some proxies do; the others are nginx's defaults, and those with gzip.
HOUSES = {
    "plain": "",
    "gzip": "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; gzip_http_version 1.0;",
    "http11": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "deaf": "proxy_ignore_headers X-Accel-Buffering; proxy_buffers 8 64k; proxy_buffer_size 64k;",
}
LIVE = ("plain", "gzip", "http11")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{servers}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: int, ports: dict[str, int]) -> Iterator[None]:
    """An nginx that listens as each of `ports` says (a name of HOUSES), in front of the port `upstream`."""
    servers = "\n".join(
        f"server {{ listen 127.0.0.1:{port}; {HOUSES[name]} location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}"
        for name, port in ports.items()
    )
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, servers=servers))
    command = ["nginx", "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: process.poll() is None and all(map(answers, ports.values())), what="nginx")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pserve]:
    app = {"pushdemo.interval": INTERVAL, "pushdemo.heartbeat": HEARTBEAT, "pushdemo.longpoll.timeout": 5}
    with pserve(tmp_path_factory.mktemp("pserve"), app) as server:
        yield server


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, running: Pserve) -> Iterator[dict[str, int]]:
    """The ports of one nginx, by the names of HOUSES."""
    ports = {name: free_port() for name in HOUSES}
    with nginx(tmp_path_factory.mktemp("nginx"), running.port, ports):
        yield ports


@pytest.fixture(params=LIVE)
def port(request: pytest.FixtureRequest, ports: dict[str, int]) -> int:
    return ports[request.param]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def number(event: Event) -> int:
    assert event.kind == "message"
    return int(event.id.rpartition("-")[2])


def newest(running: Pserve) -> int:
    """The number of the newest message, asked for without a proxy."""
    with Reader(running.port, "longpoll", STREAM) as reader:
        return number(reader.next())


def test_messages_come_through_as_they_are_made(running: Pserve, port: int, transport: str) -> None:
    with Reader(port, transport, STREAM) as reader:
        first = number(reader.next())
        for expected in range(first + 1, first + 5):
            assert number(reader.next()) == expected
            assert newest(running) <= expected + 4, "the proxy has kept it back"  # it would keep 4 KB: some 15 messages


def test_heartbeats_come_through(tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 1000, "pushdemo.heartbeat": HEARTBEAT}) as quiet:
        ports = {name: free_port() for name in LIVE}
        with nginx(tmp_path, quiet.port, ports):
            readers = [Reader(port, name, STREAM) for port in ports.values() for name in STREAMS]
            for reader in readers:
                assert number(reader.next()) == 1
            for reader in readers:
                assert reader.next(heartbeats=True).kind == "heartbeat"
                reader.leave()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_gzip_is_really_on(ports: dict[str, int], transport: str) -> None:
    with Reader(ports["gzip"], transport, STREAM, "Accept-Encoding: gzip") as reader:
        first = number(reader.next())
        if transport != "longpoll":
            assert b"\r\nContent-Encoding: gzip\r\n" in reader.raw
        assert [number(reader.next()) for _ in range(3)] == list(range(first + 1, first + 4))


def test_a_client_goes_on_where_it_was(port: int, transport: str) -> None:
    with Reader(port, transport, STREAM) as reader:
        first, second = reader.take(2)
    with Reader(port, transport, STREAM) as reader:
        reader.take(4)  # others have come meanwhile
    with Reader(port, transport, STREAM, f"Last-Event-ID: {second.id}") as reader:
        assert [number(event) for event in reader.take(6)] == [number(first) + 2 + n for n in range(6)]


def test_a_proxy_may_be_deaf_and_long_polls_come_through_all_the_same(ports: dict[str, int], running: Pserve) -> None:
    for name in STREAMS:
        with Client(ports["deaf"]) as client, Reader(running.port, "sse", STREAM) as beside:
            client.get(f"{STREAM}?transport={name}")
            beside.take(5)
            client.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.sock.recv(1)
    with Reader(ports["deaf"], "longpoll", STREAM) as reader:
        numbers = [number(event) for event in reader.take(5)]
    assert numbers == list(range(numbers[0], numbers[0] + 5))


# -- in Chromium


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with chromium() as driver:
        yield driver
        driver.get("about:blank")


def text(driver: Any, id: str) -> str:
    return str(driver.execute_script("return document.getElementById(arguments[0]).textContent", id)).strip()


def state(driver: Any) -> str:
    """What the page says of its connection: its colour is by this word."""
    return str(driver.execute_script("return document.getElementById('state').dataset.state"))


def choose(driver: Any, transport: str) -> None:
    driver.execute_script(f"document.querySelector('input[value={transport}]').click()")


def received(driver: Any) -> int:
    return int(text(driver, "received"))


@pytest.mark.parametrize("application", ["plain", "gzip", "http11"])
def test_push_js_is_live_by_each_transport(chrome: Any, ports: dict[str, int], application: str) -> None:
    chrome.get(f"http://127.0.0.1:{ports[application]}/")
    for transport in (*TRANSPORTS, "multipart"):
        choose(chrome, transport)
        before = received(chrome)
        wait_until(lambda before=before: received(chrome) >= before + 5, BOUND, f"messages by {transport}")
        assert state(chrome) == "live", transport
        assert text(chrome, "why") == ""
    assert text(chrome, "missed") == "0"
    assert text(chrome, "used") == "4 of 4"


@pytest.mark.parametrize("transport", ["multipart", "sse", "jsonlines"])
def test_push_js_falls_back_behind_a_deaf_proxy_and_says_so(chrome: Any, ports: dict[str, int], transport: str) -> None:
    chrome.get(f"http://127.0.0.1:{ports['deaf']}/")
    choose(chrome, transport)
    wait_until(lambda: state(chrome) == "fallback", BOUND, "the fallback")
    before = received(chrome)
    wait_until(lambda: received(chrome) >= before + 5, BOUND, "messages by long polling")
    assert text(chrome, "state-text") == "Live by long polling"
    assert "othing came for 2 s, as if something on the way holds the stream back" in text(chrome, "why")
    assert text(chrome, "missed") == "0"


LISTEN = """
window.told = [];
const source = new EventSource(arguments[0]);
source.onopen = () => told.push(["open"]);
for (const kind of ["message", "reset", "end"]) {
  source.addEventListener(kind, ({ lastEventId }) => told.push([kind, lastEventId]));
}
"""


def told(driver: Any) -> list[tuple[str, ...]]:
    """What the EventSource of LISTEN has been told: messages with their ids, resets, openings."""
    return [tuple(event) for event in json.loads(driver.execute_script("return JSON.stringify(told)"))]


def test_an_event_source_misses_nothing_while_the_proxy_restarts(chrome: Any, running: Pserve, tmp_path: Path) -> None:
    ports = {"plain": free_port()}
    with nginx(tmp_path, running.port, ports):
        chrome.get(f"http://127.0.0.1:{ports['plain']}/primes")
        chrome.execute_script(LISTEN, f"{STREAM}?transport=sse")
        wait_until(lambda: len(told(chrome)) > 4, BOUND, "messages")
    with Reader(running.port, "sse", STREAM) as beside:
        beside.take(5)  # which the browser cannot get
    with nginx(tmp_path, running.port, ports):
        wait_until(lambda: told(chrome).count(("open",)) == 2, BOUND, "the browser")
        count = len(told(chrome))
        wait_until(lambda: len(told(chrome)) > count + 3, BOUND, "messages")
        events = told(chrome)
    assert {event[0] for event in events} == {"open", "message"}
    numbers = [int(event[1].rpartition("-")[2]) for event in events if event[0] == "message"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_an_event_source_is_told_once_that_the_server_is_a_new_one(chrome: Any, tmp_path: Path) -> None:
    port = free_port()
    app = {"pushdemo.interval": INTERVAL}
    with pserve(tmp_path, app, port=port) as server:
        chrome.get(f"{server.url}/primes")
        chrome.execute_script(LISTEN, f"{STREAM}?transport=sse")
        wait_until(lambda: len(told(chrome)) > 4, BOUND, "messages")
        assert server.stop() == 0
    with pserve(tmp_path, app, port=port):
        wait_until(lambda: told(chrome).count(("open",)) == 2, BOUND, "the browser")
        count = len(told(chrome))
        wait_until(lambda: len(told(chrome)) > count + 3, BOUND, "messages")
        events = told(chrome)
    assert [event[0] for event in events].count("reset") == 1
    reset = next(place for place, event in enumerate(events) if event[0] == "reset")
    for part in (events[:reset], events[reset:]):
        ids = [event[1] for event in part if event[0] == "message"]
        assert len({id.partition("-")[0] for id in ids}) == 1
        numbers = [int(id.rpartition("-")[2]) for id in ids]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
