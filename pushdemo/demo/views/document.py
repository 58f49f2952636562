"""`/document`, a page that shows a large text as it is read, and `/document/lines`, the text. Threads: the server's."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.demo.sources.document import document, lines
from pushdemo.web.json_yield import json_yield


@view_config(route_name="document", request_method="GET", renderer="pushdemo.demo:templates/document.jinja2")
def document_page(request: Request) -> dict[str, Any]:
    """The page that reads the text."""
    path = document()
    return {"name": path.name, "size": path.stat().st_size}


@view_config(route_name="lines")
@json_yield
def document_lines(request: Request) -> Generator[str, None, None]:
    """The text's next line."""
    yield from lines(document())
