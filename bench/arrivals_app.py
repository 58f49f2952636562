"""The application of arrivals.py: a topic, a plain page, and `/publish`, on pushdemo's server or on waitress as it is.

usage: arrivals_app.py PORT pushdemo|waitress
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response


def stream(request: Request) -> Any:
    return request.push("bench")


def page(request: Request) -> Response:
    return Response("a plain page", content_type="text/plain")


def publish(request: Request) -> Response:
    return Response(request.publish("bench", request.query_string).id, content_type="text/plain")


def application() -> Any:
    with Configurator(settings={"pushdemo.max_clients": "15000"}) as config:
        config.include("pushdemo")
        config.add_topic("bench", content_type="text/plain")
        for view in (stream, page, publish):
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__)
        return config.make_wsgi_app()


def main(port: int, server: str) -> None:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    settings = {"listen": f"127.0.0.1:{port}", "threads": 4, "backlog": 4096, "connection_limit": 12_000}
    app = application()
    app.registry["pushdemo.topics"]["bench"].publish("the first")
    if server == "waitress":
        import waitress

        waitress.serve(app, asyncore_use_poll=True, **settings)
    else:
        from pushdemo.server import main as serve

        serve(app, **settings)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
