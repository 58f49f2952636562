"""The demo application's addresses, topics and pages. Runs while the application is configured."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyramid.config import Configurator
from pyramid.events import BeforeRender
from pyramid.httpexceptions import HTTPMethodNotAllowed
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.demo import chart, load, status
from pushdemo.demo.home import data_stream
from pushdemo.web.settings import Settings

# Route, title and a sentence, in the order of the front page and the navigation.
PAGES = (
    ("home", "Messages", "What the server knows, as it learns it."),
    ("load", "Load", "What this machine is doing, as a picture that moves without a script."),
    ("primes", "Primes", "A generator of your own, one prime a request, for as long as you like."),
    ("document", "Document", "A long text that appears line by line while the server still reads it."),
    ("job", "Job", "Real work that reports its progress, and that you can leave, come back to, and cancel."),
    (
        "pushdemo.status",
        "Status",
        "Who listens by which transport, how far the slowest is behind, and what the caches do.",
    ),
)


def includeme(config: Configurator) -> None:
    """Add the demo's routes, static files and topics."""
    config.add_static_view("static", "pushdemo:static", cache_max_age=60)
    config.add_static_view("demo", "pushdemo.demo:static", cache_max_age=60)
    config.add_topic("server", data_stream)
    config.add_route("home", "/")
    config.add_route("server", "/server/index")
    _add_load(config)
    config.add_route("primes", "/primes")
    config.add_route("prime", "/prime")
    config.add_route("document", "/document")
    config.add_route("lines", "/document/lines")
    config.add_route("job", "/job")
    config.add_route("run", "/job/run")
    _add_status(config)
    config.add_subscriber(_add_pages, BeforeRender)
    for route, _, _ in PAGES:
        if not route.startswith("pushdemo."):
            config.add_view(_method_not_allowed, route_name=route)  # for a method without a view


def _add_load(config: Configurator) -> None:
    machine = load.Load()
    config.add_topic("load", machine.line, interval=load.INTERVAL, shared=False)
    for name, width in (("load.chart", load.WIDE), ("load.chart.narrow", load.NARROW)):
        pictures = partial(chart.pictures, machine, width)
        config.add_topic(name, pictures, interval=0, content_type=chart.SVG, shared=False)  # the source paces itself
    config.add_route("load", "/load")
    config.add_route("load_figures", "/load/index")
    config.add_route("load_chart", "/load/chart")


def _add_status(config: Configurator) -> None:
    """Add what an operator asks, and for people a page at the same address."""
    config.include("pushdemo.operations")
    settings: Settings = config.registry["pushdemo.settings"]
    guard = {"permission": settings.status_permission} if settings.status_permission else {}
    page: dict[str, Any] = {"route_name": "pushdemo.status", "request_method": "GET", "accept": "text/html", **guard}
    config.add_view(status.status_page, renderer="pushdemo.demo:templates/status.jinja2", **page)


def _add_pages(event: BeforeRender) -> None:
    event["pages"] = PAGES


def _method_not_allowed(request: Request) -> Response:
    raise HTTPMethodNotAllowed(f"{request.method} is not for a page", headers={"Allow": "GET, HEAD"})
