"""The demo application's addresses, topics and pages. Runs while the application is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import metadata
from typing import Any

from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.events import BeforeRender
from pyramid.httpexceptions import HTTPMethodNotAllowed
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.demo import chart, load, rooms, status
from pushdemo.demo.home import data_stream
from pushdemo.web.settings import Settings

# Route, title and a sentence, in the order of the front page and the navigation.
PAGES = (
    ("home", "Messages", "What the server knows, as it learns it."),
    (
        "rooms",
        "Rooms",
        "Write, and everyone who is in the room reads it at once. A room is made when it is first visited.",
    ),
    ("load", "Load", "How busy the server is, as a picture that moves without a script."),
    ("primes", "Primes", "A generator of your own on the server: one number for each request."),
    ("document", "Document", "A long text that appears line by line while the server reads it."),
    ("job", "Job", "Real work that reports its progress. Leave it, come back to it, or cancel it."),
    (
        "pushdemo.status",
        "Status",
        "Who listens, by which transport, how far the slowest is behind, and what the caches do.",
    ),
)


def _links() -> tuple[tuple[str, str], ...]:
    """Return names and addresses of the project's pages, as the installed package has them."""
    urls = metadata("pushdemo").get_all("Project-URL") or []
    return tuple((name.strip(), address.strip()) for name, _, address in (url.partition(",") for url in urls))


LINKS = _links()


def includeme(config: Configurator) -> None:
    """Add the demo's routes, static files and topics."""
    config.add_static_view("static", "pushdemo:static", cache_max_age=60)
    config.add_static_view("demo", "pushdemo.demo:static", cache_max_age=60)
    machine = load.Load()
    config.add_topic("server", partial(_sampling, machine, data_stream))
    config.add_route("home", "/")
    config.add_route("server", "/server/index")
    _add_rooms(config)
    _add_load(config, machine)
    config.add_route("primes", "/primes")
    config.add_route("prime", "/prime")
    config.add_route("document", "/document")
    config.add_route("lines", "/document/lines")
    config.add_route("job", "/job")
    config.add_route("run", "/job/run")
    _add_status(config)
    config.add_subscriber(_add_pages, BeforeRender)
    for route in (*(route for route, _, _ in PAGES), "room"):
        if not route.startswith("pushdemo."):
            config.add_view(_method_not_allowed, route_name=route)  # for a method without a view


def _add_rooms(config: Configurator) -> None:
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy(httponly=True, samesite="Lax"))
    config.registry["pushdemo.demo.rate"] = rooms.Rate()
    config.add_topic(rooms.MESSAGES, history=50)
    count = partial(rooms.there, config.registry["pushdemo.topics"], config.registry["pushdemo.backend"])
    config.add_topic(
        rooms.THERE, count, interval=rooms.INTERVAL, content_type="application/json", history=1, shared=False
    )
    config.add_route("rooms", "/rooms")
    config.add_route("room", "/rooms/{room}")
    config.add_route("room_stream", "/rooms/{room}/stream")


def _sampling(machine: load.Load, source: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    """Yield what `source` does, and sample the load beside it: who goes to its page then finds it filled."""
    for message in source():
        yield message
        machine.samples()


def _add_load(config: Configurator, machine: load.Load) -> None:
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
    event["links"] = LINKS


def _method_not_allowed(request: Request) -> Response:
    raise HTTPMethodNotAllowed(f"{request.method} is not for a page", headers={"Allow": "GET, HEAD"})
