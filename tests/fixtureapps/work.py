"""The shop with work that takes several steps, each committed by itself: `/work?key=`, and who has done what.

`shop.log` in the ini names a file to which each generator writes its begin and its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.router import Router

from pushdemo import json_yield
from tests.fixtureapps import shop
from tests.fixtureapps.shop.models import Item


@json_yield
def work(request: Request) -> Iterator[dict[str, int]]:
    """Raise the price of bread, step by step, and say to how much and in which process."""
    log = Path(request.registry.settings["shop.log"])
    note(log, f"begin {request.GET['key']} {os.getpid()}")
    try:
        for number in range(1000):
            with request.step() as step:
                found = step.dbsession.query(Item).filter_by(name="bread").with_for_update().one()
                found.price += 1
            yield {"number": number, "process": os.getpid()}
    finally:
        note(log, f"end {request.GET['key']} {os.getpid()}")


def note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


def configure(config: Configurator) -> None:
    config.add_route("work", "/work")
    config.add_view(work, route_name="work")


def main(global_config: dict[str, str], **settings: str) -> Router:
    """For an ini's `use = call:tests.fixtureapps.work:main`."""
    return shop.main(global_config, configure, **settings)
