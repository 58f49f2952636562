"""A real `pserve` on real sockets: what a client sees of the demo, of its settings, and of awkward messages."""

from __future__ import annotations

import email
import io
import json
import re
import selectors
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sseclient

from tests.fixtureapps import texts
from tests.support import PATIENCE, Client, Pserve, port_of, pserve, pserve_command, serving, wait_until, write_ini

STREAM = "/server/index"
LONG = 1000.0  # seconds between two messages where a test must see none but the first
SHORT = 0.2  # seconds between two messages where a test waits for several


class Parts:
    """A multipart stream, part by part as it comes."""

    def __init__(self, client: Client) -> None:
        status, self.headers = client.head()
        assert status == 200
        assert self.headers["content-type"].startswith("multipart/x-mixed-replace")
        self.boundary = self.headers["content-type"].partition("boundary=")[2]
        self._line = f"--{self.boundary}\r\n".encode()
        self._client = client
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        self._buffer = b""
        assert self._until(self._line) == self._line

    def _until(self, mark: bytes) -> bytes:
        end = time.monotonic() + PATIENCE  # heartbeats would keep a socket's own timeout from ever being reached
        while mark not in self._buffer:
            data = self._client.chunk() if self._chunked else self._client.some()
            assert data, f"the stream ended after {self._buffer!r}"
            assert time.monotonic() < end, f"nothing but {self._buffer!r} within {PATIENCE} s"
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(mark)
        return found + mark

    def take(self) -> tuple[dict[str, str], bytes]:
        """The next part: its headers and body, read up to the boundary line behind it."""
        lines = self._until(b"\r\n\r\n").decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines if line)
        body = self._until(b"\r\n" + self._line).removesuffix(b"\r\n" + self._line)
        assert len(body) == int(fields["Content-Length"])
        return fields, body


def message(body: bytes) -> str:
    """The text of a message's XML document."""
    root = ElementTree.fromstring(body)
    assert root.tag == "message"
    return root.text or ""


def whole(client: Client) -> tuple[dict[str, str], bytes]:
    """Headers and body of a chunked response that ends."""
    status, headers = client.head()
    assert status == 200
    return headers, b"".join(iter(client.chunk, b""))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pserve]:
    """The demo, which makes one message and then none for long."""
    with pserve(tmp_path_factory.mktemp("slow"), {"pushdemo.interval": LONG}) as running:
        yield running


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pserve]:
    """An application whose topics end, and whose messages are awkward."""
    app = {"use": "call:tests.fixtureapps.texts:main", "pushdemo.longpoll.timeout": 0.1}
    with pserve(tmp_path_factory.mktemp("awkward"), app) as running:
        yield running


# -- the stream


def test_the_first_part_comes_at_once_with_the_boundary_line_behind_it(slow: Pserve) -> None:
    with Client(slow.port) as client:
        fields, body = Parts(client.get(STREAM)).take()  # it ends with the line, and nothing follows for 1,000 s
    assert fields["Content-Type"] == "application/xml"
    assert re.fullmatch(r"[0-9a-f]+-\d+", fields["X-Message-Id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", message(body))


@pytest.mark.heavy
def test_then_one_part_comes_every_interval(tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": SHORT}) as running, Client(running.port) as client:
        stream = Parts(client.get(STREAM))
        came = [(stream.take()[0]["X-Message-Id"], time.monotonic()) for _ in range(9)]
    numbers = [int(id.rpartition("-")[2]) for id, _ in came]
    assert numbers == list(range(1, 10))
    assert 6 * SHORT < came[-1][1] - came[0][1] < 24 * SHORT, "8 intervals, on a machine that may be busy"


def test_the_boundary_is_another_in_each_process(slow: Pserve, awkward: Pserve) -> None:
    boundaries = []
    for port, path in (slow.port, STREAM), (awkward.port, "/push/silent"):
        with Client(port) as client:
            boundaries.append(Parts(client.get(path)).boundary)
    assert len(boundaries[0]) >= 32
    assert boundaries[0] != boundaries[1]


def test_nobody_on_the_way_may_keep_compress_or_collect_it(slow: Pserve) -> None:
    with Client(slow.port) as client:
        headers = Parts(client.get(STREAM, "Accept-Encoding: gzip")).headers
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["vary"] == "Accept"
    assert "content-encoding" not in headers


def test_an_http_1_0_client_gets_the_stream_without_chunks(slow: Pserve) -> None:
    with Client(slow.port) as client:
        stream = Parts(client.get(STREAM, version="1.0"))
        assert "transfer-encoding" not in stream.headers
        assert message(stream.take()[1])


def test_head_ends_at_once_and_starts_nothing() -> None:
    app = texts.main()
    topic = app.registry["pushdemo.topics"]["texts"]
    with serving(app) as server, Client(port_of(server)) as client:
        status, headers = client.get("/push/texts", "Connection: close", method="HEAD").head()
        assert (status, headers["content-type"].partition(";")[0]) == (200, "multipart/x-mixed-replace")
        assert client.rest() == b""
    assert (topic.head, topic.clients) == (0, 0)


@pytest.mark.heavy
def test_20_clients_get_each_message_at_the_same_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interval, rounds = 0.25, 10
    with pserve(tmp_path, {"pushdemo.interval": interval}) as running, ExitStack() as stack:
        clients = []
        start = time.monotonic()
        for number in range(20):  # they come one after the other over a whole interval: no two would sleep in step
            wait_until(lambda due=start + number * interval / 20: time.monotonic() >= due)
            clients.append(stack.enter_context(Client(running.port)).get(STREAM))
        came = arrivals(clients, rounds)
    spreads = [max(times.values()) - min(times.values()) for times in came]
    median, most = statistics.median(spreads), max(spreads)
    with capsys.disabled():
        print(f"\n20 clients, {len(spreads)} messages, spread: median {median * 1e3:.2f} ms, max {most * 1e3:.2f} ms")
    assert median < 0.05


def arrivals(clients: list[Client], rounds: int) -> list[dict[int, float]]:
    """When each client (by number) got each of the first `rounds` messages that came while all of them were there."""
    came: dict[int, dict[int, float]] = defaultdict(dict)
    with selectors.DefaultSelector() as selector:
        for number, client in enumerate(clients):
            selector.register(client.sock, selectors.EVENT_READ, (number, client))
        end = time.monotonic() + PATIENCE
        while True:
            complete = [times for _, times in sorted(came.items()) if len(times) == len(clients)]
            # The first message that all have is the one that the last of them was given when it came.
            if len(complete) > rounds:
                return complete[1:]
            assert time.monotonic() < end, f"only {len(complete)} messages came to all clients"
            for key, _ in selector.select(PATIENCE):
                number, client = key.data
                client.buffer += client.sock.recv(65_536)
                now = time.monotonic()
                while found := re.search(rb"X-Message-Id: \w+-(\d+)\r\n\r\n.*?\r\n--\w+\r\n", client.buffer, re.DOTALL):
                    came[int(found[1])][number] = now
                    client.buffer = client.buffer[found.end() :]


# -- awkward messages


def test_any_text_arrives_by_multipart(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        headers, body = whole(client.get("/push/texts?last_event_id=earliest"))
    content_type = headers["content-type"]
    parsed = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts = parsed.get_payload()
    assert isinstance(parts, list)
    documents = [part.get_payload(decode=True) for part in parts if part["Content-Length"]]
    expected = texts.texts_with(content_type.partition("boundary=")[2])
    assert [message(document) for document in documents] == [*expected, texts.CONTROLS_ARRIVE]


def test_any_bytes_arrive_by_multipart(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        headers, body = whole(client.get("/push/pictures?last_event_id=earliest"))
    parsed = email.message_from_bytes(f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body)
    parts = [part for part in parsed.walk() if part["Content-Length"]]
    assert [part.get_content_type() for part in parts] == ["image/png"] * len(texts.PICTURES)
    assert [part.get_payload(decode=True) for part in parts] == texts.PICTURES


def boundary_of(running: Pserve) -> str:
    with Client(running.port) as client:
        return client.get("/push/texts", method="HEAD").head()[1]["content-type"].partition("boundary=")[2]


def test_any_text_arrives_by_server_sent_events(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        _, body = whole(client.get("/push/texts?last_event_id=earliest&transport=sse"))
    events = list(sseclient.SSEClient(io.BytesIO(body)).events())
    documents = [event.data.encode() for event in events if event.event == "message"]
    expected = texts.texts_with(boundary_of(awkward))
    assert [message(document) for document in documents] == [*expected, texts.CONTROLS_ARRIVE]
    assert events[-1].event == "end"


def test_any_text_arrives_by_json_lines(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        _, body = whole(client.get("/push/texts?last_event_id=earliest&transport=jsonlines"))
    lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
    contents = [line["content"].encode() for line in lines if "content" in line]
    expected = texts.texts_with(boundary_of(awkward))
    assert [message(content) for content in contents] == [*expected, texts.CONTROLS_ARRIVE]
    assert lines[-1] == {"state": "done"}


def test_any_text_arrives_by_long_polling(awkward: Pserve) -> None:
    came: list[str] = []
    answer = {"last_event_id": "earliest", "state": "ready"}
    with Client(awkward.port) as client:
        while answer["state"] != "done":
            path = f"/push/texts?transport=longpoll&last_event_id={answer['last_event_id']}"
            answer = json.loads(client.get(path).response()[2])
            came += [entry["content"] for entry in answer["messages"]]
    expected = texts.texts_with(boundary_of(awkward))
    assert [message(content.encode()) for content in came] == [*expected, texts.CONTROLS_ARRIVE]


def test_a_json_topic_brings_values(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        _, body = whole(client.get("/push/values?last_event_id=earliest&transport=jsonlines"))
    lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
    assert [line["content"] for line in lines if "content" in line] == texts.VALUES


def test_a_finished_source_ends_the_stream_with_the_closing_boundary(awkward: Pserve) -> None:
    with Client(awkward.port) as client:
        headers, body = whole(client.get("/push/texts"))  # the last chunk has come, or this would wait
        boundary = headers["content-type"].partition("boundary=")[2]
        assert body.endswith(f"\r\n--{boundary}--\r\n".encode())


# -- settings


@pytest.mark.heavy
def test_the_duration_in_the_ini_is_how_long_a_value_is_shown(tmp_path: Path) -> None:
    settings = {"pushdemo.interval": SHORT}
    with pserve(tmp_path, settings | {"pushdemo.memorize.duration": 0}) as running:
        assert len(shown(running.port)) > 1
    with pserve(tmp_path, settings | {"pushdemo.memorize.duration": 60}, port=running.port) as running:
        assert len(shown(running.port)) == 1


def shown(port: int) -> set[str]:
    """When the data was gathered that one client is shown in more than a second: these are times in whole seconds."""
    with Client(port) as client:
        stream = Parts(client.get(STREAM))
        messages = [ElementTree.fromstring(stream.take()[1]) for _ in range(7)]
    assert len({message.text for message in messages}) > 1, "each message is new"
    return {message.attrib["gathered"] for message in messages}


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("pushdemo.intervall", "3", "did you mean pushdemo.interval?"),
        ("pushdemo.interval", "0", "must be a number of seconds above 0, such as 5"),
        ("pushdemo.memorize.duration", "soon", "must be a number of seconds, 0 or more, such as 15"),
        ("pushdemo.memorize.duration", "-1", "must be a number of seconds, 0 or more, such as 15"),
        ("pushdemo.max_clients", "1e4", "must be a whole number, 1 or more, such as 10000"),
    ],
)
def test_a_wrong_setting_keeps_it_from_starting(tmp_path: Path, key: str, value: str, remedy: str) -> None:
    command = pserve_command(write_ini(tmp_path, {key: value}))
    ended = subprocess.run(**command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode != 0
    last = ended.stderr.splitlines()[-1]
    assert f"{key} = {value}" in last
    assert remedy in last


# -- limits


def assert_refused(port: int, path: str, reason: str) -> None:
    with Client(port) as client:
        status, headers, body = client.get(path).response()
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert reason in body.decode()


def assert_page(port: int) -> None:
    with Client(port) as client:
        status, _, body = client.get("/").response()
    assert (status, b"<html" in body) == (200, True)


def test_a_full_server_says_so_while_its_pages_answer(tmp_path: Path) -> None:
    reason = "all 2 places for clients are taken (pushdemo.max_clients)"
    with pserve(tmp_path, {"pushdemo.max_clients": 2, "pushdemo.interval": LONG}) as running:
        with Client(running.port) as first, Client(running.port) as second:
            Parts(first.get(STREAM)).take()
            Parts(second.get(STREAM)).take()
            for transport in ("multipart", "sse", "jsonlines", "longpoll"):
                assert_refused(running.port, f"{STREAM}?transport={transport}", reason)
            assert_page(running.port)
        wait_until(lambda: admitted(running.port), what="the place of a client that has left")


def admitted(port: int) -> bool:
    with Client(port) as client:
        return client.get(STREAM).head()[0] == 200


def test_a_server_that_gives_each_client_a_thread_keeps_the_last_for_its_pages(tmp_path: Path) -> None:
    settings = {"pushdemo.max_threads": 3, "pushdemo.interval": SHORT}
    server = {"use": "egg:waitress", "threads": 4}
    with pserve(tmp_path, settings, server) as running, ExitStack() as stack:
        clients = [stack.enter_context(Client(running.port)) for _ in range(3)]
        streams = [Parts(client.get(STREAM)) for client in clients]
        reason = "all 3 threads that may hold a client are taken (pushdemo.max_threads)"
        assert_refused(running.port, STREAM, reason)
        assert_page(running.port)
        seen = [{stream.take()[0]["X-Message-Id"] for _ in range(3)} for stream in streams]
        assert all(len(ids) == 3 for ids in seen), "the held ones go on"
