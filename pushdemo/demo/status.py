"""The page `/status` and its topic.

routes.py registers these views, because a setting says which permission they need.
"""

from __future__ import annotations

from typing import Any

from pyramid.request import Request
from pyramid.response import Response


def status_page(request: Request) -> dict[str, Any]:
    """The figures as a page, which keeps itself up to date."""
    request.response.headers["Cache-Control"] = "no-store"
    settings = request.registry["pushdemo.settings"]
    return {"report": request.registry["pushdemo.status"].report(), "heartbeat": settings.heartbeat}


def status_json(request: Request) -> dict[str, Any]:
    """The figures as JSON."""
    request.response.headers["Cache-Control"] = "no-store"
    report: dict[str, Any] = request.registry["pushdemo.status"].report()
    return report


def status_stream(request: Request) -> Response:
    """The topic `status`: the figures as JSON, again and again."""
    return request.push("status")
