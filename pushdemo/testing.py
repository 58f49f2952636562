"""What an application's tests need: what was published, streams to read without a server, and a clock to move.

`config.include("pushdemo.testing")`, or `pyramid.includes = pushdemo.testing` in the ini of the tests: this comes
before the application's own `include("pushdemo")`, and only then is there the clock. A stream is read in the test's own
thread, without a server. docs/testing.md has examples.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from pyramid.config import Configurator
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from pyramid.tweens import MAIN

from pushdemo.delivery.subscription import LongPoll, Subscription
from pushdemo.topics.content import is_json, is_text
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.web.publications import Publication
from pushdemo.web.transaction import commit_of_transaction

NOTE = "This is what there was. The stream goes on: read it with pushdemo.testing.listen"
_ITEMS = 100  # of a generator's stream, that a plain request gets at most


class Published(NamedTuple):
    """A message that was published, as the outbox has it."""

    topic: str  # the pattern, as it is declared
    values: dict[str, str]  # of its placeholders
    value: Any
    event: str
    body: bytes


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.wake: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass: what is due then is done by its own threads, soon."""
        self.now += seconds
        self.wake()


class Heard(NamedTuple):
    """What a stream has told: a message, or a notice of its kind ("reset", "failing", "end")."""

    kind: str
    content: Any = None  # JSON as a value, other text as text, else bytes
    id: str = ""
    topic: str = ""
    event: str = ""


def includeme(config: Configurator) -> None:
    """Add the outbox, the clock, and answers to plain requests for streams."""
    registry = config.registry
    if "pushdemo.topics" not in registry:
        registry["pushdemo.clock"] = Clock()
        config.include("pushdemo")
        pool = registry["pushdemo.topics"].pool

        def wake() -> None:
            with pool.changed:
                pool.changed.notify_all()

        registry["pushdemo.clock"].wake = wake
    published: list[Published] = []
    registry["pushdemo.outbox"] = published
    registry["pushdemo.publications"].sent = lambda publication: published.append(_published(publication))
    config.add_tween(
        "pushdemo.testing.tween", over=("pyramid_retry.RetryTween", "pyramid_tm.tm_tween_factory", _OWN, MAIN)
    )


_OWN = "pushdemo.web.config.tween"


def outbox(app: Any) -> list[Published]:
    """Return what the application has published, the oldest first. A test may clear it."""
    published: list[Published] = _registry(app)["pushdemo.outbox"]
    return published


def clock(app: Any) -> Clock:
    """Return the clock of memorized values, sources and lifetimes. Raises KeyError: see above."""
    try:
        found: Clock = _registry(app)["pushdemo.clock"]
    except KeyError:
        reason = "there is a clock where pushdemo.testing is included before pushdemo: pyramid.includes in the ini"
        raise KeyError(reason) from None
    return found


def listen(
    app: Any, path: str, *, transport: str = "jsonlines", headers: dict[str, str] | None = None, **environ: Any
) -> Stream:
    """Open the stream at `path` of an application, or of a WebTest TestApp whose cookies and environ then count.

    Raises AssertionError, with the body, where the view answers anything but a stream.
    """
    return Stream(app, path, transport, headers or {}, environ)


class Stream:
    """A client in the test's own thread."""

    def __init__(self, app: Any, path: str, transport: str, headers: dict[str, str], environ: dict[str, Any]) -> None:
        self._app = app
        self._path = path
        self._transport = transport
        self._headers = headers
        self._environ = environ
        self._last = ""  # the id to come back with
        self._changed = threading.Event()
        self._client: Subscription | LongPoll | None = None
        self._told: list[Heard] = []
        self._open()

    def next(self, timeout: float = 1.0) -> Heard:
        """Return the next message or notice, waited for; AssertionError where none comes in time."""
        heard = self._next(timeout)
        assert heard is not None, f"nothing came within {timeout:g} s"
        return heard

    def nothing(self, timeout: float = 0.0) -> None:
        """Raise AssertionError if anything comes."""
        heard = self._next(timeout)
        assert heard is None, f"{heard} has come"

    def drop(self) -> None:
        """Cut the connection. The client comes back by itself, with its last id, when it is read again."""
        if self._client is not None:
            self._leave(self._client)

    def reset(self) -> None:
        """Come back as a client that was away for too long: it is told a reset."""
        self.drop()
        self._last = "another-life-0"

    def close(self) -> None:
        """Leave for good."""
        self.drop()
        self._told.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        request = _request(self._app, self._path, self._headers)
        parked: list[Any] = []
        request.environ |= self._environ
        request.environ["pushdemo.park"] = lambda client: parked.append(client) or _Parked()  # type: ignore[func-returns-value]
        request.GET["transport"] = self._transport
        if self._last:
            request.headers["Last-Event-ID"] = self._last
        response = request.get_response(_wsgi(self._app))
        if not parked:
            self._tell_whole(response)
            return
        client = self._client = parked[0]
        assert isinstance(client, Subscription | LongPoll), "a generator's items are read by polls"
        for topic in client.topics:
            topic.listen(self._notice)
        if isinstance(client, Subscription):
            self._told += _first(client)
        else:
            client.join()

    def _tell_whole(self, response: Response) -> None:
        """A long poll that was answered at once, or no stream."""
        assert response.status_int == 200, f"{response.status}: {response.text}"
        assert self._transport == "longpoll", f"{self._path} answers no stream: {response.text[:500]}"
        self._take_answer(response.body)

    def _next(self, timeout: float) -> Heard | None:
        until = time.monotonic() + timeout
        while True:
            self._changed.clear()
            if self._told:
                return self._told.pop(0)
            if self._client is None:
                self._open()
                continue
            if (heard := self._ask(self._client)) is not None:
                self._told += heard
                continue
            if not self._changed.wait(max(0.0, until - time.monotonic())):
                return None

    def _ask(self, client: Subscription | LongPoll) -> list[Heard] | None:
        if isinstance(client, LongPoll):
            body = client.answer()
            if body is not None:
                self._leave(client)
                self._take_answer(body)
            return None if body is None else []
        return _taken(client)

    def _take_answer(self, body: bytes) -> None:
        answer = json.loads(body)
        if answer.get("reset"):
            self._told.append(Heard("reset"))
        for message in answer["messages"]:
            names = {name: message.get(name, "") for name in ("topic", "event")}
            self._told.append(Heard("message", message["content"], message["id"], **names))
        if answer.get("failing"):
            self._told.append(Heard("failing"))
        if answer["state"] == "done":
            self._told.append(Heard("end"))
        self._last = answer["last_event_id"] or self._last

    def _leave(self, client: Subscription | LongPoll) -> None:
        self._client = None
        if isinstance(client, Subscription):
            self._last = client.last_event_id  # of all its topics; what it has taken is told, or waits to be
        for topic in client.topics:
            topic.unlisten(self._notice)
        client.close()

    def _notice(self, topic: Topic) -> None:
        self._changed.set()


def _first(client: Subscription) -> list[Heard]:
    """What a stream begins with: its first bytes tell whether it was reset; what follows is taken as it comes."""
    told: list[Heard] = []
    backlog, reset = client.begin()
    if reset:
        told.append(Heard("reset", id=client.last_event_id))
    return told + [_heard(client, message) for message in backlog]


def _taken(client: Subscription) -> list[Heard] | None:
    message, reset = client.take()
    if message is None:
        return [Heard("end")] if client.over else None
    return [*([Heard("reset")] if reset else []), _heard(client, message)]


def _heard(client: Subscription, message: Message) -> Heard:
    if message.kind != "message":
        return Heard(message.kind)
    assert client.format.make(message), "it can be sent"
    content: Any = message.body
    if is_json(message.content_type):
        content = json.loads(message.body)
    elif is_text(message.content_type):
        content = message.body.decode()
    topic = message.topic if client.format.names else ""
    return Heard("message", content, message.id, topic, message.event)


class _Parked:
    """The body of a response whose client the test has taken."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class _Snapshot:
    """The body of a stream that a plain request asks for: what there is now."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __iter__(self) -> Iterator[bytes]:
        client = self._client
        if isinstance(client, LongPoll):
            yield client.answer() or client.waiting()
            return
        yield client.open()
        pull: Callable[[], bytes | None] = client.next if isinstance(client, Subscription) else client.pull
        for _ in range(_ITEMS):
            if (data := pull()) is None:
                break
            yield data

    def close(self) -> None:
        """Let the client go."""
        self._client.close()


def tween(handler: Callable[[Request], Response], registry: Registry) -> Callable[[Request], Response]:
    """Tween: streams are answered with what there is, and a transaction that a test has begun counts as committed."""

    def testing(request: Request) -> Response:
        snapshots: list[_Snapshot] = []
        if "pushdemo.park" not in request.environ:
            request.environ["pushdemo.park"] = lambda client: snapshots.append(_Snapshot(client)) or snapshots[-1]  # type: ignore[func-returns-value]
        manager = request.environ.get("tm.manager") if request.environ.get("tm.active") else None
        try:
            response = handler(request)
        except BaseException:
            _settle(manager, committed=False)
            raise
        _settle(manager, committed=response.status_int < 400)
        if snapshots:
            response.headers["X-Pushdemo-Testing"] = NOTE
        return response

    return testing


def _settle(manager: Any, *, committed: bool) -> None:
    """End a request within a transaction that its test will roll back: do what its commit, or its abort, would do."""
    commit = commit_of_transaction(manager) if manager is not None else None
    if commit is not None:
        commit.settle(committed)


def _published(publication: Publication) -> Published:
    reference = publication.reference
    return Published(reference.pattern, dict(reference.values), publication.value, publication.event, publication.body)


def _registry(app: Any) -> Registry:
    found: Registry = _wsgi(app).registry
    return found


def _wsgi(app: Any) -> Any:
    """The application of a WebTest TestApp, or the application itself."""
    return getattr(app, "app", app)


def _request(app: Any, path: str, headers: dict[str, str]) -> Request:
    environ: dict[str, Any] = dict(getattr(app, "extra_environ", {}))
    request = Request.blank(path, environ=environ, headers=headers)
    cookies: Sequence[Any] = getattr(app, "cookiejar", ())
    if named := "; ".join(f"{cookie.name}={cookie.value}" for cookie in cookies):
        request.headers["Cookie"] = named
    return request
