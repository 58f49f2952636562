"""`/load`, the machine's load as figures and as a picture, and the topics that bring them. Threads: the server's."""

from __future__ import annotations

import secrets
from typing import Any

from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config

from pushdemo.demo.sources.chart import HEIGHT, NARROW, WIDE
from pushdemo.demo.sources.load import INTERVAL, WINDOW


@view_config(route_name="load", request_method="GET", renderer="pushdemo.demo:templates/load.jinja2")
def load_page(request: Request) -> dict[str, Any]:
    """The page. Each has an address of its own for the picture: Firefox lets no two requests for one run at once."""
    return {
        "interval": INTERVAL,
        "minutes": WINDOW / 60,
        "heartbeat": request.registry["pushdemo.settings"].heartbeat,
        "version": secrets.token_hex(4),
        "height": HEIGHT,
        "wide": WIDE,
        "narrow": NARROW,
    }


@view_config(route_name="load_figures")
def load_figures(request: Request) -> Response:
    """The topic `load`: a line of text in XML."""
    return request.push("load")


@view_config(route_name="load_chart")
def load_chart(request: Request) -> Response:
    """The topic of the picture, which an `<img>` shows as it changes; `?width=narrow` is drawn for a phone."""
    return request.push("load.chart.narrow" if request.GET.get("width") == "narrow" else "load.chart")
