"""What a client makes of the bytes of each transport, as far as they have come: written from the formats, for tests.

Pure functions for the bytes, and `Reader`: one client, whatever its transport, over a real socket.
"""

from __future__ import annotations

import json
import re
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyramid.config import Configurator

from pushdemo.server import Server
from pushdemo.topics.catalog import Catalog
from tests.support import PATIENCE, Client, free_port, port_of, serving

STREAMS = ("multipart", "sse", "jsonlines")
TRANSPORTS = (*STREAMS, "longpoll")


class Pushing(NamedTuple):
    """A running application: `/push` brings its topics, all or those of `?topic=`, and `/push/{name}` one of them."""

    server: Server
    topics: Catalog

    @property
    def port(self) -> int:
        return port_of(self.server)

    def client(self, path: str, *headers: str, **request: str) -> Client:
        """A raw client that has asked for `path`."""
        return Client(self.port).get(path, *headers, **request)

    def reader(self, transport: str, path: str = "/push/news", *headers: str, last: str | None = None) -> Reader:
        """A client of `transport`, which has yet to connect."""
        return Reader(self.port, transport, path, *headers, last=last)


@contextmanager
def pushing(ini: Mapping[str, object] | None = None, port: int = 0, **topics: Mapping[str, Any]) -> Iterator[Pushing]:
    """An application with `topics` (name: arguments of add_topic; text without a source unless they say otherwise).

    `ini` has settings without the prefix. Without topics there is one, `news`.
    """
    topics = topics or {"news": {}}
    with Configurator(settings={f"pushdemo.{key}": str(value) for key, value in (ini or {}).items()}) as config:
        config.include("pushdemo")
        for name, arguments in topics.items():
            config.add_topic(name, **{"content_type": "text/plain", **arguments})
        config.add_route("all", "/push")
        config.add_route("one", "/push/{name}")
        config.add_view(lambda request: request.push(*topics), route_name="all")
        config.add_view(lambda request: request.push(request.matchdict["name"]), route_name="one")
        app = config.make_wsgi_app()
    with serving(app, listen=f"127.0.0.1:{port or free_port()}") as server:
        yield Pushing(server, app.registry["pushdemo.topics"])


class Event(NamedTuple):
    """One thing that a client is told. `kind` is message, heartbeat, begin, reset, failing, working, retry or end.

    `id` is what it is to come back with: a message's own, or what a reset says.
    """

    kind: str
    id: str = ""
    content: Any = None
    topic: str = ""


FAILING, END = Event("failing"), Event("end")
RESET = Event("reset")  # without an id: a message follows


class Answer(NamedTuple):
    """A response as far as it has come. `whole`: nothing is missing."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def answer(raw: bytes) -> Answer | None:
    """The first response in `raw`, or None while its headers are not there yet."""
    head, mark, body = raw.partition(b"\r\n\r\n")
    if not mark:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, whole = unchunked(body)
    else:
        whole = "content-length" in headers and len(body) >= int(headers["content-length"])
    if headers.get("content-encoding") == "gzip":
        body = zlib.decompressobj(wbits=31).decompress(body)  # as far as it can be read
    return Answer(int(first.split()[1]), headers, body, whole)


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """What has come of a chunked body (RFC 9112 section 7.1), and whether that is all of it."""
    body = b""
    while b"\r\n" in data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        if len(rest) < length + 2:
            break
        assert rest[length : length + 2] == b"\r\n"
        if not length:
            return body, True
        data = rest[length + 2 :]
    return body, False


def multipart(found: Answer) -> Iterator[Event]:
    """RFC 2046 section 5.1. A part is shown when its boundary line has come: not before."""
    line = b"--" + found.headers["content-type"].partition("boundary=")[2].encode()
    data = found.body
    if not data.startswith(line + b"\r\n"):
        assert (line + b"\r\n").startswith(data)
        return
    data = data.removeprefix(line + b"\r\n")
    fields: dict[str, str] = {}
    while b"\r\n" in data:
        field, _, data = data.partition(b"\r\n")
        if field:
            name, _, value = field.decode().partition(": ")
            fields[name] = value
            if name in ("X-Heartbeat", "X-Reset", "X-Failing"):
                kind = "working" if (name, value) == ("X-Failing", "0") else name.removeprefix("X-").lower()
                yield Event(kind, fields.pop("X-Last-Event-Id", ""))
            elif name == "Content-Type" and "X-Last-Event-Id" in fields:
                yield Event("begin", fields.pop("X-Last-Event-Id"))
            elif name == "X-Retry":
                yield Event("retry", content=int(value))
            continue
        if "Content-Length" not in fields:
            if data == line + b"--\r\n":
                yield END
            else:
                assert (line + b"--\r\n").startswith(data)
            return
        length = int(fields["Content-Length"])
        body, behind = data[:length], data[length:]
        mark = b"\r\n" + line + b"\r\n"
        if not behind.startswith(mark):
            assert mark.startswith(behind)
            return
        yield Event("message", fields["X-Message-Id"], body.decode(), fields.get("X-Topic", ""))
        data, fields = behind.removeprefix(mark), {}


def sse(found: Answer) -> Iterator[Event]:
    """HTML (WHATWG) section 9.2.6, "Interpreting an event stream".

    The stream begins with the ordinary `retry`. A later one says that the server goes. A notice's data is JSON that
    names the id to come back with, as the event does where it has an id of its own.
    """
    id, own, name, topic, data = "", "", "", "", list[str]()  # `own`: the event's own id, where it has one
    *lines, _ = re.split("\r\n|\r|\n", found.body.decode(errors="replace"))
    if lines:
        assert re.fullmatch("retry: [0-9]+", lines.pop(0))
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                if name in ("begin", "reset", "failing", "working", "end"):
                    assert json.loads("\n".join(data))["last_event_id"] == own or not own
                    yield Event(name, own)
                else:
                    yield Event("message", id, "\n".join(data), topic or name)
            name, topic, data, own = "", "", [], ""
        elif field == "":
            if value == "heartbeat":
                yield Event("heartbeat")
        elif field == "id":
            id = own = value
        elif field == "event":
            name = value
        elif field == "topic":
            topic = value
        elif field == "data":
            data.append(value)
        elif field == "retry":
            yield Event("retry", content=int(value))
        else:
            raise AssertionError(line)


def jsonlines(found: Answer) -> Iterator[Event]:
    """One JSON object a line."""
    *lines, _ = found.body.split(b"\n")
    for line in lines:
        fields = json.loads(line)
        if "content" in fields:
            yield Event("message", **fields)
        elif fields["state"] == "waiting":
            yield Event("retry", content=fields["retry"])
        else:
            yield Event({"done": "end"}.get(fields["state"], fields["state"]), fields.get("last_event_id", ""))


def longpoll(found: Answer) -> Iterator[Event]:
    """One JSON object."""
    if not found.whole:
        return
    fields = json.loads(found.body)
    if fields.get("reset"):
        yield RESET
    for message in fields["messages"]:
        whole = message is fields["messages"][-1] and "topic" in message  # then the answer's own id covers all topics
        yield Event("message", **(message | {"id": fields["last_event_id"]} if whole else message))
    assert (fields["state"] == "ready") == bool(fields["messages"] or fields.get("reset"))
    assert fields["state"] != "failing" or (fields["failing"] and not fields["messages"])
    if fields.get("failing"):
        yield FAILING
    elif fields["state"] == "done":
        yield END
    elif "retry" in fields:
        yield Event("retry", content=fields["retry"])
    elif fields.get("failing") is False:
        yield Event("working")
    elif fields["state"] == "waiting":
        yield Event("heartbeat")


EVENTS: dict[str, Callable[[Answer], Iterator[Event]]] = {
    "multipart": multipart,
    "sse": sse,
    "sse&ids=topic": sse,
    "jsonlines": jsonlines,
    "longpoll": longpoll,
}


def told(transport: str, raw: bytes) -> list[Event]:
    """What the bytes of a response, as far as they have come, tell a client."""
    found = answer(raw)
    if found is None:
        return []
    assert found.status == 200, found
    return list(EVENTS[transport](found))


class Reader:
    """A client of one transport: it connects when it is first asked for something, and polls again by itself."""

    def __init__(self, port: int, transport: str, path: str, *headers: str, last: str | None = None) -> None:
        self.port = port
        self.transport = transport
        self.path = f"{path}{'&' if '?' in path else '?'}transport={transport}"
        self.headers = headers
        self.last = last  # the last event id, kept as each kind of client keeps it
        self.raw = b""
        self.events: list[Event] = []  # what `raw` tells
        self.seen = 0  # how many of them have been taken
        self.client: Client | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def start(self) -> Reader:
        """Connect and ask."""
        self._keep_answer()
        if self.client is None:
            self.client = Client(self.port)
        self.raw, self.events, self.seen = b"", [], 0
        path = self.path if self.last is None else f"{self.path}&last_event_id={self.last}"
        self.client.get(path, *self.headers)
        # From here on it knows better.
        self.headers = tuple(line for line in self.headers if not line.startswith("Last-Event-ID:"))
        return self

    def leave(self) -> None:
        """Go without a word. What has been read is kept."""
        if self.client:
            self.client.sock.close()
            self.client = None

    def join(self) -> Reader:
        """Connect, and wait until the server holds the stream: its headers and first bytes are here."""
        self.start()
        while not (found := answer(self.raw)) or not found.body:
            self._read()
        return self

    def next(self, *, heartbeats: bool = False) -> Event:
        """The next event; those that only keep the connection alive are passed over unless asked for."""
        while True:
            if self.client is None:
                self.start()
            while self.seen < len(self.events):
                event = self._kept(self.events[self.seen])
                self.seen += 1
                if event.kind not in ("heartbeat", "begin") or (heartbeats and event.kind == "heartbeat"):
                    return event
            found = answer(self.raw)
            if self.transport == "longpoll" and found and found.whole:
                self.start()
            self._read()

    def _keep_answer(self) -> None:
        """Come back with the id of a long poll's answer, once all that is in it has been taken."""
        found = answer(self.raw)
        if self.transport == "longpoll" and found and found.whole and self.seen == len(self.events):
            self.last = json.loads(found.body)["last_event_id"] or self.last

    def _kept(self, event: Event) -> Event:
        """The event with the id to come back with: that of its topic goes among those of the others."""
        if event.topic and event.id and ":" not in event.id:
            others = (part for part in (self.last or "").split(",") if ":" in part)
            ids = dict(part.split(":", 1) for part in others) | {event.topic: event.id}
            event = event._replace(id=",".join(f"{topic}:{id}" for topic, id in sorted(ids.items())))
        self.last = event.id or self.last
        return event

    def take(self, count: int) -> list[Event]:
        """The next `count` events, heartbeats not counted."""
        return [self.next() for _ in range(count)]

    def contents(self, count: int) -> list[Any]:
        """The contents of the next `count` events, which are messages."""
        events = self.take(count)
        assert {event.kind for event in events} <= {"message"}, events
        return [event.content for event in events]

    def rest(self) -> list[Event]:
        """What comes up to the end of the stream (for a long poll: up to the answer that ends it), but no heartbeats.

        Fails where the stream does not end as a response must.
        """
        events = [event for event in self._until_the_end() if event.kind != "heartbeat"]
        if self.transport != "longpoll":
            found = answer(self.raw)
            assert found
            assert found.whole, "the connection was cut, not ended"
        return events

    def _until_the_end(self) -> Iterator[Event]:
        while True:
            try:
                event = self.next(heartbeats=True)
            except EOFError:
                return
            yield event
            if self.transport == "longpoll" and event.kind in ("end", "retry"):
                return

    def _read(self) -> None:
        assert self.client
        self.client.sock.settimeout(PATIENCE)
        data = self.client.sock.recv(65_536)
        if not data:
            raise EOFError(self.raw)
        self.raw += data
        self.events = told(self.transport, self.raw)


def hang_up(sock: socket.socket, *, rudely: bool) -> None:
    """Close a connection, by a reset instead of a farewell where `rudely`."""
    if rudely:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()
