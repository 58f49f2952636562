"""The page `/primes`, and `/prime`, an endless generator of prime numbers: one item a request."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from math import isqrt
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.web.json_yield import json_yield


def primes() -> Generator[int, None, None]:
    """Yield 1 and then every prime. Memory stays constant, since no earlier prime is kept."""
    yield 1
    yield 2
    for candidate in count(3, 2):
        if all(candidate % divisor for divisor in range(3, isqrt(candidate) + 1, 2)):
            yield candidate


@view_config(route_name="primes", request_method="GET", renderer="pushdemo.demo:templates/primes.jinja2")
def primes_page(request: Request) -> dict[str, Any]:
    """Return nothing: the page's script starts and stops the series."""
    return {}


@view_config(route_name="prime")
@json_yield
def prime(request: Request) -> Generator[int, None, None]:
    """Answer with the next number."""
    yield from primes()
