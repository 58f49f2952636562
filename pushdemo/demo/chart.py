"""Draws the load as an SVG without scripts, by pygal. Any thread.

Measured on lines of two minutes: pygal needs 12 ms of CPU time and installs 2 MB. matplotlib needs 129 ms and Altair
101 ms, and each installs more than 100 MB. leather needs 3 ms, but calls itself an alpha.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import pygal
from pygal.style import Style

from pushdemo.demo.load import GAP, HEIGHT, INTERVAL, NARROW, WIDE, WINDOW, Load, Sample

# pygal installs an import hook for plug-ins, which are not used here. Its protocol is deprecated in Python 3.11 and
# gone in Python 3.12.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != pygal.__name__]

SVG = "image/svg+xml"
_NETWORK_HEIGHT = 290
_USAGE_HEIGHT = HEIGHT - _NETWORK_HEIGHT

_MANY = 8  # cores; with more, the chart shows their mean and the busiest one
_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


class Colour(NamedTuple):
    """One colour for light pages, and one for dark pages."""

    light: str
    dark: str


# Contrast with the paper: lines 3:1 or more, texts 4.5:1 or more (WCAG 2.2, 1.4.11 and 1.4.3).
_MEMORY, _RECEIVED, _SENT = Colour("#16201d", "#e7edea"), Colour("#2f6fd0", "#84b4ff"), Colour("#b45309", "#ffb15c")
_CORES = (
    Colour("#0b6b5b", "#5fd6bb"),
    Colour("#a13fa1", "#e592e5"),
    Colour("#8a6100", "#e3b341"),
    Colour("#2f6fd0", "#84b4ff"),
    Colour("#b0261e", "#ff9a90"),
    Colour("#4c6b00", "#b5d95b"),
    Colour("#5b5bd6", "#aeaeff"),
    Colour("#00758f", "#6fd3ec"),
)
_PAGE = {
    "paper": Colour("#ffffff", "#181d1c"),
    "ink": Colour("#16201d", "#e7edea"),
    "muted": Colour("#54625d", "#9daba6"),
    "grid": Colour("#d9e0dd", "#2d3634"),
}


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    colour: Colour
    values: list[float]
    dashes: str = ""  # SVG's stroke-dasharray, for a line that may hide another


def pictures(
    machine: Load, width: int = WIDE, sleep: Callable[[float], object] = time.sleep
) -> Generator[str, None, None]:
    """Yield each picture twice every INTERVAL seconds: Chromium shows a picture when the next one begins."""
    while True:
        picture = draw(machine.samples(), width)
        yield picture
        yield picture
        sleep(INTERVAL)


def draw(samples: Sequence[Sample], width: int = WIDE) -> str:
    """Return the SVG document: cores and memory in percent above, the network in kB/s below, over two minutes."""
    times = [sample.time - samples[-1].time for sample in samples]
    usage = [*_cores(samples), Line("memory", _MEMORY, [100 * each.memory / each.memory_total for each in samples])]
    network = [
        Line("received", _RECEIVED, [sample.received / 1000 for sample in samples]),
        Line("sent", _SENT, [sample.sent / 1000 for sample in samples], dashes="6, 4"),  # equal on the loopback
    ]
    top = _round_up(max(max(line.values) for line in network))
    upper = _chart("usage", times, usage, 100, (width, _USAGE_HEIGHT), y_title="CPU and memory, %")
    lower = _chart("network", times, network, top, (width, _NETWORK_HEIGHT), y_title="Network, kB/s")
    size = f'width="{width}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" {size}>'
        f"<title>The load of this machine over two minutes</title><style>{_colours(usage, network)}</style>"
        f'<svg width="{width}" height="{_USAGE_HEIGHT}">{upper}</svg>'
        f'<svg y="{_USAGE_HEIGHT}" width="{width}" height="{_NETWORK_HEIGHT}">{lower}</svg></svg>'
    )


def _cores(samples: Sequence[Sample]) -> list[Line]:
    count = len(samples[-1].cores)
    if count <= _MANY:
        each = [
            (f"core {number}", [sample.cores[number : number + 1] for sample in samples]) for number in range(count)
        ]
        return [
            Line(name, colour, [value for values in found for value in values or (math.nan,)])
            for (name, found), colour in zip(each, _CORES, strict=False)
        ]
    mean = [sum(sample.cores) / len(sample.cores) for sample in samples]
    busiest = [max(sample.cores) for sample in samples]
    return [Line(f"mean of {count} cores", _CORES[0], mean), Line("busiest core", _CORES[1], busiest)]


def _chart(name: str, times: list[float], lines: list[Line], top: float, size: tuple[int, int], y_title: str) -> str:
    width, tall = size
    style = Style(
        background="var(--paper)",
        plot_background="var(--paper)",
        foreground="var(--muted)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--grid)",
        guide_stroke_color="var(--grid)",
        major_guide_stroke_color="var(--grid)",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        colors=tuple(f"var(--{name}-{number})" for number in range(len(lines))),
        stroke_width=2,
        transition="none",
        font_family=_SANS,
        label_font_size=14,
        major_label_font_size=14,
        legend_font_size=15,
        title_font_size=15,
    )
    chart = pygal.XY(
        style=style,
        js=[],
        width=width,
        height=tall,
        show_dots=False,
        allow_interruptions=True,
        disable_xml_declaration=True,
        range=(0, top),
        xrange=(-WINDOW, 0),
        x_labels=range(-int(WINDOW), 1, 20 if width > NARROW else 40),
        y_labels=[top * part / 4 for part in range(5)],
        value_formatter=lambda value: f"{value:,.{0 if top >= 8 else 1}f}",
        x_value_formatter=lambda value: "now" if value == 0 else f"{value:.0f} s".replace("-", "−"),
        y_title=y_title,
        x_title=None,
        show_x_guides=False,
        legend_at_bottom=True,
        legend_at_bottom_columns=min(len(lines), width // 140),
        legend_box_size=12,
        truncate_legend=-1,
        spacing=12,
        margin=12,
    )
    chart.uuid = name
    chart.add_xml_filter(_without_scripts)
    for line in lines:
        points = _with_gaps(times, line.values)
        chart.add(line.name, points, stroke_style={"dasharray": line.dashes} if line.dashes else None)
    return str(chart.render(is_unicode=True))


def _with_gaps(times: list[float], values: list[float]) -> list[tuple[float, float | None]]:
    """Return the points of a line, which is broken where nothing was sampled."""
    points: list[tuple[float, float | None]] = []
    for time_, value in zip(times, values, strict=True):
        if points and time_ - points[-1][0] > GAP:
            points.append((time_, None))
        points.append((time_, value))
    return points


def _without_scripts(root: Any) -> Any:
    """Remove what pygal writes for tooltips, which a picture cannot show."""
    for parent in [*root.iter()]:
        for child in [child for child in parent if child.tag in ("script", "title", "desc")]:
            parent.remove(child)
    return root


def _colours(usage: list[Line], network: list[Line]) -> str:
    """Return the colours as CSS custom properties for light and dark: an SVG in an `<img>` knows the preference."""
    table = dict(_PAGE)
    for name, lines in (("usage", usage), ("network", network)):
        table |= {f"{name}-{number}": line.colour for number, line in enumerate(lines)}
    light = ";".join(f"--{name}:{colour.light}" for name, colour in table.items())
    dark = ";".join(f"--{name}:{colour.dark}" for name, colour in table.items())
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _round_up(value: float) -> float:
    """Round up to 1, 2, 4 or 8 times a power of ten, and to 4 at least, so that the axis seldom changes."""
    power: float = 10.0 ** math.floor(math.log10(max(value, 4)))
    return next(power * step for step in (1, 2, 4, 8, 10) if power * step >= max(value, 4))
