"""`/health/live` and `/health/ready`: what a balancer, or whoever starts and stops the nodes, asks one of them."""

from __future__ import annotations

from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

NO_STORE = 0  # seconds that anyone may keep the answer


@view_config(route_name="live", request_method="GET", renderer="json", http_cache=NO_STORE)
def live(request: Request) -> dict[str, Any]:
    """200 as long as the process answers at all: one that does not is to be started anew."""
    return {"live": True}


@view_config(route_name="ready", request_method="GET", renderer="json", http_cache=NO_STORE)
def ready(request: Request) -> dict[str, Any]:
    """200 where new clients are well served here; 503 and why, while the Redis that nodes share cannot be reached.

    What the process knows is told, and nothing asked: it notices within seconds. A node that is not ready still serves
    its pages, and its clients keep what they have.
    """
    trouble: str = request.registry["pushdemo.backend"].trouble
    if not trouble:
        return {"ready": True}
    request.response.status_int = 503
    return {"ready": False, "reason": f"Redis is not reachable: {trouble}"}
