"""Who listens, until when, and from where on: the request methods for streams that are already open. Any thread."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.registry import Registry
from pyramid.request import Request

from pushdemo.topics.catalog import Catalog, TopicLimitError
from pushdemo.topics.pattern import Reference
from pushdemo.web.admission import RETRY_AFTER, Clients, retry_later
from pushdemo.web.broker import Backend
from pushdemo.web.publications import Later
from pushdemo.web.publish import commit_of
from pushdemo.web.push import MISSING, begun, refer
from pushdemo.web.sessions import Sessions


def end_streams(
    request: Request,
    /,
    *,
    owner: Any = MISSING,
    topic: str | Reference = MISSING,
    now: bool = False,
    tm: Any = None,
    **values: str | int,
) -> None:
    """Request method: end the streams and long polls of an owner, of a topic, or those that are of both.

    At a logout: `request.end_streams(owner=request.authenticated_userid)`, before `forget`, which leaves no userid; at
    a changed permission with `topic` too. A pattern without its values means all of its topics. Within a second the
    clients get a clean end on every node; they come back by themselves, and the view decides anew. A stream whose
    request has begun before is ended too. Without `topic`, the owner's generator sessions end as well. In a request
    with a transaction (pyramid_tm, or `tm`) it waits for the commit, unless `now`: otherwise clients would be back
    before it, and stay.

    Raises TypeError where neither part is given, or one is None; KeyError for a pattern that is not declared; and
    HTTPServiceUnavailable where the other nodes cannot be told now: then only this node's clients have ended.
    """
    if owner is MISSING and topic is MISSING:
        raise TypeError("end_streams needs an owner, a topic, or both")
    if owner is None or topic is None:
        raise TypeError("end_streams: owner and topic must not be None; an anonymous visitor has no userid")
    name = None
    if topic is not MISSING:
        catalog: Catalog = request.registry["pushdemo.topics"]
        everywhere = isinstance(topic, str) and not values
        name = catalog.pattern(topic).text if everywhere else refer(catalog, (topic,), values)[0].name  # type: ignore[arg-type]
    elif values:
        raise TypeError(f"end_streams: {', '.join(values)} without a topic")
    whose = None if owner is MISSING else str(owner)
    commit = None if now else commit_of(request, tm)
    if commit is not None:
        commit.add(Later("to end streams", partial(_end_everywhere, request.registry, whose, name)))
        return
    try:
        _end_everywhere(request.registry, whose, name)
    except ConnectionError as error:  # it is in the log
        reason = "streams on other nodes cannot be ended at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error


def _end_everywhere(registry: Registry, owner: str | None, topic: str | None) -> None:
    end_here(registry["pushdemo.clients"], registry["pushdemo.generators"], owner, topic)
    backend: Backend = registry["pushdemo.backend"]
    backend.order_end(owner, topic)


def end_here(clients: Clients, generators: Sessions, owner: str | None, topic: str | None) -> None:
    """End the clients of an owner, of a topic, or of both, in this process."""
    clients.pace.orders.add(owner, topic)
    if owner is not None and topic is None:
        generators.forget_user(owner)


def count_listeners(request: Request, pattern: str | Reference, /, **values: str | int) -> int:
    """Request method: how many clients listen to a topic, on all nodes; exact within two seconds.

    Raises KeyError for a pattern that is not declared, and TypeError where keywords are missing or too many.
    """
    catalog: Catalog = request.registry["pushdemo.topics"]
    (reference,) = refer(catalog, (pattern,), values)
    topic = catalog.find(reference)
    backend: Backend = request.registry["pushdemo.backend"]
    return backend.count_listeners(reference.name, topic.clients if topic else 0)


def newest_event_id(request: Request, pattern: str | Reference, /, **values: str | int) -> str:
    """Request method: the id of the newest message that the topic had when the request began.

    A page that is rendered from the database gives it to its script, and its stream begins there: nothing is missed
    between the two. A message may repeat what the page shows already. It makes the topic, and counts as its use.

    Raises what `publish` raises for the pattern, and HTTPServiceUnavailable where there is no room for the topic.
    """
    catalog: Catalog = request.registry["pushdemo.topics"]
    (reference,) = refer(catalog, (pattern,), values)
    try:
        return catalog.open(reference).newest_id(begun(request))
    except TopicLimitError as error:
        raise HTTPServiceUnavailable(str(error), headers=retry_later()) from None
