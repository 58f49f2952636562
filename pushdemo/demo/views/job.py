"""`/job`, a page that shows how far long work is, and `/job/run`, the work. Threads: the server's."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.demo.sources.job import hash_files, standard_library
from pushdemo.web.json_yield import json_yield


@view_config(route_name="job", request_method="GET", renderer="pushdemo.demo:templates/job.jinja2")
def job_page(request: Request) -> dict[str, Any]:
    """The page that starts the job, shows it and cancels it."""
    return {"timeout": request.registry["pushdemo.generators"].timeout}


@view_config(route_name="run")
@json_yield
def job_run(request: Request) -> Generator[dict[str, Any], None, None]:
    """How far the job is after another slice of its work."""
    yield from hash_files(standard_library())
