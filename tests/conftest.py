"""Marks: `heavy` tests run where CI=true, or when they are asked for with `-m heavy`."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "heavy: a size for a machine with nothing else to do; run with `-m heavy`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("CI") == "true" or "heavy" in config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="heavy: run with `-m heavy`, or CI=true")
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(skip)
