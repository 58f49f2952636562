"""The pages that say that something is not there, or not now; and the headers that every response has.

A script gets Pyramid's own text or JSON: a page is for those who ask for HTML by its name.
"""

from __future__ import annotations

from pyramid.events import NewResponse, subscriber
from pyramid.httpexceptions import HTTPException
from pyramid.renderers import render_to_response
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import exception_view_config, notfound_view_config

HTML = "text/html"
TITLES = {
    400: "That cannot be read",
    403: "Not for you",
    404: "There is nothing here",
    405: "Not like this",
    406: "Not in this form",
    429: "Too much at once",
    503: "Full at this moment",
}

# All scripts, styles and pictures are files of the demo's own; nothing is inline.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
}


@notfound_view_config()
@exception_view_config(HTTPException)
def error(error: HTTPException, request: Request) -> Response:
    """Return a page for a browser, and the error itself for anything else."""
    if error.status_int < 400 or HTML not in str(request.accept):
        return error
    value = {"status": error.status_int, "title": TITLES.get(error.status_int, error.title), "detail": error.detail}
    response = render_to_response("pushdemo.demo:templates/error.jinja2", value, request)
    response.status = error.status
    own = {"content-type", "content-length"}
    response.headers.update({name: value for name, value in error.headers.items() if name.lower() not in own})
    return response


@subscriber(NewResponse)
def add_headers(event: NewResponse) -> None:
    """Add what browsers and scanners look for."""
    response: Response = event.response
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.content_type == HTML:
        response.headers.update(PAGE_HEADERS)
