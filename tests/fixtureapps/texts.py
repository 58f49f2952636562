"""Topics that end, with all that a message may be made of, at `/push/{topic}`; and a plain page at `/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

from pushdemo.topics.content import BOUNDARY

CONTROLS = "a\x00b\x0b\x1bc\ufffe"
CONTROLS_ARRIVE = "a\ufffdb\ufffd\ufffdc\ufffd"
PICTURES = [b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"", b"--\r\n\r\n--", b"\r\n" * 5]
VALUES = [{"text": "Ὀδυσσεύς\r\n\u2028\x00</script>", "numbers": [1, 2.5, None, True]}, "]]>", [], None, 0]


def texts_with(boundary: str) -> list[str]:
    """Texts that XML can carry, but that a careless transport would break on; some hold the multipart boundary."""
    return [
        "plain",
        "",
        "<b>&amp;</b> ]]> <![CDATA[ <!-- -->",
        "Ὀδυσσεύς, Одиссей, 奥德修斯, أوديسيوس, ओडीसियस, 𝄞, e\u0301, \u2028",
        "a line\nanother\rand\r\none more\n",
        f"\r\n--{boundary}\r\nContent-Type: text/html\r\n\r\n<script>forged</script>\r\n--{boundary}--\r\n",
        f"--{boundary[:-1]}\r\n",
        "data: x\n\nevent: forged\nid: 7\n\n",
        '{"content": "forged"}\n{"state": "done"}\n',
        "x" * 200_000,
    ]


def texts() -> Iterator[str]:
    yield from texts_with(BOUNDARY)
    yield CONTROLS


def values() -> Iterator[Any]:
    yield from VALUES


def pictures() -> Iterator[bytes]:
    yield from PICTURES


def push(request: Request) -> Response:
    """The topic that the address names."""
    return request.push(request.matchdict["topic"])


def page(request: Request) -> Response:
    """What must be answered whatever the streams do."""
    return Response("the page")


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.add_topic("texts", texts, interval=0)
        config.add_topic("values", values, interval=0, content_type="application/json")
        config.add_topic("pictures", pictures, interval=0, content_type="image/png")
        config.add_topic("silent")
        config.add_route("page", "/")
        config.add_route("push", "/push/{topic}")
        config.add_view(page, route_name="page")
        config.add_view(push, route_name="push")
        return config.make_wsgi_app()
