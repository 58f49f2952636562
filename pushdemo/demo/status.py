"""The page `/status`, for people. `pushdemo.operations` answers scripts at the same address."""

from __future__ import annotations

import math
from typing import Any

from pyramid.request import Request

UNITS = {
    "age": "seconds",
    "bytes": "bytes",
    "bytes_per_second": "bytes/s",
    "rates_over": "seconds",
    "uptime": "seconds",
}
_SIZES = ("B", "kB", "MB", "GB", "TB")


def status_page(request: Request) -> dict[str, Any]:
    """Return the figures; the page's script keeps them up to date."""
    request.response.headers["Cache-Control"] = "no-store"
    settings = request.registry["pushdemo.settings"]
    report = request.registry["pushdemo.status"].report()
    return {"report": report, "heartbeat": settings.heartbeat, "units": UNITS, "in_units": in_units}


def in_units(value: float | str | None, unit: str = "") -> str:
    """Return a figure for people. `unit` is "bytes", "bytes/s", "seconds" or none. static/status.js does the same."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if unit == "seconds":
        return _duration(value)
    if unit:
        return _size(value) + unit.removeprefix("bytes")
    return f"{value:,.1f}".removesuffix(".0")


def _size(count: float) -> str:
    power = min(len(_SIZES) - 1, int(math.log10(max(1, count)) / 3))
    return f"{count / 1000**power:,.{1 if power else 0}f}".removesuffix(".0") + f" {_SIZES[power]}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 86_400} d {whole // 3600 % 24} h"
