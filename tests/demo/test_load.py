"""The machine's load: the samples, the line, the picture, and the topics that bring them."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from pyramid.router import Router
from webtest import TestApp

from pushdemo.demo import chart, main
from pushdemo.demo.chart import draw, pictures
from pushdemo.demo.load import INTERVAL, NARROW, WIDE, WINDOW, Load, Sample, described
from tests.support import Client, port_of, serving

SVG = "{http://www.w3.org/2000/svg}"


class Clock:
    """Passes when told, and while something sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def load(clock: Clock) -> Load:
    return Load(clock, clock.sleep)


def sample(time: float, *cores: float, received: float = 0.0, sent: float = 0.0) -> Sample:
    return Sample(time, cores, 2 * 2**30, 8 * 2**30, received, sent)


def test_a_sample_is_of_this_machine(load: Load) -> None:
    (taken,) = load.samples()
    assert len(taken.cores) == psutil.cpu_count()
    assert all(0 <= core <= 100 for core in taken.cores)
    assert taken.memory_total == psutil.virtual_memory().total
    assert 0 < taken.memory < taken.memory_total


def test_a_sample_has_the_traffic_of_the_network(clock: Clock) -> None:
    """Bytes a second, over as long as the first sample takes."""
    size = 10_000_000

    def sleep(seconds: float) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            accepted, _ = server.accept()
            with accepted, ThreadPoolExecutor() as pool:
                sending = pool.submit(client.sendall, bytes(size))
                received = 0
                while received < size:
                    received += len(accepted.recv(1_000_000))
                sending.result()
        clock.sleep(seconds)

    (taken,) = Load(clock, sleep).samples()
    seconds = sum(clock.slept)
    assert size <= taken.received * seconds < 100 * size
    assert size <= taken.sent * seconds < 100 * size


def test_whoever_asks_within_an_interval_shares_a_sample(load: Load, clock: Clock) -> None:
    first = load.samples()
    clock.now += INTERVAL / 2
    assert load.samples() == first
    clock.now += INTERVAL / 2
    assert len(load.samples()) == 2


def test_samples_are_kept_for_the_window_alone(load: Load, clock: Clock) -> None:
    for _ in range(100):
        samples = load.samples()
        clock.now += INTERVAL
    assert samples[-1].time - samples[0].time == WINDOW
    assert len(clock.slept) == 1


def test_after_a_pause_the_samples_begin_anew(load: Load, clock: Clock) -> None:
    load.samples()
    clock.now += 60
    assert len(load.samples()) == 1
    assert len(clock.slept) == 2


def test_the_line_gives_each_figure_with_its_unit() -> None:
    assert described(sample(0.0, 10.4, 30.4, received=12_345.0, sent=2_500_000.0)) == {
        "CPU": "20 %",
        "core 0": "10 %",
        "core 1": "30 %",
        "memory": "2.0 of 8.0 GiB",
        "received": "12.3 kB/s",
        "sent": "2,500.0 kB/s",
    }


def test_the_line_can_be_taken_apart(load: Load) -> None:
    names = [figure.partition(": ")[0] for figure in load.line().split("; ")]
    assert names[0] == "CPU"
    assert names[-3:] == ["memory", "received", "sent"]


# -- the picture


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_picture_has_axes_units_and_a_legend() -> None:
    found = texts(draw([sample(time, 10.0, 90.0, received=40_000.0) for time in (0.0, 2.0, 4.0)]))
    assert {"CPU and memory, %", "Network, kB/s"} <= set(found)
    assert {"core 0", "core 1", "memory", "received", "sent"} <= set(found)
    assert {"0", "25", "50", "75", "100", "−120 s", "now"} <= set(found)


def test_a_line_of_the_picture_is_where_its_values_are() -> None:
    svg = ElementTree.fromstring(draw([sample(0.0, 0.0), sample(60.0, 100.0), sample(120.0, 50.0)]))
    paths = [path.get("d", "") for path in svg.iter(f"{SVG}path") if "line reactive" in path.get("class", "")]
    (x1, y1), (x2, y2), (x3, y3) = (tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", paths[0]))
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y1 > y3 > y2
    assert y1 - y3 == pytest.approx(y3 - y2)


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


# -- the application


@pytest.fixture
def demo() -> Iterator[Router]:
    demo = main(**{"pushdemo.longpoll.timeout": "5"})
    yield demo
    demo.registry["pushdemo.topics"].close()


def test_the_topic_is_a_line_in_xml(demo: Router) -> None:
    (message,) = TestApp(demo).get("/load/index?transport=longpoll").json["messages"]
    root = ElementTree.fromstring(message["content"])
    assert root.tag == "message"
    assert re.match(r"CPU: \d+ %; core 0: \d+ %; ", root.text or "")


def test_the_page_shows_a_picture_of_its_own_address(demo: Router) -> None:
    app = TestApp(demo)
    found = [re.findall(r'(?:src|srcset)="(/load/chart[^"]*)"', app.get("/load").text) for _ in range(2)]
    assert [len(addresses) for addresses in found] == [2, 2]
    assert not set(found[0]) & set(found[1])


def test_a_picture_cannot_travel_by_events(demo: Router) -> None:
    TestApp(demo).get("/load/chart", headers={"Accept": "text/event-stream"}, status=406)


def part(client: Client) -> tuple[dict[str, str], bytes]:
    """The next part of a multipart stream."""
    lines = client.until(b"\r\n\r\n").decode().strip().splitlines()
    fields: dict[str, Any] = dict(line.split(": ", 1) for line in lines if ": " in line)
    return fields, client.exactly(int(fields["Content-Length"]))


@pytest.mark.parametrize(
    ("query", "width"), [("", WIDE), pytest.param("?width=narrow&v=1", NARROW, marks=pytest.mark.heavy)]
)
def test_the_picture_is_drawn_once_for_all_who_look(demo: Router, query: str, width: int) -> None:
    with serving(demo) as server, Client(port_of(server)) as one, Client(port_of(server)) as other:
        seen: list[dict[str, bytes]] = []
        for client in (one, other):
            status, headers = client.get(f"/load/chart{query}", version="1.0").head()
            assert (status, headers["content-type"].partition(";")[0]) == (200, "multipart/x-mixed-replace")
        for client in (one, other):
            parts = [part(client) for _ in range(4)]
            assert {fields["Content-Type"] for fields, _ in parts} == {"image/svg+xml"}
            seen.append({fields["X-Message-Id"]: picture for fields, picture in parts})
        same = seen[0].keys() & seen[1].keys()
        assert len(same) >= 2
        assert all(seen[0][id] == seen[1][id] for id in same)
        first, *_, last = seen[0].values()
        assert ElementTree.fromstring(first).get("width") == str(width)
        assert first != last, "it moves"
