"""The 2009 code on plain waitress: each client is a generator that sleeps in a worker thread of its own.

usage: threads_2009.py PORT RATE CLIENTS. As in the post, the response is multipart/x-mixed-replace, each client sleeps
on its own, and what it sends is memorized; here for one period, so that there are RATE values a second.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from message import body
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from waitress import serve


def memorize(duration: float) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """The recipe of the time: a value and its age, and no lock."""

    def decorate(function: Callable[[], str]) -> Callable[[], str]:
        kept: list[Any] = []

        def wrapper() -> str:
            if not kept or time.monotonic() - kept[1] > duration:
                kept[:] = function(), time.monotonic()
            value: str = kept[0]
            return value

        return wrapper

    return decorate


def main(port: int, rate: float, clients: int) -> None:
    value = memorize(1 / rate)(body)

    def data_stream() -> Iterator[bytes]:
        yield b"--test\r\n"
        while True:
            message = f"<message>{value()}</message>"
            yield f"Content-Type: application/xml\r\n\r\n{message}\r\n--test\r\n".encode()
            time.sleep(1 / rate)

    def stream(request: Request) -> Response:
        return Response(app_iter=data_stream(), content_type="multipart/x-mixed-replace;boundary=test")

    def page(request: Request) -> Response:
        return Response("a plain page", content_type="text/plain")

    with Configurator() as config:
        for name, view in {"stream": stream, "page": page}.items():
            config.add_route(name, f"/{name}")
            config.add_view(view, route_name=name)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a line for every request that had to wait
    serve(
        config.make_wsgi_app(),
        listen=f"127.0.0.1:{port}",
        threads=clients + 4,
        connection_limit=clients + 100,
        backlog=4096,
        asyncore_use_poll=True,  # select() ends at 1,024 descriptors
        _quiet=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
