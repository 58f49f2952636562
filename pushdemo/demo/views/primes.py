"""`/primes`, the second post's page, and `/prime`, its endless generator. Threads: the server's."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.demo.sources.primes import primes
from pushdemo.web.json_yield import json_yield


@view_config(route_name="primes", request_method="GET", renderer="pushdemo.demo:templates/primes.jinja2")
def primes_page(request: Request) -> dict[str, Any]:
    """The page that starts and stops a series of primes."""
    return {}


@view_config(route_name="prime")
@json_yield
def prime(request: Request) -> Generator[int, None, None]:
    """The next prime."""
    yield from primes()
