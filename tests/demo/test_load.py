"""The machine's load: the samples, the line, the picture, and the topics that bring them."""

from __future__ import annotations

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

from pushdemo.demo import main
from pushdemo.demo.load import INTERVAL, NARROW, WIDE, WINDOW, Load, described
from tests.demo.samples import Clock, sample
from tests.support import Client, port_of, serving


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


def test_after_a_pause_the_samples_of_the_window_are_still_there(load: Load, clock: Clock) -> None:
    (first,) = load.samples()
    clock.now += 60
    samples = load.samples()
    assert samples[0] == first
    assert len(samples) == 2
    assert len(clock.slept) == 2, "the second is not the mean of the pause"
    clock.now += WINDOW + 1
    assert len(load.samples()) == 1


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


@pytest.mark.heavy
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
