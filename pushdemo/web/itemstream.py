"""A generator's items as a stream: `json_yield`'s second way to answer.

The items are pulled, one when the client has taken the one before; the session behind it is the same as a poll's, so a
client that comes back goes on where it was. Threads: one at a time, the request's first, then any worker that pulls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from pyramid.request import Request
from pyramid.response import Response

from pushdemo.abandoned import Body
from pushdemo.delivery.rights import Right
from pushdemo.delivery.subscription import Pace, retry_hint
from pushdemo.topics.message import Message
from pushdemo.transports import STREAMS, StreamTransport, format_of
from pushdemo.web.admission import Clients, admit, refusals_counted
from pushdemo.web.push import HEADERS, begun, content_type, negotiate, stream
from pushdemo.web.query import query_of
from pushdemo.web.session import Answer, Owner, Refused, Start, log_failure
from pushdemo.web.sessions import Sessions

JSON = "application/json"
_STREAM_TYPES = [media_type for kind in STREAMS.values() for media_type in kind.media_types]


class ItemStream:
    """The body of the response: see `Pulled` in delivery/pull.py.

    `after` is the number of items that the client has. The session keeps the last `keep` items: many of them may have
    been on their way when a connection broke, and the client asks for them when it comes back.
    """

    __slots__ = (
        "_accumulate",
        "_after",
        "_joined",
        "_keep",
        "_over",
        "_owner",
        "_release",
        "_right",
        "_sessions",
        "_url",
        "ends",
        "pace",
        "tally",
        "transport",
    )

    def __init__(
        self,
        sessions: Sessions,
        owner: Owner,
        url: str,
        after: int,
        accumulate: bool | int,
        keep: int,
        right: Right,
        transport: StreamTransport,
        pace: Pace,
        release: Callable[[], None],
    ) -> None:
        self.transport = transport
        self.pace = pace
        self.tally = pace.counters.tally("", transport.name)  # no topic has an empty name
        self._joined = False
        self._sessions = sessions
        self._owner = owner
        self._url = url  # for the log
        self._after = after
        self._accumulate = accumulate
        self._keep = keep
        self._right = right
        self.ends = right.expires
        self._over = False  # the last bytes have been given
        self._release: Callable[[], None] | None = release

    def open(self) -> bytes:
        """The first bytes."""
        self._joined = True
        self.tally.joined()
        data = self.transport.preamble(self.pace.retry_milliseconds)
        self.tally.wrote(len(data))
        return data

    def pull(self) -> bytes | None:
        """The next item, then what ends the stream, then None."""
        if self._over:
            return None
        if self._has_expired():
            return self.transport.retry(retry_hint())
        try:
            answer = self._sessions.take(
                self._owner, None, after=self._after, accumulate=self._accumulate, keep=self._keep
            )
        except Refused as refused:
            self._over = True  # closed meanwhile; or the client comes again and is told what is wrong by the status
            closed = refused.status == 410 and refused.parameter is None
            return self._end() if closed else self.transport.retry(retry_hint())
        except Exception as error:
            self._over = True
            log_failure(error, self._owner, self._url)
            return self.transport.notice("failing", after=str(self._after)) + self._end()
        if self._has_expired():  # what the generator has given now comes to the client that comes back
            return self.transport.retry(retry_hint())
        if answer.items:
            return self._item(answer)
        self._over = True
        return self._end("" if answer.result == "null" else answer.result)

    @property
    def ordered(self) -> bool:
        """See Pulled."""
        return self.pace.orders.end(self._right)

    def _has_expired(self) -> bool:
        self._over = time.monotonic() >= self.ends or self.ordered
        return self._over

    def _end(self, content: str = "") -> bytes:
        # With an id: a reader that comes back by itself, and had no item, would begin a new session.
        return self.transport.notice("end", str(self._after), content=content)

    def _item(self, answer: Answer) -> bytes:
        self._after = answer.given
        content = answer.items[0] if self._accumulate is False else f"[{', '.join(answer.items)}]"
        message = Message(answer.given, answer.given, str(answer.given), content.encode(), JSON)
        data = format_of(self.transport).encode(message)
        self.tally.wrote(len(data), messages=1)
        return data

    def close(self) -> None:
        """The client is gone; its session waits for it, as after a poll."""
        release, self._release = self._release, None
        if release:
            if self._joined:
                self.tally.left()
            release()

    def closing(self, function: Callable[[], object]) -> None:
        """See `Pulled`."""
        release = self._release

        def release_and_call() -> None:
            if release:
                release()
            function()

        self._release = release_and_call

    def __iter__(self) -> Iterator[bytes]:
        return Body(self._in_thread())

    def _in_thread(self) -> Generator[bytes, None, None]:
        try:
            yield self.open()
            while (data := self.pull()) is not None:
                yield data
        finally:
            self.close()

    def __del__(self) -> None:
        self.close()  # a response that nobody iterated still holds a place


def asked_for(request: Request) -> StreamTransport | None:
    """The streaming transport that a request for a generator's items asks for; None where it polls."""
    if "transport" not in query_of(request) and not request.accept.acceptable_offers([JSON, *_STREAM_TYPES]):
        return None  # a poll has but one form, and gives it whatever is asked for
    with refusals_counted(request):
        return STREAMS.get(negotiate(request, "the generator", (JSON,), ("longpoll", *STREAMS)))


def respond(
    request: Request,
    transport: StreamTransport,
    sessions: Sessions,
    owner: Owner,
    start: Start,
    after: int | None,
    *,
    accumulate: bool | int,
    ends: float,
) -> Response:
    """The response that streams the items of the owner's session after the one numbered `after`, until `ends` at most.

    Raises Refused where a poll would be refused, the generator's error where there is nothing else to bring, and
    HTTPServiceUnavailable when all places are taken.
    """
    clients: Clients = request.registry["pushdemo.clients"]
    headers = [("Content-Type", content_type(request, transport)), *HEADERS.items(), ("Vary", "Accept")]
    # Of a generator that has failed this raises the error, at which an EventSource stays away (HTML section 9.2.2).
    environ, peer = request.environ, request.environ.get("REMOTE_ADDR", "")
    answer = sessions.take(owner, start, after=after, most=0, accumulate=accumulate, origin=environ, peer=peer)
    after = answer.given if after is None else after
    if transport.name == "sse" and answer.state == "done" and after == answer.given:
        return Response(status=204, headerlist=headers[1:])  # HTML section 9.2.3: it does not come back
    user = None if owner.user is None else str(owner.user)
    with refusals_counted(request):
        release = admit(request, user)
    keep = request.registry["pushdemo.settings"].history
    right = Right(user, begun(request), ends)
    body = ItemStream(sessions, owner, request.url, after, accumulate, keep, right, transport, clients.pace, release)
    return stream(request, body, headers)
