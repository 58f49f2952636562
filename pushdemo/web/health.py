"""The views that a balancer, or whoever starts and stops the nodes, asks one of them. Any thread.

Neither asks Redis: each answers with what the process knows.
"""

from __future__ import annotations

from typing import Any

from pyramid.request import Request


def live(request: Request) -> dict[str, Any]:
    """Answer 200 as long as the process answers at all. Restart one that does not."""
    return {"live": True}


def ready(request: Request) -> dict[str, Any]:
    """Answer 200 where new clients are well served; 503 and the reason while the server drains or Redis is gone.

    The process notices within seconds that Redis is gone. A node that is not ready still serves its pages and keeps its
    clients.
    """
    end = request.environ.get("pushdemo.end")
    trouble: str = request.registry["pushdemo.backend"].trouble
    reason = "the server is stopping" if end and end.near else trouble and f"Redis is not reachable: {trouble}"
    if not reason:
        return {"ready": True}
    request.response.status_int = 503
    return {"ready": False, "reason": reason}
