"""Publishing from a request: the methods that the add-on gives it. Any thread."""

from __future__ import annotations

from typing import Any

from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.path import caller_package
from pyramid.request import Request

from pushdemo.cache.functions import Caches, UnknownFunctionError
from pushdemo.topics.catalog import Catalog, TopicLimitError
from pushdemo.topics.message import Message
from pushdemo.topics.pattern import Reference
from pushdemo.web.admission import RETRY_AFTER
from pushdemo.web.publications import Later, Publications, send_all
from pushdemo.web.push import refer
from pushdemo.web.transaction import Commit, waiting_in


def publish(
    request: Request,
    pattern: str | Reference,
    value: Any,
    /,
    *,
    event: str = "",
    renderer: str = "",
    now: bool = False,
    tm: Any = None,
    **values: str | int,
) -> Message | None:
    """Request method: add a message with `value` to a topic, which is made if it does not live.

    `pattern` is the topic as it is declared, `values` are those of its placeholders; or it is a reference. What `value`
    may be is the topic's content type's to say: see `Topic.publish`; JSON is the application's own renderer's, and a
    `renderer` makes the body for all clients, with a blank request. `event` is the event's name.

    In a request with a transaction (pyramid_tm), or with a transaction manager `tm`, the value is checked and encoded
    at once, and the message is sent when the transaction has been committed, in order, and dropped when it is aborted;
    `now` does not wait for it. What fails after the commit is logged and counted (docs/publishing.md).

    Returns the message where it was sent, and None where it waits; also where as many topics live as may and all have
    clients: then the message is dropped, counted, and the log says so.

    Raises KeyError for a pattern that is not declared, TypeError where keywords are missing or too many, TypeError or
    ValueError for a value or a name of an event that will not do, HTTPBadRequest for text that cannot be a
    placeholder's value; and HTTPServiceUnavailable, with Retry-After, where topics are shared at a Redis that cannot
    take the message now; `Topic.publish` raises its ConnectionError.
    """
    (reference,) = refer(request.registry["pushdemo.topics"], (pattern,), values)
    publications: Publications = request.registry["pushdemo.publications"]
    package = caller_package() if renderer else None
    publication = publications.make(reference, value, event=event, renderer=renderer, package=package)
    commit = None if now else commit_of(request, tm)
    if commit is not None:
        commit.add(publication)
        return None
    try:
        return publication.send()
    except ConnectionError as error:  # it is in the log, where Redis is no secret
        reason = f"nothing can be published to {reference.pattern} at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error


def commit_of(request: Request, tm: Any = None) -> Commit | None:
    """Return what waits for the commit of the request's transaction, or of `tm`'s; None where there is none."""
    manager = tm
    if manager is None and request.environ.get("tm.active"):
        manager = request.environ.get("tm.manager") or request.tm
    return None if manager is None else waiting_in(manager, send_all)


def end_topic(
    request: Request, pattern: str | Reference, /, *, now: bool = False, tm: Any = None, **values: str | int
) -> None:
    """Request method: end a topic. Its clients get what there is, and a clean end; so does who comes later.

    The end is remembered for the topic's lifetime. It waits for the commit of a transaction, after the messages that
    have been published before it, as `publish` does. Raises what `publish` does.
    """
    catalog: Catalog = request.registry["pushdemo.topics"]
    (reference,) = refer(catalog, (pattern,), values)
    commit = None if now else commit_of(request, tm)
    if commit is not None:
        commit.add(Later(f"to end {reference.pattern}", lambda: catalog.open(reference).end()))
        return
    try:
        catalog.open(reference).end()
    except (ConnectionError, TopicLimitError) as error:
        reason = f"{reference.pattern} cannot be ended at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error


class RequestCaches:
    """`request.memorized`: the application's memorized values, from a request.

    `invalidate` and `clear` wait for the commit of the request's transaction, as `request.publish` does: before it,
    other requests would compute the old value again.
    """

    __slots__ = ("_caches", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._caches: Caches = request.registry["pushdemo.caches"]

    def info(self) -> Any:
        """See Caches."""
        return self._caches.info()

    def clear(self, name: str, *, now: bool = False, tm: Any = None) -> None:
        """Forget all values of the function called `name`. Raises UnknownFunctionError where there is none."""
        if not self._caches.knows(name):
            raise UnknownFunctionError(name)
        self._after_commit(f"to clear {name}", lambda: self._caches.clear(name), now, tm)

    def invalidate(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """Forget the value of a memorized function for these arguments."""
        caches = self._caches

        def invalidate() -> None:
            with caches.active():
                function.invalidate(*args, **kwargs)

        self._after_commit(f"to invalidate {function!r}", invalidate, False, None)

    def _after_commit(self, what: str, act: Any, now: bool, tm: Any) -> None:
        commit = None if now else commit_of(self._request, tm)
        if commit is None:
            act()
        else:
            commit.add(Later(what, act))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._caches, name)


class RequestMemorized:
    """Request attribute `memorized`. Pyramid binds it as it binds a request method.

    For a property it would make a class, anew for each request, which takes a sixth of all the time that a small view
    does.
    """

    def __get__(self, request: Request, owner: type) -> RequestCaches:
        return RequestCaches(request)
