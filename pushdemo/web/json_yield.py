"""`json_yield`: a generator view, answered one item a request.

Here lives the HTTP side for Pyramid: what the query says, what the answers and errors look like. Which generator runs,
and when it is closed, is decided in `sessions`. Threads: the functions run in whatever thread serves the request.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPException
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.web import itemstream
from pushdemo.web.admission import Clients, seconds_to_wait
from pushdemo.web.expiry import Expires, checked, deadline
from pushdemo.web.push import cross_origin, last_event_id_of
from pushdemo.web.query import query_of
from pushdemo.web.session import Owner, Refused, Start, log_failure
from pushdemo.web.sessions import Sessions
from pushdemo.web.steps import ViewSteps, step

KEY_LIMIT = 200  # characters
MAX_LIMIT = 1000  # items in one answer: the session holds them until the next poll
AFTER_LIMIT = 2**53 - 1  # the largest whole number that every JSON reader keeps exact (RFC 8259, section 6)
PLAIN_ACCEPT = {None, "*/*", "application/json"}  # of nearly all polls; to negotiate costs half as much as to answer
ALLOWED = "GET, HEAD, OPTIONS, DELETE, POST"
FAILED = "the generator failed"  # a client learns no more
REGISTRY_KEY = "pushdemo.generators"
CLIENTS_KEY = "pushdemo.clients"

_HEADERS = {"Content-Type": "application/json;charset=utf-8", "Cache-Control": "no-store"}

GeneratorView = Callable[..., Iterable[Any]]  # a generator function, however it is annotated
View = Callable[..., Any]


@overload
def json_yield(function: GeneratorView, /) -> View: ...


@overload
def json_yield(*, accumulate: bool | int = False, expires: Expires = None) -> Callable[[GeneratorView], View]: ...


def json_yield(
    function: GeneratorView | None = None, /, *, accumulate: bool | int = False, expires: Expires = None
) -> View | Callable[[GeneratorView], View]:
    """Make a generator function a Pyramid view that answers each poll with the generator's next item, as JSON.

    The function is a view `(request)` or `(context, request)`, or a method of a view class whose `self.request` is the
    request. json_yield must be innermost, below `@view_config`, and the view must be there for all methods. The
    generator begins with the first poll of a key and keeps that poll's request and context (PEP 567).
    `accumulate=True` answers with all items so far, `accumulate=50` with the last 50. With `expires` (seconds, a
    timedelta or a datetime) a stream ends by then, up to a tenth early: its client comes back, is checked by the view's
    permission anew, and goes on where it was. A poll is checked each time anyway.

    The query: `key` (1 to 200 characters, the client's own secret, such as a UUID) names the session; `after=n`, the
    number of items that the client has, makes the poll idempotent; `max=m` (1 to 1000) takes up to m items at once,
    as many as are likely to come within the ini's `pushdemo.longpoll.timeout`: no step of the generator is cut short.
    DELETE, or POST with `close=1` for `navigator.sendBeacon`, ends the session at the generator's next `yield`; both
    are subject to the application's own CSRF policy, and a POST from another site is refused.

    A request that prefers `text/event-stream` or another streaming transport gets the items as they come, in one
    response; the generator runs only as fast as the client reads. The id of an item is its count: a client that comes
    back says it as `Last-Event-ID` or in `last_event_id`, and goes on after it. The last `pushdemo.history` items are
    kept for that, and for polls those of the last answer. What is on its way counts as read: where small items come so
    fast that more of them are in the buffers of the network, a client that was cut off is answered 410.

    The answer: `{"state": "ready", "content": ..., "count": n, "key": ...}`, at the end "done" and what the generator
    returns. Items are what JSON carries, or the application's own renderer "json". All that fails is "error" with a
    "reason": 400 bad query, 405, 409 others wait for this key already, 410 closed or kept no longer, 421 in another
    process, 503 at the limit. What the generator raises leaves the view, so that the transaction of its request is
    rolled back and an exception view of the application can answer; otherwise the answer is 500, and a poll that asks
    again is answered in the same way. The first step runs in the transaction of its request, which then takes one item
    whatever `max` says; later ones, and all of a stream, have `with request.step() as step:`.

    Raises TypeError for what is no generator function or no number of items, and ValueError for an `accumulate` below
    1, where it decorates; RuntimeError in a request of an application without the add-on.
    """
    if not isinstance(accumulate, int):
        raise TypeError(f"accumulate={accumulate!r}: must be True, or a number of items, 1 or more")
    if accumulate is not False and accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: must be True, or a number of items, 1 or more")
    options = Options(accumulate, checked(expires))
    if function is None:
        return functools.partial(_decorate, options=options)
    return _decorate(function, options)


class Options(NamedTuple):
    """What json_yield was given for a view."""

    accumulate: bool | int
    expires: Expires


def _decorate(function: GeneratorView, options: Options) -> View:
    if not inspect.isgeneratorfunction(function):
        raise TypeError(_remedy(function))

    @functools.wraps(function)
    def view(*args: Any) -> Any:
        request = _request(args)
        view_id = ViewId(function, _object(view, args, request))
        try:
            return _serve(request, view_id, functools.partial(function, *args), options)
        except Refused as refused:
            return _refuse(request, refused)
        except HTTPException as error:
            error.headers.update(_cross_origin(request))
            raise

    # Pyramid looks at the parameters to decide between (request) and (context, request); it does not unwrap.
    view.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return view


class ViewId(NamedTuple):
    """A decorated function, and whose method it is: of a view class, so that subclasses do not share, or an object."""

    function: GeneratorView
    of: type | int | None

    def __str__(self) -> str:
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        return f"{name} of {self.of.__qualname__}" if isinstance(self.of, type) else name


def _object(view: View, args: tuple[Any, ...], request: Any) -> type | int | None:
    if args[-1] is not request:
        return type(args[0])  # of a view class, each request has an object of its own
    if len(args) == 2 and getattr(type(args[0]), view.__name__, None) is view:
        return id(args[0])  # a bound method that is a view, which keeps the object alive
    return None


def _remedy(function: Any) -> str:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isclass(function):
        return f"json_yield on the class {name}: decorate the method that yields"
    if inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function):
        return f"json_yield on {name}: write it as a plain generator function, def and not async def"
    return (
        f"json_yield on {name}, which is no generator function: its body must have a yield; "
        "if another decorator wraps it, put json_yield below that one"
    )


def _request(args: tuple[Any, ...]) -> Any:
    """The request among a view's arguments: the last of them, or the `request` of a view class's instance."""
    if hasattr(args[-1], "environ"):
        return args[-1]
    try:
        return args[0].request
    except AttributeError:
        message = f"json_yield needs the request as self.request, which {type(args[0]).__qualname__} does not set"
        raise TypeError(message) from None


def _serve(request: Request, view: ViewId, generator: Callable[[], Any], options: Options) -> Response:
    sessions = _sessions(request)
    if request.method == "OPTIONS":
        return _empty(request, {"Allow": ALLOWED})
    query = _query(request)
    owner = Owner(view, _key(query), request.authenticated_userid)
    request._pushdemo_owner = owner
    if request.method == "GET":
        return _get(request, query, sessions, owner, generator, options)
    if request.method == "HEAD":
        return _respond(request, 200, "")  # it must not cost an item
    if request.method == "DELETE" or (request.method == "POST" and query.get("close") == "1"):
        return _close(request, sessions, owner)
    raise Refused(405, "poll with GET; close with DELETE, or with POST and close=1")


def _with_turn(request: Request, poll: Callable[[], Response]) -> Response:
    """Run the generator in this thread, where the server has enough of them; otherwise later.

    A step may take long, and pages must not wait for it. Our server offers the turn; another has `max_threads`.
    """
    turn = request.environ.get("pushdemo.turn")
    if turn is None:
        return poll()
    if turn.take():
        try:
            return poll()
        finally:
            turn.give()
    refused = Refused(503, "all threads that generators may have are taken", retry_after=seconds_to_wait())
    if turn.late:
        raise refused
    response = _refusal(request, refused)
    response.app_iter = turn.later(request.registry["pushdemo.settings"].longpoll_timeout, response.app_iter)
    return response


def _get(
    request: Request,
    query: Any,
    sessions: Sessions,
    owner: Owner,
    generator: Callable[[], Any],
    options: Options,
) -> Response:
    start = functools.partial(_start, request, sessions, owner, generator)
    if request.environ.get("retry.attempt"):  # pyramid_retry's: the request is made anew from one environ
        sessions.undo(owner, request.environ, failed=True)
    plain = "transport" not in query and request.environ.get("HTTP_ACCEPT") in PLAIN_ACCEPT
    transport = None if plain else itemstream.asked_for(request)
    if transport is None:
        return _with_turn(request, lambda: _poll(request, query, sessions, owner, start, options.accumulate))
    after = _number(query, "after", 0, AFTER_LIMIT)
    if last_event_id := last_event_id_of(request):  # a reader that comes back by itself says it so
        after = _number({"last_event_id": last_event_id}, "last_event_id", 0, AFTER_LIMIT)
    clients: Clients = request.registry["pushdemo.clients"]
    ends = deadline(clients.expire if options.expires is None else options.expires)
    response = itemstream.respond(
        request, transport, sessions, owner, start, after, accumulate=options.accumulate, ends=ends
    )
    response.headers.update(_cross_origin(request))
    return response


def _poll(
    request: Request, query: Any, sessions: Sessions, owner: Owner, start: Start, accumulate: bool | int
) -> Response:
    after = _number(query, "after", 0, AFTER_LIMIT)
    most = _number(query, "max", 1, MAX_LIMIT)
    environ = request.environ
    if after is None and "retry.attempt" in environ:
        if environ["retry.attempt"]:
            after = environ.get("pushdemo.after")  # the item of the attempt before has not reached the client
        else:
            environ["pushdemo.after"] = sessions.count(owner)
    peer = environ.get("REMOTE_ADDR", "")
    answer = sessions.take(owner, start, after=after, most=most or 1, accumulate=accumulate, origin=environ, peer=peer)
    content = answer.result
    if answer.items:
        as_list = most is not None or accumulate is not False
        content = f"[{', '.join(answer.items)}]" if as_list else answer.items[0]
    return _respond(request, 200, _document(answer.state, content, answer.given, owner.key))


def _start(request: Request, sessions: Sessions, owner: Owner, generator: Callable[[], Any]) -> ViewSteps:
    if request.environ.get("tm.active"):
        # What the first step has done may be rolled back after its answer is made: by a commit that fails, say.
        transaction = request.tm.get()
        undo = functools.partial(sessions.undo, owner, request.environ)
        transaction.addAfterCommitHook(lambda committed: committed or undo())
        transaction.addAfterAbortHook(undo)
    return ViewSteps(generator(), request, str(owner.view))


def _sessions(request: Request) -> Sessions:
    sessions: Sessions | None = request.registry.get(REGISTRY_KEY)
    if sessions is None:
        raise RuntimeError('json_yield needs the add-on: call config.include("pushdemo") where the application is made')
    return sessions


def _query(request: Request) -> Any:
    try:
        return query_of(request)
    except UnicodeDecodeError:
        raise Refused(400, "key: the query is not percent-encoded UTF-8", parameter="key") from None


def _key(query: Any) -> str:
    key: str = query.get("key", "")
    if not 1 <= len(key) <= KEY_LIMIT:
        given = f"{len(key)} are given" if key else "none is given"
        raise Refused(400, f"key: must be 1 to {KEY_LIMIT} characters; {given}", parameter="key")
    return key


def _number(query: Any, name: str, least: int, limit: int) -> int | None:
    text: str | None = query.get(name)
    if text is None:
        return None
    # int() would take signs, spaces, underscores and the digits of all scripts.
    if text.isascii() and text.isdecimal() and len(text) <= len(str(limit)) and least <= int(text) <= limit:
        return int(text)
    raise Refused(400, f"{name}={text[:40]}: must be a whole number from {least} to {limit}", parameter=name)


def _close(request: Request, sessions: Sessions, owner: Owner) -> Response:
    # A form of another site can make a browser send this POST with its cookies; DELETE needs a CORS preflight there.
    if request.method == "POST" and _is_foreign(request) and request.headers.get("Origin") not in _origins(request):
        raise Refused(403, "a page of another site must not close this session")
    sessions.forget(owner)
    return _empty(request, _HEADERS)


def _is_foreign(request: Request) -> bool:
    """Whether a page of another site has sent the request; older browsers say only where the page is from."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return bool(site == "cross-site")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()


def _refuse(request: Request, refused: Refused) -> Response:
    request.registry[CLIENTS_KEY].counters.refused("generator", refused.status)
    return _refusal(request, refused)


def _refusal(request: Request, refused: Refused) -> Response:
    parameter = {"parameter": refused.parameter} if refused.parameter else {}
    try:
        key = query_of(request).get("key")
    except UnicodeDecodeError:
        key = None
    text = _document("error", "null", refused.count, key, reason=refused.reason, **parameter)
    response = _respond(request, refused.status, text)
    if refused.status == 421:
        response.status = "421 Misdirected Request"
    if refused.retry_after is not None:
        response.headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 405:
        response.headers["Allow"] = ALLOWED
    return response


def _document(state: str, content: str, count: int, key: str | None, **more: str) -> str:
    """The answer's text around `content`, which is JSON already: an item is encoded once, however often it is given."""
    rest = "".join(f', "{name}": {json.dumps(value)}' for name, value in more.items())
    return f'{{"state": "{state}", "content": {content}, "count": {count}, "key": {json.dumps(key)}{rest}}}'


def _respond(request: Request, status: int, text: str) -> Response:
    """The request's own response, with what the application has put there, and this body.

    Its headers are written as a list: webob's properties would take longer than all else that a poll does here.
    """
    response = request.response
    response.status_int = status
    body = text.encode()
    response.app_iter = [body]
    own = [pair for pair in response.headerlist if pair[0] not in _HEADERS]
    response.headerlist = [*own, *_HEADERS.items(), ("Content-Length", str(len(body)))]
    if _origins(request):
        response.headers.update(_cross_origin(request))
    return response


def _empty(request: Request, headers: Mapping[str, str]) -> Response:
    response = request.response
    response.status_int = 204
    response.headers.update({**headers, **_cross_origin(request)})
    response.content_type = None
    return response


def _origins(request: Request) -> Sequence[str]:
    origins: Sequence[str] = request.registry[CLIENTS_KEY].origins
    return origins


def _cross_origin(request: Request) -> dict[str, str]:
    """The CORS headers of an answer."""
    origins = _origins(request)
    return {"Vary": "Accept, Origin", **cross_origin(request, origins, ALLOWED)} if origins else {}


class GeneratorFailed:
    """View predicate: whether the exception has left a `json_yield` view, or its transaction."""

    def __init__(self, value: bool, config: Configurator) -> None:
        self._value = value

    def text(self) -> str:
        return f"json_yield_failed = {self._value}"

    phash = text

    def __call__(self, context: Any, request: Request) -> bool:
        return ("_pushdemo_owner" in vars(request)) is self._value


def answer_failure(error: Exception, request: Request) -> Response:
    """Exception view: 500 as JSON, which tells nothing of the inside; the log has the rest."""
    owner: Owner = request._pushdemo_owner
    retry = sys.modules.get("pyramid_retry")
    if retry is not None and retry.is_error_retryable(request, error):
        request.environ.setdefault("pushdemo.failure", error)  # to be logged if all attempts fail
    else:
        log_failure(request.environ.pop("pushdemo.failure", error), owner, request.url)
        request.registry[CLIENTS_KEY].counters.refused("generator", 500)
    count = _sessions(request).count(owner, 0)
    return _respond(request, 500, _document("error", "null", count, owner.key, reason=FAILED))


def includeme(config: Configurator) -> None:
    """Add `request.step()`, and the exception view that answers for generators where the application has none."""
    config.add_request_method(step)
    config.add_view_predicate("json_yield_failed", GeneratorFailed)
    config.add_exception_view(answer_failure, context=Exception, json_yield_failed=True)
