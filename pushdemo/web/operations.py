"""What an operator asks a node: is it alive, is it ready, how is it doing? For any application, and the demo.

Runs while the application is configured; its views run in any thread.
"""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated
from pyramid.httpexceptions import HTTPMethodNotAllowed
from pyramid.interfaces import ISecurityPolicy
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.web import health
from pushdemo.web.settings import Settings, SettingsError
from pushdemo.web.status import INTERVAL, Status

TOPIC = "pushdemo.status"
_PARTS = ("backend", "topics", "clients", "generators", "caches")


def includeme(config: Configurator) -> None:
    """Add `/health/live`, `/health/ready`, `/metrics`, `/status` and `/status/stream`.

    `config.include("pushdemo.operations", route_prefix="/ops")` puts them under a prefix. The routes are called
    `pushdemo.live`, `pushdemo.ready`, `pushdemo.metrics`, `pushdemo.status` and `pushdemo.status_stream`. The setting
    `pushdemo.status_permission` names the permission that status and metrics need; health needs none. Raises
    ModuleNotFoundError without the extra `operations`, and SettingsError, when the application is made, for a
    permission that no security policy could grant.
    """
    try:
        from pushdemo.web import prometheus
    except ModuleNotFoundError as error:
        message = f'pushdemo.operations needs {error.name}: pip install "pushdemo[operations]"'
        raise ModuleNotFoundError(message, name=error.name) from error
    config.include("pushdemo")
    registry = config.registry
    # It must not refer to the registry, which would then never be freed.
    status = registry["pushdemo.status"] = Status(*(registry[f"pushdemo.{part}"] for part in _PARTS))
    registry["pushdemo.prometheus"] = prometheus.prometheus_registry(status)
    config.add_topic(TOPIC, status.report, interval=INTERVAL, content_type="application/json", shared=False)
    _add(config, "live", "/health/live", health.live, renderer="json", http_cache=0)
    _add(config, "ready", "/health/ready", health.ready, renderer="json", http_cache=0)
    guard = _guard(config)
    _add(config, "metrics", "/metrics", prometheus.metrics, **guard)
    _add(config, "status", "/status", report, renderer="json", **guard)
    _add(config, "status_stream", "/status/stream", stream, **guard)


def report(request: Request) -> dict[str, Any]:
    """View: the figures as JSON."""
    request.response.headers["Cache-Control"] = "no-store"
    figures: dict[str, Any] = request.registry["pushdemo.status"].report()
    return figures


def stream(request: Request) -> Response:
    """View: the figures as JSON, every two seconds, by every transport."""
    return request.push(TOPIC)


def _add(config: Configurator, name: str, path: str, view: Any, **options: Any) -> None:
    route = f"pushdemo.{name}"
    config.add_route(route, path)
    config.add_view(view, route_name=route, request_method="GET", **options)
    config.add_view(_method_not_allowed, route_name=route)


def _guard(config: Configurator) -> dict[str, str]:
    settings: Settings = config.registry["pushdemo.settings"]
    if not settings.status_permission:
        return {}
    config.add_subscriber(_check_policy, ApplicationCreated)
    return {"permission": settings.status_permission}


def _check_policy(event: ApplicationCreated) -> None:
    registry = event.app.registry
    if registry.queryUtility(ISecurityPolicy) is None:
        name = registry["pushdemo.settings"].status_permission
        raise SettingsError(
            f"pushdemo.status_permission = {name}: the application has no security policy that could grant it, so "
            "everyone would be let in; include one (pyramid.includes in the ini), or leave the setting empty"
        )


def _method_not_allowed(request: Request) -> Response:
    raise HTTPMethodNotAllowed(f"{request.method} is not for this page", headers={"Allow": "GET, HEAD"})
