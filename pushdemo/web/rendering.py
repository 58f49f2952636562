"""Values as bodies of messages, and as JSON, by the application's own renderers where they need it. Any thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pyramid.registry import Registry
from pyramid.renderers import render
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext

from pushdemo.topics import content

# NaN and Infinity are no JSON (RFC 8259, section 6), and no browser reads them.
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ONE_LINE = str.maketrans("\r\n", "  ")  # JSON has line breaks between its tokens alone


def json_text(
    registry: Registry, value: Any, request: Request | None = None, encode: Callable[[Any], str] = _compact
) -> str:
    """Return `value` as JSON on one line.

    `encode` is tried first, which is fast: it knows what Python's `json` does. What it raises TypeError for is given to
    the application's renderer "json" (`__json__`, its adapters), with `request`, or without one a blank request.
    Raises TypeError for what that cannot carry either, and ValueError for NaN, Infinity and half a surrogate pair.
    """
    try:
        return encode(value)
    except TypeError:
        pass  # and the next error has nothing to do with this one
    text = render("json", value, request=request or blank_request(registry))
    if isinstance(text, bytes):
        text = text.decode()
    text.encode()
    json.loads(text, parse_constant=_refuse)
    one_line: str = text.translate(_ONE_LINE)
    return one_line


def body_of(
    registry: Registry, content_type: str, value: Any, renderer: str = "", package: ModuleType | None = None
) -> bytes:
    """Return `value` as a body of `content_type`, which all clients share.

    JSON is the application's own (`json_text`). A `renderer`, looked for in `package` where its name is relative, makes
    the body of the value: it is given a blank request, so that nothing of the publisher's reaches the clients. Raises
    TypeError or ValueError where the value cannot be a body of that type.
    """
    base_url = registry["pushdemo.settings"].base_url
    if renderer:
        with RequestContext(request := blank_request(registry, base_url)):
            given = value if isinstance(value, Mapping) else {"value": value}
            text = render(renderer, given, request=request, package=package)
        return content.body(content_type, text.encode() if isinstance(text, str) else text)
    if not content.is_json(content_type) or isinstance(value, bytes):
        return content.body(content_type, value)
    try:
        return content.body(content_type, value)
    except TypeError:
        pass  # the application may know how
    with RequestContext(request := blank_request(registry, base_url)):
        return content.body(content_type, json_text(registry, value, request).encode())


def blank_request(registry: Registry, base_url: str = "http://localhost") -> Request:
    """Return a request for `base_url` with the application's request methods, and no user, session or cookie."""
    request = Request.blank("/", base_url=base_url)
    request.registry = registry
    apply_request_extensions(request)
    return request


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
