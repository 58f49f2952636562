"""The status page's figures, as people read them."""

from __future__ import annotations

import pytest
from webtest import TestApp

from pushdemo.demo.status import in_units


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "bytes", "–"),
        ("sse", "", "sse"),
        (0, "", "0"),
        (1234567, "", "1,234,567"),
        (2.55, "", "2.5"),
        (0, "bytes", "0 B"),
        (999, "bytes", "999 B"),
        (1000, "bytes", "1 kB"),
        (12_345, "bytes/s", "12.3 kB/s"),
        (5_400_000_000_000_000, "bytes", "5,400 TB"),
        (59.9, "seconds", "59 s"),
        (61, "seconds", "1 min 1 s"),
        (3_661, "seconds", "1 h 1 min"),
        (90_000, "seconds", "1 d 1 h"),
    ],
)
def test_a_figure_has_its_unit(value: float | str | None, unit: str, shown: str) -> None:
    assert in_units(value, unit) == shown


def test_the_page_shows_figures_with_their_units(app: TestApp) -> None:
    page = app.get("/status", headers={"Accept": "text/html"}).html
    assert page.find(attrs={"data-figure": "uptime"}).text == "0 s"
    assert page.find(attrs={"data-figure": "total.bytes_per_second"})["data-unit"] == "bytes/s"
    assert page.find(attrs={"data-figure": "total.bytes_per_second"}).text == "0 B/s"
