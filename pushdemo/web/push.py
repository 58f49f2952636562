"""A topic and a transport as a Pyramid response that any WSGI server can iterate, and that ours parks.

Here a request is read (which transport, from where on), checked, and admitted or refused. Runs in the request's thread,
which is free again before the stream begins, where the server offers `pushdemo.park`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pyramid.httpexceptions import (
    HTTPBadRequest,
    HTTPException,
    HTTPMethodNotAllowed,
    HTTPNotAcceptable,
    HTTPServiceUnavailable,
)
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.delivery.access import Record
from pushdemo.delivery.cursor import beginning
from pushdemo.delivery.rights import Right
from pushdemo.delivery.subscription import LARGE, LongPoll, Subscription
from pushdemo.topics.catalog import Catalog, SourceLimitError, TopicLimitError
from pushdemo.topics.pattern import Reference, TopicValueError
from pushdemo.topics.topic import EARLIEST, Topic
from pushdemo.transports import STREAMS, TRANSPORTS, Names, Transport
from pushdemo.web.admission import Clients, admit, retry_later
from pushdemo.web.expiry import Expires, checked, deadline
from pushdemo.web.query import Query, query_of

ALLOWED = "GET, HEAD, OPTIONS"
BEGAN = "pushdemo.began"  # in the environ: when the request began, by the monotonic clock
MISSING: Any = object()  # of an argument for which None is no value

_LAST_EVENT_ID = re.compile("last[_-]?event[_-]?id", re.IGNORECASE)

# No cache may keep a stream, no proxy compress (RFC 9111 section 5.2.2.6) or collect it (nginx reads the last).
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


def push(
    request: Request,
    /,
    *topics: str | Reference,
    start: Literal["earliest", "latest"] = "latest",
    expires: Expires = None,
    owner: Any = MISSING,
    **values: str | int,
) -> Response:
    """Request method: the response that brings one topic to this client, or several, by the transport it asks for.

    `topics` are names and patterns as they are declared, or references; `values` are those of the patterns'
    placeholders. Of several topics the client may choose some with `?topic=`, given as often as it likes; messages then
    bear their topic's name. A client without a last event id begins with the newest message of each topic, or with all
    that the history holds where `start` is "earliest".

    The view is the check whether the client may listen. `expires` (seconds, a timedelta, or a datetime with a time
    zone; the ini's `pushdemo.streams.expire` where it is left out) is when the stream ends, up to a tenth earlier at
    random: the client comes back by itself with its last id, and the view decides anew. `owner` is whose stream it is,
    for `request.end_streams` and `pushdemo.max_clients_per_user`: the authenticated userid, unless it is given.

    Raises KeyError for a topic that is not declared, and TypeError for none, or where keywords are missing or too many.
    What is wrong with the request is raised as the Pyramid exception of its status: 400 (also for text that cannot be
    a placeholder's value), 405, 406, or 503 when there is no room for another client, topic or source.
    """
    clients: Clients = request.registry["pushdemo.clients"]
    headers = dict(HEADERS, Vary="Accept, Origin" if clients.origins else "Accept")
    headers |= cross_origin(request, clients.origins, "GET, HEAD")
    if request.method == "OPTIONS":
        return Response(status=204, headerlist=list({**headers, "Allow": ALLOWED}.items()))
    try:
        if request.method not in ("GET", "HEAD"):
            raise HTTPMethodNotAllowed(f"{request.method} is not for a stream", headers={"Allow": ALLOWED})
        references = refer(request.registry["pushdemo.topics"], topics, values)
        right = _right(request, clients, expires, owner)
        query = _query(request)
        return _respond(request, query, clients, _chosen(query, references), headers, start, right)
    except HTTPException as refusal:
        clients.counters.refused("topic", refusal.code)
        refusal.headers.update({name: value for name, value in headers.items() if name not in HEADERS})
        raise


def begun(request: Request) -> float:
    """When the request began, by the monotonic clock, in seconds; now, outside of the add-on's tween."""
    began: float = request.environ.get(BEGAN) or time.monotonic()
    return began


def _right(request: Request, clients: Clients, expires: Expires, owner: Any) -> Right:
    userid = request.authenticated_userid if owner is MISSING else owner
    until = deadline(checked(clients.expire if expires is None else expires))
    return Right(None if userid is None else str(userid), begun(request), until)


def refer(catalog: Catalog, topics: Sequence[str | Reference], values: Mapping[str, str | int]) -> list[Reference]:
    """The topics that a view names. Raises HTTPBadRequest for text that cannot be a value: it may be the client's."""
    try:
        return catalog.refer_all(topics, values)
    except TopicValueError as error:
        if all(isinstance(value, str | int) for value in values.values()):
            raise HTTPBadRequest(str(error)) from None
        raise


def _query(request: Request) -> Query:
    try:
        return query_of(request)
    except UnicodeDecodeError:
        raise HTTPBadRequest("the query is not percent-encoded UTF-8") from None


def _respond(
    request: Request,
    query: Query,
    clients: Clients,
    references: Sequence[Reference],
    headers: dict[str, str],
    start: str,
    right: Right,
) -> Response:
    catalog: Catalog = request.registry["pushdemo.topics"]
    name = negotiate(
        request,
        ", ".join([reference.pattern for reference in references]),
        [catalog.content_type(reference) for reference in references],
    )
    own_ids, names = _asked(query, "ids"), _names(query, references)
    headerlist = [("Content-Type", content_type(request, TRANSPORTS[name])), *headers.items()]
    if request.method == "HEAD":
        return Response(headerlist=headerlist, app_iter=())
    last_event_id = last_event_id_of(request)
    if not last_event_id and start == "earliest":
        last_event_id = EARLIEST
    if name == "sse" and _is_over(catalog, references, last_event_id):
        return Response(status=204, headerlist=list(headers.items()))  # HTML section 9.2.3: it does not come back
    release = admit(request, right.owner)
    try:
        topics = _open(catalog, references, joined=name == "sse" and not own_ids)
    except BaseException:
        release()
        raise
    if name not in STREAMS:
        return _long_poll(request, LongPoll(topics, clients.pace, last_event_id, release, right), headerlist)
    subscription = Subscription(topics, STREAMS[name], clients.pace, last_event_id, release, names, right)
    if name == "sse" and not own_ids:
        subscription.begins = "place"
    if clients.access_log:
        target = f"{request.remote_addr} {right.owner or '-'} {request.method} {request.path} {name}"
        subscription.record = Record(target, clients.pace.orders.clock())
    return stream(request, subscription, headerlist)


def _names(query: Query, references: Sequence[Reference]) -> Names:
    """How messages bear their topic's name: as an event's, if the client wants that, or where there are several."""
    return "event" if _asked(query, "events") else "topic" if len(references) > 1 else ""


def _asked(query: Query, parameter: str) -> bool:
    """Whether the query says `topic` for this parameter, which has no other value."""
    value = query.get(parameter)
    if value not in (None, "topic"):
        raise HTTPBadRequest(f"{parameter}={value}: must be topic")
    return value == "topic"


def _open(catalog: Catalog, references: Sequence[Reference], *, joined: bool) -> list[Topic]:
    """The topics of a client; as one where ids are to be `joined`: an EventSource keeps one, which must cover all.

    Raises HTTPServiceUnavailable where there is no room for them.
    """
    try:
        topics = [catalog.open_for_client(reference) for reference in references]
    except (TopicLimitError, SourceLimitError) as error:
        raise HTTPServiceUnavailable(str(error), headers=retry_later()) from None
    return [catalog.merged(topics)] if joined else topics


def stream(request: Request, body: Any, headers: Sequence[tuple[str, str]]) -> Response:
    """The response with this body, which the server parks if it can."""
    park = request.environ.get("pushdemo.park")
    return Response(headerlist=list(headers), app_iter=park(body) if park else body)


def _long_poll(request: Request, poll: LongPoll, headers: list[tuple[str, str]]) -> Response:
    body = poll.open()
    if "pushdemo.park" in request.environ and (body is None or len(body) > LARGE):
        if body is not None:
            poll.keep(body)
        return stream(request, poll, headers)
    try:
        return Response(body=poll.wait() if body is None else body, headerlist=headers)
    finally:
        poll.close()


def _is_over(catalog: Catalog, references: Sequence[Reference], last_event_id: str) -> bool:
    """Whether all topics have ended, and a client has all of them or they never had anything."""
    topics = [topic for topic in map(catalog.find, references) if topic and topic.ended]
    if len(topics) < len(references):
        return False
    positions, reset, _ = beginning(topics, last_event_id)
    return positions == [topic.head for topic in topics] and not reset


def _chosen(query: Query, references: Sequence[Reference]) -> list[Reference]:
    """Those of the view's topics that the request asks for, by their patterns or their names."""
    if not references:
        raise TypeError("push takes the name of a topic, or several")
    chosen: list[Reference] = []
    for name in query.all("topic"):
        found = [reference for reference in references if name in (reference.pattern, reference.name)]
        if not found:
            offered = ", ".join(dict.fromkeys(reference.pattern for reference in references))
            raise HTTPBadRequest(f"topic={name}: must be one of {offered}")
        chosen += found
    return list(dict.fromkeys(chosen or references))


def negotiate(
    request: Request, what: str, content_types: Sequence[str], names: Sequence[str] = tuple(TRANSPORTS)
) -> str:
    """The name of the transport that the request asks for, by `?transport=` or Accept (RFC 9110 section 12.5.1).

    `names` are those on offer, the preferred first. Raises HTTPBadRequest for a name that is none, and
    HTTPNotAcceptable, which lists what there is, where bodies of these types cannot travel as asked.
    """
    wanted = query_of(request).get("transport")
    if wanted is not None and wanted in names and all(map(TRANSPORTS[wanted].carries, content_types)):
        return wanted
    offered = [name for name in names if all(map(TRANSPORTS[name].carries, content_types))]
    if wanted is not None and wanted not in TRANSPORTS:
        raise HTTPBadRequest(f"transport={wanted}: must be one of {', '.join(offered)}")
    if wanted is None:
        by_type = {media_type: name for name in offered for media_type in TRANSPORTS[name].media_types}
        acceptable = request.accept.acceptable_offers(list(by_type))
        wanted = by_type[acceptable[0][0]] if acceptable else None
    if wanted not in offered:
        types = ", ".join(f"{TRANSPORTS[name].media_types[0]} (transport={name})" for name in offered)
        raise HTTPNotAcceptable(f"{what} comes as {types}")
    return wanted


def content_type(request: Request, kind: Transport) -> str:
    """The Content-Type of a response by this transport: an alias where the client takes that alone, or rather."""
    if len(kind.media_types) == 1:
        return kind.response_type
    acceptable = request.accept.acceptable_offers(list(kind.media_types))
    return f"{acceptable[0][0]};charset=utf-8" if acceptable else kind.response_type


def last_event_id_of(request: Request) -> str:
    """Return the id of the last message that the client has; empty where it names none.

    The header wins, as an `EventSource` sends it. Clients that replace one cannot set headers and append a parameter,
    each under a name of its own (`lastEventId`, Mercure's `lastEventID` and `Last-Event-ID`), perhaps to an address
    that has one already. So the last one that is not empty counts.
    """
    if in_header := request.environ.get("HTTP_LAST_EVENT_ID"):
        return str(in_header)
    given = [value for name, value in query_of(request).pairs if value and _LAST_EVENT_ID.fullmatch(name)]
    return given[-1] if given else ""


def cross_origin(request: Request, origins: Sequence[str], methods: str) -> dict[str, str]:
    """The headers that let a page of another origin read the response (Fetch standard, section 3.2, CORS protocol)."""
    origin = request.environ.get("HTTP_ORIGIN")
    if not origin or not ("*" in origins or origin in origins):
        return {}
    headers = {"Access-Control-Allow-Origin": "*" if "*" in origins else origin}
    headers["Access-Control-Expose-Headers"] = "Retry-After"
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = methods
        headers["Access-Control-Allow-Headers"] = "Cache-Control, Last-Event-ID"
        headers["Access-Control-Max-Age"] = "86400"
    return headers
