"""Publishing from a request: the methods that the add-on gives it. Any thread."""

from __future__ import annotations

from typing import Any

from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.request import Request

from pushdemo.topics.catalog import Catalog, TopicLimitError
from pushdemo.topics.message import Message
from pushdemo.topics.pattern import Reference
from pushdemo.web.push import RETRY_AFTER, refer


def publish(request: Request, pattern: str | Reference, value: Any, /, **values: str | int) -> Message | None:
    """Request method: add a message with `value` to a topic, which is made if it does not live.

    `pattern` is the topic as it is declared, `values` are those of its placeholders; or it is a reference. What `value`
    may be is the topic's content type's to say: see `Topic.publish`. Returns None, where as many topics live as may and
    all have clients: then the message is dropped, counted, and the log says so.

    Raises KeyError for a pattern that is not declared, TypeError where keywords are missing or too many, HTTPBadRequest
    for text that cannot be a placeholder's value; and HTTPServiceUnavailable, with Retry-After, where topics are shared
    at a Redis that cannot take the message now; `Topic.publish` raises its ConnectionError.
    """
    catalog: Catalog = request.registry["pushdemo.topics"]
    (reference,) = refer(catalog, (pattern,), values)
    try:
        return catalog.publish(reference, value)
    except ConnectionError as error:  # it is in the log, where Redis is no secret
        reason = f"nothing can be published to {reference.pattern} at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error


def end_topic(request: Request, pattern: str | Reference, /, **values: str | int) -> None:
    """Request method: end a topic. Its clients get what there is, and a clean end; so does who comes later.

    The end is remembered for the topic's lifetime. Raises what `publish` does.
    """
    catalog: Catalog = request.registry["pushdemo.topics"]
    (reference,) = refer(catalog, (pattern,), values)
    try:
        catalog.open(reference).end()
    except (ConnectionError, TopicLimitError) as error:
        reason = f"{reference.pattern} cannot be ended at this moment"
        raise HTTPServiceUnavailable(reason, headers={"Retry-After": str(RETRY_AFTER)}) from error
