"""What a server offers to an application: to park the response instead of iterating it in the request's thread, and to
run the request later, when there is a thread for long.

An `Offer` is a body. The server accepts it where it arrives as it is, or in a wrapper that may be looked through. Else
whatever has wrapped it iterates it, and the thread waits with the client. All of this is the thread's that runs the
request, unless it says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import GeneratorType
from typing import Any, Protocol

from pushdemo.abandoned import Body
from pushdemo.delivery.pull import Pulled
from pushdemo.delivery.subscription import LongPoll, Subscription, retry_hint, retry_when_refused

log = logging.getLogger("pushdemo")

Application = Callable[..., Any]
Parkable = Subscription | LongPoll | Pulled

# Wrappers of others that only need to be told about the end: where the class keeps the body that it wraps.
_SEEN_THROUGH = {("sentry_sdk.integrations.wsgi", "_ScopedResponse"): "_response"}
_DEEP = 20  # wrappers around one body

_WRAPPED = (
    "%s wraps the body of a stream, which therefore cannot be parked and holds a thread. Have it pass the body on, or "
    "expose the body that it wraps as its attribute pushdemo_body (docs/deploy.md, Middleware)"
)
_COMPRESSED = (
    "a middleware has compressed a stream (Content-Encoding: %s), which says no-transform: its messages wait in the "
    "compressor's buffer. Have it leave responses with Cache-Control: no-transform alone"
)


class Turns(Protocol):
    """The turns of workers; see pushdemo.server.workers."""

    def take(self) -> bool:
        """Take a turn, if one is free."""

    def give(self) -> None:
        """Give it back."""

    def run(self, function: Callable[[], None]) -> None:
        """Have a thread call `function`."""


class Server(Protocol):
    """What an offer needs of its server."""

    turned_away: int  # since a stream that a middleware iterates last had a thread; any thread, roughly

    @property
    def workers(self) -> Turns:
        """Who has a thread for long."""

    def warn_once(self, message: str, name: str) -> None:
        """Log a warning, once for each name in it."""


class Postponed(BaseException):
    """Leaves `HTTPChannel.service`, as if the request had not been begun: it waits for a turn of `Workers`."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.timeout = timeout


class Turn:
    """`pushdemo.turn` in the environ: how a view asks for its thread for longer than a page takes.

    A view that gets no turn returns what `later` makes of its refusal. The server then forgets the response, and runs
    the request from the beginning when there is a turn for it. After `timeout` seconds it runs it for the last time:
    `late` is true then, and what the view returns is sent.
    """

    def __init__(self, own: bool | None, workers: Turns) -> None:
        self._own = own  # of a request that has waited: whether a turn came
        self._workers = workers
        self.late = own is False

    def take(self) -> bool:
        """Whether the view may keep its thread: then it calls `give` when it is done."""
        return self._own if self._own is not None else self._workers.take()

    def give(self) -> None:
        """The view is done."""
        if self._own is None:
            self._workers.give()

    def later(self, timeout: float, refusal: Iterable[bytes]) -> Later:
        """A body that has the server run the request later, or is the refusal where a middleware iterates it."""
        return Later(timeout, refusal)


class Later:
    """See `Turn.later`."""

    def __init__(self, timeout: float, refusal: Iterable[bytes]) -> None:
        self.accepted = False
        self._timeout = timeout
        self._refusal = refusal

    def accept(self, body: Any) -> None:
        """The server has received `body`: this, or what wraps it and is not needed any more."""
        self.accepted = True
        if body is not self and hasattr(body, "close"):
            body.close()

    def __iter__(self) -> Iterator[bytes]:
        if self.accepted:
            raise Postponed(self._timeout)
        return iter(self._refusal)


class Park:
    """`environ["pushdemo.park"]` of one request: makes offers, and knows them."""

    def __init__(self, server: Server, has_left: Callable[[], bool]) -> None:
        self.server = server
        self.has_left = has_left  # whether the client has, asked in the request's thread
        self.parked: Parkable | None = None  # the client of the offer that the server has accepted
        self.offers: list[Offer] = []
        self.wrapper = "a middleware"  # that iterates an offer instead of passing it on

    def __call__(self, client: Parkable) -> Offer:
        offer = Offer(self, client)
        self.offers.append(offer)
        return offer

    def close(self, headers: Sequence[tuple[str, str]]) -> None:
        """The request is over for its thread: close the clients of all offers that were not parked.

        Not every middleware closes the body that it has wrapped, and a generator that was never started closes nothing.
        `headers` are the response's: tell the log where it was compressed although it forbids that.
        """
        for offer in self.offers:
            offer.close()
        if self.offers:
            for name, value in headers:
                if name.lower() == "content-encoding" and value.lower() != "identity":
                    self.server.warn_once(_COMPRESSED, value)


class Offer:
    """A body that may be parked. It is if the server itself receives it, and is iterated if a middleware does."""

    def __init__(self, park: Park, client: Parkable) -> None:
        self.client = client
        self.accepted = False
        self._park = park

    def accept(self, body: Any) -> None:
        """The server has received `body`: this offer, or what wraps it and wants to be closed with the stream."""
        self.accepted = True
        if body is not self and hasattr(body, "close"):
            self.client.closing(partial(self._park.server.workers.run, body.close))

    def __iter__(self) -> Iterator[bytes]:
        if not self.accepted:
            return Body(self._in_thread())
        self._park.parked = self.client
        return iter(()) if isinstance(self.client, LongPoll) else iter((self.client.open(),))

    def _in_thread(self) -> Generator[bytes, None, None]:
        """The response of a thread that waits with its client, if that is not the last one."""
        client, server = self.client, self._park.server
        server.warn_once(_WRAPPED, self._park.wrapper)
        try:
            if server.workers.take():
                server.turned_away = 0
                try:
                    yield from (client.wait(),) if isinstance(client, LongPoll) else self._while_there(client)
                finally:
                    server.workers.give()
                return
            yield self._refusal()
        finally:
            client.close()  # there is middleware that forgets to close what it has iterated

    def _while_there(self, client: Subscription | Pulled) -> Iterator[bytes]:
        """What a stream brings, until the client has left: what its middleware does with the bytes may not show it."""
        for data in client:
            yield data
            if self._park.has_left():
                yield client.transport.retry(retry_hint())
                return

    def _refusal(self) -> bytes:
        """The answer where no thread is left: the more are turned away, the later they are to come back."""
        client, server = self.client, self._park.server
        server.turned_away += 1
        if server.turned_away == 1:
            log.warning("no thread is left to hold a stream whose body %s wraps", self._park.wrapper)
        retry = retry_when_refused(server.turned_away)
        if isinstance(client, LongPoll):
            return client.waiting(retry)
        return client.open() + client.transport.retry(retry)

    def close(self) -> None:
        """The end of the response, unless it goes on elsewhere."""
        if self._park.parked is not self.client:
            self.client.close()


def _found_in(body: Any) -> Offer | Later | None:
    """Return what the server accepts if `body` is that, or wraps it so that it may be looked through."""
    for _ in range(_DEEP):
        if isinstance(body, (Offer, Later)):
            return body
        name = _SEEN_THROUGH.get((type(body).__module__, type(body).__qualname__), "pushdemo_body")
        body = getattr(body, name, None)
        if body is None:
            break
    return None


def _named(body: Any) -> str:
    if isinstance(body, GeneratorType):
        module = body.gi_frame.f_globals["__name__"] if body.gi_frame else ""
        return f"the generator {module}.{body.__qualname__}"
    return f"{type(body).__module__}.{type(body).__qualname__}"


def outermost(application: Application) -> Application:
    """The application, seen from outside all middleware: an offer or a refusal that arrives here is accepted."""

    def accepting(environ: dict[str, Any], start_response: Any) -> Any:
        body = application(environ, start_response)
        found = _found_in(body)
        if found is not None:
            found.accept(body)
            return found
        environ["pushdemo.park"].wrapper = _named(body)
        return body

    return accepting
