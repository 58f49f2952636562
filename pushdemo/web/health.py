"""The views that a balancer, or whoever starts and stops the nodes, asks one of them. Any thread.

Neither asks Redis: each answers with what the process knows.
"""

from __future__ import annotations

from typing import Any

from pyramid.request import Request


def live(request: Request) -> dict[str, Any]:
    """Answer 200 as long as the process can do its work; 503 and the reason where clients wait for nothing any more.

    Restart one that answers 503 for long, or not at all.
    """
    trouble = request.environ.get("pushdemo.trouble")  # our server's
    if trouble is None or not (reason := trouble()):
        return {"live": True}
    request.response.status_int = 503
    return {"live": False, "reason": reason}


def ready(request: Request) -> dict[str, Any]:
    """Answer 200 where new clients are well served; 503 and why while the server drains, or nothing can be published.

    The process notices within seconds. A node that is not ready still serves its pages and keeps its clients. A Redis
    that is full is a reason with 200: all nodes have it at once, and a balancer would be left without any.
    """
    end = request.environ.get("pushdemo.end")
    backend = request.registry["pushdemo.backend"]
    reason = "the server is stopping" if end and end.near else backend.trouble
    if reason:
        request.response.status_int = 503
        return {"ready": False, "reason": reason}
    return {"ready": True} | ({"reason": backend.warning} if backend.warning else {})
