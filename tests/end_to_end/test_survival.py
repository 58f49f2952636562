"""What a server must survive, on real sockets and in the size that is asked of it.

Most have a size for every day; those with a bigger one (marked `heavy`), and those that take seconds, run it where
CI=true, and with `-m heavy`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.client
import json
import os
import random
import re
import resource
import select
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pushdemo.topics.topic import Topic
from tests.fixtureapps import newsroom
from tests.support import (
    PATIENCE,
    SOON,
    Client,
    Pserve,
    free_port,
    port_of,
    pserve,
    pserve_command,
    serving,
    wait_until,
    write_ini,
)

APP = {"use": "call:tests.fixtureapps.newsroom:main"}
LAST_CHUNK = b"\r\n0\r\n\r\n"


def heavy(*sizes: int) -> Any:
    """Sizes of which the last is for a machine that has nothing else to do."""
    *daily, big = sizes
    return [*daily, pytest.param(big, marks=pytest.mark.heavy)]


@pytest.fixture(scope="module", autouse=True)
def _open_files() -> None:
    """This process is as many clients as a test asks for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def needs_open_files(count: int) -> None:
    """The server has as many as this process: a limit that it inherits."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < count + 300:
        message = f"needs {count + 300} open files, and this process may have {hard}: ulimit -Hn, as root"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


class Running:
    """A `pserve` with the application of fixtureapps/newsroom.py, seen from outside."""

    def __init__(self, process: Pserve) -> None:
        self.process = process
        self.port = process.port
        self.proc = Path(f"/proc/{process.process.pid}")
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(self, path: str, body: str | None = None) -> bytes:
        self.connection.request("GET" if body is None else "POST", path, body)
        response = self.connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return data

    def publish(self, text: str) -> str:
        return self.ask("/publish/news", text).decode()

    @property
    def held(self) -> int:
        """Clients, as the application counts them: places taken and topics joined are one number."""
        held = json.loads(self.ask("/held"))
        return int(held["places"]) if held["places"] == held["news"] else -1

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int((self.proc / "statm").read_text().split()[1]) * resource.getpagesize()

    @property
    def files(self) -> int:
        return len(os.listdir(self.proc / "fd"))

    @property
    def threads(self) -> int:
        return len(os.listdir(self.proc / "task"))

    @property
    def queued(self) -> float:
        """Seconds that its threads, in sum, were ready to run while others on this machine had the processors."""
        nanoseconds = 0
        for file in self.proc.glob("task/*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                nanoseconds += int(file.read_text().split()[1])
        return nanoseconds / 1e9


@contextlib.contextmanager
def running_with(tmp_path: Path, **ini: object) -> Iterator[Running]:
    with pserve(tmp_path, APP | {f"pushdemo.{key}": value for key, value in ini.items()}) as process:
        running = Running(process)
        try:
            yield running
        finally:
            running.connection.close()
        assert "Traceback" not in process.log


def reset(sock: socket.socket) -> None:
    """Close with a reset (RST) instead of a farewell."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Swarm:
    """Many clients of one path, in one thread. What comes is digested, but for the headers and the last bytes."""

    def __init__(self, port: int, path: str, count: int, *, reading: bool = True) -> None:
        self.poll = select.epoll()
        self.socks: dict[int, socket.socket] = {}
        self.tails: dict[int, bytes] = {}
        self.digests: dict[int, Any] = {}
        self.ended: set[int] = set()
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(count):
            sock = socket.socket()
            if not reading:  # a small window and small segments: the kernel's buffers on both sides stay small
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", port))
            sock.sendall(request)
            sock.setblocking(False)
            self.socks[sock.fileno()] = sock
            self.tails[sock.fileno()] = b""
            if reading:
                self.poll.register(sock, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self.socks)

    def read(self, until: Callable[[int], bool], timeout: float = 3 * PATIENCE) -> float:
        """Read until `until` is true of each client's number; returns when the last was (monotonic seconds)."""
        left = {number for number in self.socks if not until(number)}
        end = time.monotonic() + timeout
        while left:
            assert time.monotonic() < end, f"{len(left)} of {len(self)} clients still wait after {timeout} s"
            for number, _ in self.poll.poll(1.0):
                self._read(number)
                if until(number):
                    left.discard(number)
        return time.monotonic()

    def _read(self, number: int) -> None:
        try:
            data = self.socks[number].recv(262_144)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended.add(number)
            self.poll.unregister(number)
            return
        if number in self.digests:
            self.digests[number].update(data)
            self.tails[number] = (self.tails[number] + data)[-200:]
            return
        head, mark, body = (self.tails[number] + data).partition(b"\r\n\r\n")
        self.tails[number] = body if mark else head
        if mark:
            assert head.startswith(b"HTTP/1.1 200"), head
            self.digests[number] = hashlib.blake2b(body)

    def join(self) -> Swarm:
        """Wait until each has its headers and first bytes."""
        self.read(lambda number: number in self.digests and bool(self.tails[number]))
        return self

    def await_text(self, text: str) -> float:
        """Wait until the newest bytes of each hold `text`; returns when the last did."""
        mark = text.encode()
        return self.read(lambda number: mark in self.tails[number])

    def await_end(self) -> None:
        """Wait until each connection has ended."""
        self.read(lambda number: number in self.ended)

    def close(self) -> None:
        for sock in self.socks.values():
            sock.close()
        self.poll.close()


def swarm(stack: contextlib.ExitStack, running: Running, path: str, count: int, *, reading: bool = True) -> Swarm:
    made = Swarm(running.port, path, count, reading=reading)
    stack.callback(made.close)
    return made


# -- clients that do not read


def spread(running: Running, readers: Swarm, texts: list[str]) -> float:
    """The median, over some messages, of the seconds from its publication until the last reader has it.

    Those for which the server has waited for a processor are those of whoever else is on this machine.
    """
    times = []
    for text in texts:
        queued, start = running.queued, time.monotonic()
        running.publish(text)
        taken = readers.await_text(text[-20:]) - start
        times.append(taken - (running.queued - queued))
    return statistics.median(times)


@pytest.mark.heavy
@pytest.mark.parametrize("stalled_count", [50, 200])
def test_clients_that_never_read_among_five_times_as_many_that_do(tmp_path: Path, stalled_count: int) -> None:
    """All get every message; those that read, not much later for those that do not; and these cost little, and go."""
    reader_count, stall_timeout = 5 * stalled_count, 2.0 + stalled_count / 100
    texts = [f"{number:05}{'x' * 4_000}{number:020}" for number in range(60)]
    with running_with(tmp_path, stall_timeout=stall_timeout) as running, contextlib.ExitStack() as stack:
        readers = swarm(stack, running, "/push/news?transport=jsonlines", reader_count).join()
        alone = spread(running, readers, texts[:20])
        swarm(stack, running, "/push/news?transport=jsonlines", stalled_count, reading=False)
        wait_until(lambda: running.held == reader_count + stalled_count)
        memory = running.memory
        spread(running, readers, texts[20:40])  # their sockets are full now
        beside = spread(running, readers, texts[40:])
        grown = running.memory - memory
        assert grown <= stalled_count * 64 * 1024
        assert len({digest.digest() for digest in readers.digests.values()}) == 1
        assert beside <= 1.5 * alone + 0.02, f"{beside * 1000:.0f} ms, and {alone * 1000:.0f} ms without them"
        wait_until(
            lambda: running.held == reader_count, timeout=stall_timeout + PATIENCE, what="the end of the stalled"
        )
        reference = Client(running.port).get("/push/news?transport=jsonlines&last_event_id=earliest")
        stack.callback(reference.sock.close)
        reference.head()
        reference.until(texts[-1].encode())


@pytest.mark.heavy
def test_a_stalled_client_that_wanted_the_whole_history_costs_no_more(tmp_path: Path) -> None:
    count = 200
    with running_with(tmp_path) as running, contextlib.ExitStack() as stack:
        for number in range(100):
            running.publish(f"{number}" + "x" * 12_000)
        first = swarm(stack, running, "/push/news?transport=jsonlines&last_event_id=earliest", count).join()
        wait_until(lambda: running.held == len(first))
        memory = running.memory
        swarm(stack, running, "/push/news?transport=jsonlines&last_event_id=earliest", count, reading=False)
        wait_until(lambda: running.held == 2 * count)
        assert running.memory - memory <= count * 64 * 1024


# -- clients that come and go


@pytest.mark.parametrize("cycles", heavy(1_500, 10_000))
def test_cycles_of_connecting_taking_one_message_and_vanishing(tmp_path: Path, cycles: int) -> None:
    """Half by close, half by reset, by all transports: open files, threads and memory are back where they were."""
    paths = [f"/push/news?transport={name}" for name in ("multipart", "sse", "jsonlines", "longpoll")]

    def cycle(number: int) -> None:
        with socket.create_connection(("127.0.0.1", running.port), PATIENCE) as sock:
            sock.sendall(f"GET {paths[number % 4]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            data = b""
            while b"one message" not in data:
                piece = sock.recv(65_536)
                assert piece, data
                data += piece
            if number % 8 < 4:
                reset(sock)

    with running_with(tmp_path) as running:
        running.publish("one message")
        for number in range(cycles // 4):
            cycle(number)
        wait_until(lambda: running.held == 0)
        files, threads, memory = running.files, running.threads, running.memory
        for number in range(cycles):
            cycle(number)
        wait_until(lambda: running.held == 0)
        wait_until(lambda: running.files <= files, what="the closing of all files")
        assert running.threads == threads
        assert running.memory - memory <= 1_000_000


@pytest.mark.parametrize("count", heavy(300, 5_000))
def test_clients_that_vanish_all_at_once_are_noticed_soon(tmp_path: Path, count: int) -> None:
    needs_open_files(count)
    with running_with(tmp_path) as running:
        with contextlib.ExitStack() as stack:
            swarm(stack, running, "/push/news?transport=sse", 1).join()
        wait_until(lambda: running.held == 0)
        files = running.files  # what the hub opens for the first client stays
        with contextlib.ExitStack() as stack:
            for path in ("/push/news?transport=sse", "/push/news?transport=multipart"):
                swarm(stack, running, path, count // 2).join()
            swarm(stack, running, "/push/news?transport=longpoll", count // 2)
            wait_until(lambda: running.held == count // 2 * 3)
        wait_until(lambda: running.held == 0, timeout=SOON if count < 1_000 else PATIENCE)
        wait_until(lambda: running.files <= files + 1)


@pytest.mark.heavy
def test_a_process_without_files_left_goes_on_when_there_are_some_again(tmp_path: Path) -> None:
    """Its clients keep their streams, and its log does not fill the disk."""
    ini = write_ini(tmp_path, APP | {"pushdemo.max_clients": 1_000})
    command = pserve_command(ini)
    command["args"] = ["/bin/sh", "-c", 'ulimit -n 60; exec "$@"', "sh", *command["args"]]
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(**command, stdout=output, stderr=output) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.kill)
        port = int(
            wait_until(lambda: re.search(r"Serving on http://127\.0\.0\.1:(\d+)", log.read_text()), what="its address")[
                1
            ]
        )
        assert "open files" in log.read_text()
        with Client(port) as publisher, Client(port) as stream:
            stream.get("/push/news?transport=sse").head()
            publisher.get("/page").response()
            greedy = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(100)]
            wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 60)
            spent = sum(map(float, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]))
            threading.Event().wait(1.0)
            spent = sum(map(float, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15])) - spent
            for text in ("a", "b"):
                publisher.get("/publish/news", "Content-Length: 1", method="POST")
                publisher.sock.sendall(text.encode())
                assert publisher.response()[0] == 200
                stream.until(f"data: {text}\n\n".encode())
            for sock in greedy:
                sock.close()
            with Client(port) as client:
                assert client.get("/page").response()[2] == b"the page"
        assert log.stat().st_size < 100_000
        assert spent < 50  # hundredths of a second of CPU time in a second of waiting
        process.terminate()
        assert process.wait(PATIENCE) == 0


# -- publishers


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1, 40))])
def test_publishing_from_any_thread_at_any_time(seed: int) -> None:
    """Before the first client, in hand-overs, in a stop, between two servers: nothing is lost, nothing comes twice."""
    chance = random.Random(seed)
    app = newsroom.main(**{"pushdemo.history": "100000", "pushdemo.longpoll.timeout": "0.2"})
    topic: Topic = app.registry["pushdemo.topics"]["news"]
    over = threading.Event()
    texts: list[str] = []
    one_by_one = threading.Lock()

    def publish(pauses: random.Random) -> None:
        while not over.is_set():
            with one_by_one:
                texts.append(topic.publish(f"{len(texts)}").body.decode())
            if pauses.random() < 0.8:
                over.wait(pauses.random() * 0.01)

    publishers = [threading.Thread(target=publish, args=(random.Random(chance.random()),)) for _ in range(3)]
    readers = [Follower(topic, random.Random(chance.random())) for _ in range(12)]
    for publisher in publishers:
        publisher.start()
    try:
        for _life in range(3):
            over.wait(chance.random() * 0.05)
            with serving(app, threads=chance.choice([1, 2, 4])) as server:
                for reader in readers:
                    reader.start(port_of(server))
                over.wait(0.2 + chance.random() * 0.5)
            for reader in readers:
                reader.stop()
    finally:
        over.set()
        for publisher in publishers:
            publisher.join(PATIENCE)
    assert not any(publisher.is_alive() for publisher in publishers)
    with serving(app) as server:
        for reader in readers:
            reader.follow(port_of(server), until=len(texts))
    for reader in readers:
        assert reader.failure is None
        assert reader.texts == texts
    wait_until(lambda: app.registry["pushdemo.clients"].all.taken == 0)
    assert topic.clients == 0


class Follower:
    """A client that comes and goes as it likes, and resumes where it was."""

    def __init__(self, topic: Topic, chance: random.Random) -> None:
        self.chance = chance
        self.last = f"{topic.epoch}-0"
        self.texts: list[str] = []
        self.failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._thread.start()

    def stop(self) -> None:
        assert self._thread
        self._stopped.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self, port: int) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    self._visit(port, len(self.texts) + self.chance.choice([0, 1, 3, 100]))
                except (ConnectionError, EOFError):  # between the two lives of the server, or at its end
                    self._stopped.wait(0.01)
        except BaseException as failure:
            self.failure = failure

    def follow(self, port: int, until: int) -> None:
        """Read on until there are so many messages."""
        while len(self.texts) < until and self.failure is None:
            self._visit(port, until)

    def _visit(self, port: int, until: int) -> None:
        """Read on until there are so many messages, or the server ends it; then leave, sometimes rudely."""
        with Client(port) as client:
            if self.chance.random() < 0.4:
                while len(self.texts) < until:
                    self._poll(client)
                return
            client.get(f"/push/news?transport=jsonlines&last_event_id={self.last}")
            status, _ = client.head()
            assert status == 200
            data = b""
            while len(self.texts) < until and (piece := client.chunk()):
                *lines, data = (data + piece).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            if self.chance.random() < 0.5:
                reset(client.sock)

    def _poll(self, client: Client) -> None:
        client.get(f"/push/news?transport=longpoll&last_event_id={self.last}")
        status, _, body = client.response()
        assert status == 200
        answer = json.loads(body)
        for message in answer["messages"]:
            self._take(message)
        assert not answer.get("reset")
        self.last = answer["last_event_id"] or self.last

    def _take(self, line: dict[str, Any]) -> None:
        if "content" in line:
            self.texts.append(line["content"])
            self.last = line["id"]
        else:
            assert line["state"] in ("heartbeat", "waiting"), line


# -- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("count", heavy(300, 9_900))
def test_a_signal_ends_everything_cleanly_within_2_seconds(tmp_path: Path, number: signal.Signals, count: int) -> None:
    needs_open_files(count)
    third = count // 3
    with running_with(tmp_path) as running, contextlib.ExitStack() as stack:
        running.publish("before")
        streams = [swarm(stack, running, f"/push/news?transport={name}", third).join() for name in ("multipart", "sse")]
        polls = swarm(stack, running, f"/push/news?transport=longpoll&last_event_id={running.publish('one')}", third)
        wait_until(lambda: running.held == 3 * third, timeout=60)
        running.connection.close()
        queued = [running.queued]
        start = time.monotonic()
        running.process.process.send_signal(number)
        wait_until(lambda: queued.append(running.queued) or running.process.process.poll() is not None)
        taken = time.monotonic() - start
        assert running.process.process.returncode == 0
        assert taken - (max(queued) - queued[0]) < 2.0, "but for what others on this machine have taken of it"
        for clients in streams:
            clients.await_end()
            assert {tail[-len(LAST_CHUNK) :] for tail in clients.tails.values()} == {LAST_CHUNK}
        assert all(b"retry: " in tail for tail in streams[1].tails.values())
        polls.await_end()
        answers = [json.loads(tail) for tail in polls.tails.values()]
        assert {answer["state"] for answer in answers} == {"waiting"}
        assert len({answer["retry"] for answer in answers}) > third / 5  # not all come back at once


def test_a_second_signal_during_the_stop_changes_nothing(tmp_path: Path) -> None:
    with running_with(tmp_path) as running, contextlib.ExitStack() as stack:
        streams = swarm(stack, running, "/push/news?transport=sse", 100).join()
        running.connection.close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            running.process.process.send_signal(number)
        assert running.process.process.wait(PATIENCE) == 0
        streams.await_end()
        assert {tail[-len(LAST_CHUNK) :] for tail in streams.tails.values()} == {LAST_CHUNK}


@pytest.mark.heavy
def test_a_reload_ends_streams_cleanly_and_the_next_process_serves(tmp_path: Path) -> None:
    port = free_port()
    ini = write_ini(tmp_path, APP, {"listen": f"127.0.0.1:{port}"})
    command = pserve_command(ini)
    command["args"].append("--reload")
    log = tmp_path / "log"

    def served(times: int) -> bool:
        return log.read_text().count("Serving on") >= times

    with log.open("wb") as output, subprocess.Popen(**command, stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: served(1), what="the first process")
            with Client(port) as stream, Client(port) as poll:
                stream.get("/push/news?transport=sse").head()
                poll.get("/push/news?transport=longpoll")
                with Client(port) as client:
                    wait_until(lambda: json.loads(client.get("/held").response()[2])["news"] == 2)
                wait_until(lambda: ini.touch() or "changed; reloading" in log.read_text(), what="the reload")
                end = stream.rest()
                assert b"retry: " in end
                assert end.endswith(LAST_CHUNK)
                assert b'"retry": ' in poll.response()[2]
            wait_until(lambda: served(2), what="the second process")
            with Client(port) as client:
                assert client.get("/page").response()[2] == b"the page"
        finally:
            process.terminate()
            process.wait(PATIENCE)
    assert "Traceback" not in log.read_text()


@pytest.mark.heavy
def test_this_process_is_left_as_it_was() -> None:
    """The swarms above left no socket to the collector."""
    gc.collect()
