"""The demo application's addresses, topics and pages. Runs while the application is configured."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated, BeforeRender
from pyramid.httpexceptions import HTTPMethodNotAllowed
from pyramid.interfaces import ISecurityPolicy
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.demo import chart, load, status
from pushdemo.demo.home import data_stream
from pushdemo.web import health, prometheus
from pushdemo.web import status as own
from pushdemo.web.settings import Settings, SettingsError

# Route, title and a sentence, in the order of the front page and the navigation.
PAGES = (
    ("home", "Messages", "What the server knows, as it learns it."),
    ("load", "Load", "What this machine is doing, as a picture that moves without a script."),
    ("primes", "Primes", "A generator of your own, one prime a request, for as long as you like."),
    ("document", "Document", "A long text that appears line by line while the server still reads it."),
    ("job", "Job", "Real work that reports its progress, and that you can leave, come back to, and cancel."),
    ("status", "Status", "Who listens by which transport, how far the slowest is behind, and what the caches do."),
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
    for view in (health.live, health.ready):
        config.add_route(view.__name__, f"/health/{view.__name__}")
        config.add_view(view, route_name=view.__name__, request_method="GET", renderer="json", http_cache=0)
    _add_status(config)
    config.add_subscriber(_add_pages, BeforeRender)
    for name in [*(route for route, _, _ in PAGES), "live", "ready", "metrics"]:
        config.add_view(_method_not_allowed, route_name=name)  # for a method without a view


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
    """Add what an operator looks at. `Status` must not refer to the registry, which would then never be freed."""
    registry = config.registry
    parts = (registry[f"pushdemo.{part}"] for part in ("backend", "topics", "clients", "generators", "caches"))
    report = registry["pushdemo.status"] = own.Status(*parts)
    registry["pushdemo.prometheus"] = prometheus.prometheus_registry(report)
    config.add_topic("status", report.report, interval=own.INTERVAL, content_type="application/json", shared=False)
    settings: Settings = registry["pushdemo.settings"]
    guard = {"permission": settings.status_permission} if settings.status_permission else {}
    if guard:
        config.add_subscriber(_check_policy, ApplicationCreated)
    for name, path in (("status", "/status"), ("status_stream", "/status/stream"), ("metrics", "/metrics")):
        config.add_route(name, path)
    page: dict[str, Any] = {"route_name": "status", "request_method": "GET", **guard}
    config.add_view(status.status_page, renderer="pushdemo.demo:templates/status.jinja2", accept="text/html", **page)
    config.add_view(status.status_json, renderer="json", accept="application/json", **page)
    config.add_view(status.status_stream, route_name="status_stream", **guard)
    config.add_view(prometheus.metrics, route_name="metrics", request_method="GET", **guard)


def _check_policy(event: ApplicationCreated) -> None:
    registry = event.app.registry
    if registry.queryUtility(ISecurityPolicy) is None:
        name = registry["pushdemo.settings"].status_permission
        raise SettingsError(
            f"pushdemo.status_permission = {name}: the application has no security policy that could grant it, so "
            "everyone would be let in; include one (pyramid.includes in the ini), or leave the setting empty"
        )


def _add_pages(event: BeforeRender) -> None:
    event["pages"] = PAGES


def _method_not_allowed(request: Request) -> Response:
    raise HTTPMethodNotAllowed(f"{request.method} is not for a page", headers={"Allow": "GET, HEAD"})
