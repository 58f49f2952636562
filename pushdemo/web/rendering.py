"""Values as JSON, by the application's own "json" renderer where they need it. Any thread may call this."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pyramid.registry import Registry
from pyramid.renderers import render
from pyramid.request import Request, apply_request_extensions

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


def blank_request(registry: Registry, base_url: str = "http://localhost") -> Request:
    """Return a request for `base_url` with the application's request methods, and no user, session or cookie."""
    request = Request.blank("/", base_url=base_url)
    request.registry = registry
    apply_request_extensions(request)
    return request


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
