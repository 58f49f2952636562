"""The page `/status`, for people. `pushdemo.operations` answers scripts at the same address."""

from __future__ import annotations

from typing import Any

from pyramid.request import Request


def status_page(request: Request) -> dict[str, Any]:
    """The figures as a page, which keeps itself up to date."""
    request.response.headers["Cache-Control"] = "no-store"
    settings = request.registry["pushdemo.settings"]
    return {"report": request.registry["pushdemo.status"].report(), "heartbeat": settings.heartbeat}
