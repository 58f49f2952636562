"""Clients that close one side, read slowly or not at all, or vanish; and a child process that keeps their sockets."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.readers import Pushing, pushing
from tests.support import PATIENCE, SOON, Client, Pserve, pserve, wait_until

STREAMS = ("multipart", "sse", "jsonlines")
NEWSROOM = {"use": "call:tests.fixtureapps.newsroom:main"}


@pytest.fixture
def site() -> Iterator[Pushing]:
    with pushing({"heartbeat": 1000, "longpoll.timeout": 1000}) as running:
        running.topics["news"].publish("first")
        yield running


# -- half-closed


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("transport", STREAMS)
def test_a_stream_whose_client_closes_its_side_has_its_ordinary_end(
    site: Pushing, transport: str, version: str
) -> None:
    with site.client(f"/push/news?transport={transport}", version=version) as client:
        client.sock.shutdown(socket.SHUT_WR)
        said = client.rest()
    assert said.startswith(b"HTTP/1.")
    assert b"first" in said
    assert re.search(rb'(retry: |X-Retry: |"retry": )\d+', said.partition(b"first")[2])
    assert version == "1.0" or said.endswith(b"\r\n0\r\n\r\n")
    wait_until(lambda: not site.topics["news"].clients)


@pytest.mark.parametrize("apart", [False, True])
def test_a_poll_whose_client_closes_its_side_is_answered_and_so_is_the_request_behind_it(
    site: Pushing, apart: bool
) -> None:
    last = site.topics["news"].id_at(1)
    with Client(site.port) as client:
        poll = f"GET /push/news?transport=longpoll&last_event_id={last} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        behind = b"GET /push/news?transport=longpoll HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sock.sendall(poll if apart else poll + behind)
        wait_until(lambda: site.topics["news"].clients)
        if apart:
            client.sock.sendall(behind)
        client.sock.shutdown(socket.SHUT_WR)
        status, _, body = client.response()
        assert (status, json.loads(body)) == (200, {"state": "waiting", "messages": [], "last_event_id": last})
        status, _, body = client.response()
        assert [message["content"] for message in json.loads(body)["messages"]] == ["first"]
        assert client.rest() == b""
    wait_until(lambda: not site.topics["news"].clients)


def test_a_stream_that_is_being_written_is_finished_before_it_ends(site: Pushing) -> None:
    with site.client("/push/news?transport=jsonlines") as client:
        client.until(b"first")
        wait_until(lambda: site.topics["news"].clients)
        site.topics["news"].publish("x" * 8_000_000)
        client.until(b"xxx")
        client.sock.shutdown(socket.SHUT_WR)
        said = client.rest()
        assert said.count(b"x") == 8_000_000 - 3
        assert b'"retry": ' in said
        assert said.endswith(b"\r\n0\r\n\r\n")


# -- large messages


@contextmanager
def newsroom_process(tmp_path: Path, **ini: object) -> Iterator[Pserve]:
    with pserve(tmp_path, NEWSROOM | {f"pushdemo.{key}": value for key, value in ini.items()}) as process:
        yield process


def resident(process: Pserve) -> int:
    """Bytes of memory of a server's process."""
    pages = int(Path(f"/proc/{process.process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def temporary_files(process: Pserve) -> list[str]:
    """Open files that have no name any more."""
    links = list(Path(f"/proc/{process.process.pid}/fd").iterdir())
    return [target for link in links if "(deleted)" in (target := _target(link))]


def _target(link: Path) -> str:
    with suppress(OSError):
        return os.readlink(link)
    return ""


def publish(process: Pserve, body: bytes) -> None:
    with Client(process.port) as client:
        head = f"POST /publish/news HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sock.sendall(head.encode() + body)
        assert client.response()[0] == 200


def deaf(stack: ExitStack, port: int, path: str) -> socket.socket:
    """A client that asks and does not read."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


@pytest.mark.parametrize("path", ["/push/news?transport=sse", "/push/news?transport=multipart"])
def test_newcomers_who_do_not_read_have_no_copies_of_a_large_message(tmp_path: Path, path: str) -> None:
    with newsroom_process(tmp_path) as process, ExitStack() as stack:
        publish(process, b"x" * 10_000_000)
        before = resident(process)
        published = temporary_files(process)  # WebOb's, of the body: it lasts until Pyramid's request is collected
        for _ in range(40):
            deaf(stack, process.port, path)
        wait_until(lambda: held(process) == 40)
        assert resident(process) - before < 100_000_000  # what one client costs too: the forms on the way to its bytes
        assert set(temporary_files(process)) <= set(published)


@pytest.mark.heavy
@pytest.mark.parametrize("waiting", [True, False])
def test_long_polls_share_the_bytes_of_a_large_answer_and_pages_go_on(tmp_path: Path, waiting: bool) -> None:
    size = 20_000_000
    with newsroom_process(tmp_path) as process, ExitStack() as stack:
        if not waiting:
            publish(process, b"x" * size)
        before = resident(process)
        polls = [deaf(stack, process.port, "/push/news?transport=longpoll") for _ in range(20)]
        if waiting:
            wait_until(lambda: held(process) == 20)
            publish(process, b"x" * size)
        for poll in polls:
            assert poll.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        with Client(process.port) as client:
            assert client.get("/page").response()[2] == b"the page"
        assert time.monotonic() - began < SOON
        assert resident(process) - before < 8 * size
        assert len(temporary_files(process)) <= 1  # the body of the request that has published it
        reader = Client.__new__(Client)
        reader.sock, reader.buffer = polls[0], b"HTTP/1.1 200"
        reader.sock.settimeout(PATIENCE)
        (message,) = json.loads(reader.response()[2])["messages"]
        assert message["content"] == "x" * size
        assert reader.get("/page").response()[2] == b"the page", "the connection goes on"


def test_the_whole_history_by_long_polls_comes_in_pieces(site: Pushing) -> None:
    texts = [f"{number}:" + "x" * 100_000 for number in range(20)]
    for text in texts:
        site.topics["news"].publish(text)
    with Client(site.port) as client:
        got, last, answers = [], "earliest", 0
        while len(got) < 21:
            body = client.get(f"/push/news?transport=longpoll&last_event_id={last}").response()[2]
            assert len(body) < 400_000
            answer = json.loads(body)
            got += [message["content"] for message in answer["messages"]]
            last, answers = answer["last_event_id"], answers + 1
    assert got == ["first", *texts]
    assert answers >= 7


def held(process: Pserve) -> int:
    with Client(process.port) as client:
        return int(json.loads(client.get("/held").response()[2])["news"])


# -- a slow viewer


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="TCP_NOTSENT_LOWAT")
def test_a_slow_viewer_gets_pictures_that_are_young(tmp_path: Path) -> None:
    """Pictures of 50 KB, 5 a second, and a reader of 85 KB/s, in a process of its own as a browser is."""
    seconds, rate, size = 15, 85_000, 50_000
    with pushing({"history": 1}, news={"content_type": "image/png"}) as site, site.client("/push/news") as client:
        client.sock.settimeout(PATIENCE)
        over = threading.Event()

        def show() -> None:
            while not over.wait(0.2):
                site.topics["news"].publish(f"at {time.monotonic():.6f} ".encode().ljust(size, b"."))

        showing = threading.Thread(target=show)
        showing.start()
        ages: list[float] = []
        data, began, read = b"", time.monotonic(), 0
        while time.monotonic() < began + seconds:
            piece = client.sock.recv(4_096)
            read += len(piece)
            data = (data + piece)[-8_192:]
            for found in re.findall(rb"at ([0-9.]+) ", piece):
                ages.append(time.monotonic() - float(found))
            time.sleep(max(0.0, began + read / rate - time.monotonic()))
        over.set()
        showing.join()
    assert len(ages) > 10
    assert sorted(ages)[len(ages) // 2] <= 3.0, ages


# -- vanished


@contextmanager
def other_machine(name: str, address: str) -> Iterator[str]:
    """A network namespace that reaches this machine at the address that is given."""
    here, there = f"{name}a", f"{name}b"
    for command in (
        f"ip netns add {name}",
        f"ip link add {here} type veth peer name {there}",
        f"ip link set {there} netns {name}",
        f"ip addr add {address}.1/24 dev {here}",
        f"ip link set {here} up",
        f"ip netns exec {name} ip addr add {address}.2/24 dev {there}",
        f"ip netns exec {name} ip link set {there} up",
    ):
        subprocess.run(command.split(), capture_output=True, check=True)
    try:
        yield f"{address}.1"
    finally:
        subprocess.run(["ip", "link", "del", here], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


ASK = """
import socket, sys, time
for path in sys.argv[3:]:
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    sock.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode())
    globals()[path] = sock
time.sleep(600)
"""


@pytest.mark.heavy
@pytest.mark.network_namespaces
def test_a_client_that_vanishes_without_a_word_is_gone_in_time(tmp_path: Path) -> None:
    heartbeat, stall_timeout = 2, 3
    ini = {"heartbeat": heartbeat, "stall_timeout": stall_timeout, "longpoll.timeout": 600}
    name = f"p{os.getpid() % 100_000}"
    with other_machine(name, f"10.213.{os.getpid() % 250}") as address, ExitStack() as stack:
        process = stack.enter_context(
            pserve(tmp_path, NEWSROOM | {f"pushdemo.{k}": v for k, v in ini.items()}, {"listen": "0.0.0.0:0"})
        )
        paths = [f"/push/news?transport={transport}" for transport in ("sse", "multipart", "longpoll")]
        command = ["ip", "netns", "exec", name, sys.executable, "-c", ASK, address, str(process.port), *paths]
        client = stack.enter_context(subprocess.Popen(command))
        stack.callback(client.kill)
        wait_until(lambda: held(process) == 3)
        subprocess.run(["ip", "link", "set", f"{name}a", "down"], check=True)
        began = time.monotonic()
        wait_until(lambda: held(process) == 0, timeout=heartbeat + stall_timeout + 5, what="the end of the vanished")
        assert time.monotonic() - began > 1


# -- a child that keeps the sockets


@pytest.mark.parametrize("end", ["stream", "page"])
def test_a_response_ends_although_a_forked_child_keeps_its_socket(site: Pushing, end: str) -> None:
    path = "/push/news?transport=sse" if end == "stream" else "/push/news?transport=longpoll&last_event_id=earliest"
    with site.client(path, "Connection: close", version="1.0") as client:
        client.until(b"\r\n\r\n")
        go_on = multiprocessing.get_context("fork").Event()
        child = multiprocessing.get_context("fork").Process(target=go_on.wait, args=(60,))
        child.start()
        try:
            site.topics["news"].end()
            assert client.rest()
        finally:
            go_on.set()
            child.join()


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="TCP_NOTSENT_LOWAT")
def test_a_steady_slow_reader_of_a_large_message_is_not_cut() -> None:
    """The kernels' buffers hold some 130 KB of it at most: less than it reads within the timeout."""
    size, rate = 1_000_000, 85_000
    with pushing({"stall_timeout": 3}) as site, site.client("/push/news?transport=jsonlines") as client:
        wait_until(lambda: site.topics["news"].clients)
        site.topics["news"].publish("x" * size)
        got, began = 0, time.monotonic()
        while got < size:
            data = client.sock.recv(2_048)
            assert data
            got += data.count(b"x")
            time.sleep(max(0.0, began + got / rate - time.monotonic()))
