"""The bench's application on pushdemo's own server: one topic, a plain page, and a thread that publishes.

usage: app.py PORT RATE CLIENTS [--no-ring]. launch.py starts it, with the checkout and bench/peers on the path. With
`--no-ring` it is what it is where the kernel has no io_uring, or where a container's profile forbids it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from message import body, pauses
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.server import main as serve


def stream(request: Request) -> Any:
    return request.push("bench")


def page(request: Request) -> Response:
    return Response("a plain page", content_type="text/plain")


def publish(topic: Any, rate: float) -> None:
    for pause in pauses(rate):
        time.sleep(pause)
        topic.publish(body())


def main(port: int, rate: float, *, io_uring: bool) -> None:
    with Configurator(settings={"pushdemo.max_clients": "15000"}) as config:
        config.include("pushdemo")
        config.add_topic("bench", interval=None)
        for name, view in {"stream": stream, "page": page}.items():
            config.add_route(name, f"/{name}")
            config.add_view(view, route_name=name)
    app = config.make_wsgi_app()
    topic = app.registry["pushdemo.topics"]["bench"]
    threading.Thread(target=publish, args=(topic, rate), daemon=True).start()
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a line for every request that had to wait
    serve(app, listen=f"127.0.0.1:{port}", threads=4, io_uring=io_uring)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), io_uring="--no-ring" not in sys.argv)
