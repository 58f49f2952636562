"""The page `/document`, and `/document/lines`, which yields a large text line by line while it is read."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.web.json_yield import json_yield


def document() -> Path:
    """Return the path of a large text: Python's licence if it is installed, else the texts of Python's `help()`.

    Raise FileNotFoundError where the standard library has no files, as in a zip.
    """
    library = Path(sysconfig.get_path("stdlib"))
    candidates = [
        library / "LICENSE.txt",
        Path(sys.base_prefix) / "LICENSE.txt",
        library / "pydoc_data" / "topics/topic.py",
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"none of {', '.join(map(str, candidates))} exists")


def lines(path: Path) -> Generator[str, None, None]:
    """Yield the lines of a UTF-8 text without their line breaks, and read no further than the next line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


@view_config(route_name="document", request_method="GET", renderer="pushdemo.demo:templates/document.jinja2")
def document_page(request: Request) -> dict[str, Any]:
    """Return the name and the size of the text."""
    path = document()
    return {"name": path.name, "size": path.stat().st_size}


@view_config(route_name="lines")
@json_yield
def document_lines(request: Request) -> Generator[str, None, None]:
    """Answer with the next line."""
    yield from lines(document())
