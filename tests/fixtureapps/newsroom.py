"""Topics that are published to over HTTP, and what a busy application has beside them. For the tests of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

TOPICS = {"news": "text/plain", "figures": "application/json"}


def push(request: Request) -> Response:
    """`/push/{topic}`."""
    return request.push(request.matchdict["topic"])


def wrapped(request: Request) -> Response:
    """`/wrapped/{topic}`: the stream, with a body that nobody but the thread can iterate."""
    response = request.push(request.matchdict["topic"])
    stream = response.app_iter

    def each() -> Iterator[bytes]:
        try:
            yield from stream
        finally:
            stream.close()

    response.app_iter = each()
    return response


def broken(request: Request) -> Response:
    """`/broken/{topic}`: an error when the stream has been made already."""
    request.push(request.matchdict["topic"])
    raise RuntimeError("broken on purpose")


def publish(request: Request) -> Response:
    """`POST /publish/{topic}`: the body, as one message; answers with its id."""
    value = request.text if request.matchdict["topic"] == "news" else request.json_body
    return Response(request.publish(request.matchdict["topic"], value).id)


def page(request: Request) -> Response:
    """`/page`: what must be answered whatever the streams do. `?size=` makes it as long."""
    return Response(body=b"x" * int(request.GET["size"]) if "size" in request.GET else b"the page")


def echo(request: Request) -> Response:
    """`POST /echo`: the body."""
    return Response(body=request.environ["wsgi.input"].read())  # WebOb would leave a temporary file to the collector


def where(request: Request) -> Response:
    """`/where`: the script name and the path, as the application sees them."""
    return Response(f"{request.script_name}|{request.path_info}")


def held(request: Request) -> dict[str, Any]:
    """`/held`: how many places are taken, and how many clients each topic has."""
    registry = request.registry
    topics = registry["pushdemo.topics"]
    return {"places": registry["pushdemo.clients"].all.taken, **{name: topics[name].clients for name in topics}}


VIEWS: dict[str, Callable[[Request], Any]] = {
    "/push/{topic}": push,
    "/wrapped/{topic}": wrapped,
    "/broken/{topic}": broken,
    "/publish/{topic}": publish,
    "/page": page,
    "/echo": echo,
    "/where": where,
}


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        for name, content_type in TOPICS.items():
            config.add_topic(name, content_type=content_type)
        for pattern, view in VIEWS.items():
            config.add_route(view.__name__, pattern)
            config.add_view(view, route_name=view.__name__)
        config.add_route("held", "/held")
        config.add_view(held, route_name="held", renderer="json")
        return config.make_wsgi_app()
