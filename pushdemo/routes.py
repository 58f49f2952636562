"""The demo application's addresses, topics and pages. Runs while the application is configured."""

from __future__ import annotations

from pyramid.config import Configurator
from pyramid.events import BeforeRender
from pyramid.httpexceptions import HTTPMethodNotAllowed
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.sources.clock import data_stream

# Route, title and a sentence for those who look for it: the front door and the navigation show them in this order.
PAGES = (
    ("home", "Messages", "What the server knows, as it learns it."),
    ("primes", "Primes", "A generator of your own, one prime a request, for as long as you like."),
    ("document", "Document", "A long text that appears line by line while the server still reads it."),
    ("job", "Job", "Real work that reports its progress, and that you can leave, come back to, and cancel."),
)


def includeme(config: Configurator) -> None:
    """Routes, static files and topics of the demo."""
    config.add_static_view("static", "pushdemo:static", cache_max_age=60)
    config.add_topic("server", data_stream)
    config.add_route("home", "/")
    config.add_route("server", "/server/index")
    config.add_route("primes", "/primes")
    config.add_route("prime", "/prime")
    config.add_route("document", "/document")
    config.add_route("lines", "/document/lines")
    config.add_route("job", "/job")
    config.add_route("run", "/job/run")
    config.add_subscriber(_add_pages, BeforeRender)
    for name, _, _ in PAGES:
        config.add_view(_method_not_allowed, route_name=name)  # where no view takes the method


def _add_pages(event: BeforeRender) -> None:
    event["pages"] = PAGES


def _method_not_allowed(request: Request) -> Response:
    raise HTTPMethodNotAllowed(f"{request.method} is not for a page", headers={"Allow": "GET, HEAD"})
