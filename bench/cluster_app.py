"""A node of the cluster's bench: a topic whose source stamps what it makes, and a memorized value that tells on itself.

`pserve` starts it: `use = call:cluster_app:main`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from message import body
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from pushdemo import memorize

COMPUTING = 0.2  # seconds that the value takes


@memorize()
def value() -> int:
    """Leaves a line in the file that BENCH_CALLS names, and takes its time."""
    with Path(os.environ["BENCH_CALLS"]).open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    threading.Event().wait(COMPUTING)
    return os.getpid()


def source() -> Iterator[str]:
    while True:
        yield body()


def _view(answer: Callable[[Request], Any]) -> Callable[[Request], Response]:
    return lambda request: Response(str(answer(request)), content_type="text/plain")


def main(global_config: dict[str, str], **settings: Any) -> Router:
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.add_topic("bench", source, content_type="text/plain")
        config.add_route("stream", "/stream")
        config.add_view(lambda request: request.push("bench"), route_name="stream")
        config.add_route("value", "/value")
        config.add_view(_view(lambda request: value()), route_name="value")
        return config.make_wsgi_app()
