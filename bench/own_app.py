"""The bench's application with a topic for each client, on pushdemo's own server.

usage: own_app.py PORT RATE CLIENTS TOLD [--no-ring]. `/stream/7` brings client 7 its own topic, `/pair/7` that and the
one that all have, `/stream` the latter alone. TOLD is `each` or `all`: which topics are published to.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from message import body, turns
from pyramid.config import Configurator
from pyramid.request import Request

from pushdemo import topic
from pushdemo.server import main as serve
from pushdemo.topics.catalog import Catalog
from pushdemo.topics.pattern import Reference


def common(request: Request) -> Any:
    return request.push("all")


def own(request: Request) -> Any:
    return request.push("own.{client}", client=request.matchdict["client"])


def pair(request: Request) -> Any:
    return request.push("all", "own.{client}", client=request.matchdict["client"])


def publish(catalog: Catalog, references: Sequence[Reference], rate: float) -> None:
    at = 0
    for pause, count in turns(rate):
        time.sleep(pause)
        for _ in range(count):
            catalog.publish(references[at], body())
            at = (at + 1) % len(references)


def main(port: int, rate: float, clients: int, told: str, *, io_uring: bool) -> None:
    with Configurator(settings={"pushdemo.max_clients": "15000", "pushdemo.history": "10"}) as config:
        config.include("pushdemo")
        config.add_topic("all", content_type="text/plain")
        config.add_topic("own.{client}", content_type="text/plain")
        for name, (pattern, view) in {
            "common": ("/stream", common),
            "own": ("/stream/{client}", own),
            "pair": ("/pair/{client}", pair),
        }.items():
            config.add_route(name, pattern)
            config.add_view(view, route_name=name)
    app = config.make_wsgi_app()
    each = [topic("own.{client}", client=number) for number in range(clients)]
    references = each if told == "each" else [topic("all")]
    catalog = app.registry["pushdemo.topics"]
    threading.Thread(target=publish, args=(catalog, references, rate), daemon=True).start()
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a line for every request that had to wait
    serve(app, listen=f"127.0.0.1:{port}", threads=4, io_uring=io_uring)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], io_uring="--no-ring" not in sys.argv)
