"""The picture of the load."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from pushdemo.demo import chart
from pushdemo.demo.chart import draw, pictures
from pushdemo.demo.load import INTERVAL, NARROW, WIDE, Load
from tests.demo.samples import Clock, sample

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_picture_has_axes_units_and_a_legend() -> None:
    found = texts(draw([sample(time, 10.0, 90.0, received=40_000.0) for time in (0.0, 2.0, 4.0)]))
    assert {"CPU and memory, %", "Network, kB/s"} <= set(found)
    assert {"core 0", "core 1", "memory", "received", "sent"} <= set(found)
    assert {"0", "25", "50", "75", "100", "−120 s", "now"} <= set(found)


def test_a_line_of_the_picture_is_where_its_values_are() -> None:
    svg = ElementTree.fromstring(draw([sample(0.0, 0.0), sample(5.0, 100.0), sample(10.0, 50.0)]))
    paths = [path.get("d", "") for path in svg.iter(f"{SVG}path") if "line reactive" in path.get("class", "")]
    (x1, y1), (x2, y2), (x3, y3) = (tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", paths[0]))
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y1 > y3 > y2
    assert y1 - y3 == pytest.approx(y3 - y2)


def test_a_line_is_broken_where_nothing_was_sampled() -> None:
    svg = ElementTree.fromstring(draw([sample(time, 50.0) for time in (0.0, 2.0, 60.0, 62.0)]))
    paths = [path.get("d", "") for path in svg.iter(f"{SVG}path") if "line reactive" in path.get("class", "")]
    parts = [[float(x) for x in re.findall(r"[ML]([\d.]+) ", path)] for path in paths]
    assert len(parts) == 2 * 4
    assert all(last - first < 20 for first, last in parts)


def test_lines_of_the_network_that_are_equal_can_both_be_seen() -> None:
    svg = draw([sample(time, 1.0, received=5_000.0, sent=5_000.0) for time in (0.0, 2.0)])
    assert re.findall(r"#chart-network \.series\.serie-(\d+)\{stroke-dasharray:6,4", svg) == ["1"]


def test_a_browser_that_shows_a_picture_when_the_next_begins_is_not_late(load: Load, clock: Clock) -> None:
    made = pictures(load, WIDE, clock.sleep)
    began = clock()
    first, second = next(made), next(made)
    assert first == second
    assert clock() - began < INTERVAL / 2, "no pause before the second"
    assert next(made) != first
    assert clock() - began > INTERVAL, "and one behind it"


def test_the_picture_has_nothing_that_runs_or_that_is_fetched() -> None:
    svg = draw([sample(0.0, 50.0)])
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter() if isinstance(element.tag, str)}.isdisjoint(
        {"script", "image", "use", "foreignObject", "a"}
    )
    assert "@import" not in svg
    assert not [name for element in root.iter() for name in element.keys() if "href" in name or name.startswith("on")]  # noqa: SIM118


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return (
        math.sumprod((0.2126, 0.7152, 0.0722), linear)
        if hasattr(math, "sumprod")
        else sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    )


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_can_be_read_in_light_and_dark(scheme: str) -> None:
    svg = draw([sample(0.0, *range(8), received=1.0)])
    rule = re.search(r":root\{([^}]*)\}@media \(prefers-color-scheme:dark\)\{:root\{([^}]*)\}\}", svg)
    assert rule
    colours = dict(re.findall(r"--([\w-]+):(#\w{6})", rule[1 if scheme == "light" else 2]))
    lines = [name for name in colours if re.fullmatch(r"(usage|network)-\d", name)]
    assert len(lines) == 8 + 1 + 2
    assert all(contrast(colours[name], colours["paper"]) >= 3 for name in lines)
    assert all(contrast(colours[name], colours["paper"]) >= 4.5 for name in ("ink", "muted"))


def test_many_cores_are_two_lines() -> None:
    found = texts(draw([sample(0.0, *range(64))]))
    assert {"mean of 64 cores", "busiest core"} <= set(found)
    assert "core 0" not in found


@pytest.mark.parametrize(
    ("value", "top", "label"),
    [
        (0.0, 4, "4.0"),
        (4.0, 4, "4.0"),
        (4.1, 8, "8"),
        (150.0, 200, "200"),
        (801.0, 1000, "1,000"),
        (12_000.0, 20_000, "20,000"),
    ],
)
def test_the_axis_of_the_network_ends_at_a_round_number_above_it(value: float, top: float, label: str) -> None:
    assert chart._round_up(value) == top
    assert label in texts(draw([sample(0.0, 1.0, received=value * 1000)]))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_picture_is_small(width: int) -> None:
    assert len(draw([sample(2.0 * each, 10.0, 20.0, 30.0, 40.0) for each in range(61)], width)) < 60_000
