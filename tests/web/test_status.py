"""`/status` and `/metrics`: what they say, to whom, and in which form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pyramid import httpexceptions
from pyramid.router import Router
from webtest import TestApp

from pushdemo.demo import main
from pushdemo.web.settings import SettingsError
from pushdemo.web.status import REASONS, Status
from tests.support import ROOT, Client, port_of, serving, wait_until

GUARDED = {"pyramid.includes": "tests.fixtureapps.guarded", "pushdemo.status_permission": "watch"}
OPERATOR = {"Authorization": "Bearer sesame"}
JSON = {"Accept": "application/json"}
ADDRESSES = ["/status", "/status/stream?transport=longpoll", "/metrics"]


@pytest.fixture
def demo() -> Iterator[Router]:
    demo = main(**{"pushdemo.interval": "1000", "pushdemo.longpoll.timeout": "5"})
    yield demo
    demo.registry["pushdemo.topics"].close()


@pytest.fixture
def app(demo: Router) -> TestApp:
    return TestApp(demo)


def report(app: TestApp) -> dict[str, Any]:
    return app.get("/status", headers=JSON).json  # type: ignore[no-any-return]


def samples(text: str) -> dict[str, float]:
    """Prometheus's samples: `name{label="value"}` and their values."""
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_browser_gets_a_page_and_a_script_json(app: TestApp) -> None:
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    assert app.get("/status", headers={"Accept": accept}).content_type == "text/html"
    assert app.get("/status").content_type == "text/html"
    response = app.get("/status", headers=JSON)
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"


def test_the_report_counts_what_was_pushed(app: TestApp) -> None:
    body = app.get("/server/index?transport=longpoll").body
    (stream,) = report(app)["streams"]
    assert (stream["topic"], stream["transport"], stream["messages"]) == ("server", "longpoll", 1)
    assert stream["bytes"] == len(body)
    (server,) = [topic for topic in report(app)["topics"] if topic["topic"] == "server"]
    assert server["published"] == 1


def test_the_report_counts_refusals_sessions_and_memorized_functions(app: TestApp) -> None:
    app.get("/prime?key=a")
    app.get("/prime", status=400)
    app.get("/prime?key=b&after=x", status=400)
    app.get("/server/index?transport=pigeon", status=400)
    app.get("/server/index?transport=longpoll")
    found = report(app)
    assert [(each["kind"], each["status"], each["count"]) for each in found["refusals"]] == [
        ("generator", 400, 2),
        ("topic", 400, 1),
    ]
    assert found["total"]["refused"] == 3
    assert found["generators"] == {"open": 1, "ended": 0, "waiting": 0}
    (memorized,) = found["memorize"]
    assert memorized["function"] == "datetime_string"
    assert (memorized["misses"], memorized["size"]) == (1, 1)
    assert 0 <= memorized["age"] < 20


def test_a_refusal_is_told_with_its_reason(demo: Router) -> None:
    clients = demo.registry["pushdemo.clients"]
    while clients.threads.take():
        pass
    app = TestApp(demo)
    app.get("/server/index", status=503)
    (refusal,) = report(app)["refusals"]
    assert "pushdemo.max_threads" in refusal["reason"]
    assert f"<td>{refusal['reason']}</td>" in app.get("/status").text


@pytest.mark.parametrize("kind", ["topic", "generator"])
def test_every_status_that_is_a_refusal_has_a_reason(kind: str) -> None:
    """What the modules raise or refuse with, found in their source."""
    files = {"topic": ("push",), "generator": ("sessions", "session", "json_yield", "itemstream")}[kind]
    text = "".join((ROOT / "pushdemo" / "web" / f"{name}.py").read_text(encoding="utf-8") for name in files)
    codes = {int(code) for code in re.findall(r"Refused\((\d+)", text)}
    codes |= {getattr(httpexceptions, name).code for name in re.findall(r"raise (HTTP\w+)", text)}
    assert len(codes) >= 4
    assert {code for code in codes if (kind, code) not in REASONS} == set()


def test_the_page_shows_the_reports_figures_without_a_script(app: TestApp) -> None:
    app.get("/server/index?transport=longpoll")
    app.get("/server/index?transport=pigeon", status=400)
    page = app.get("/status").text
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    assert any(row[0] == "topic" and row[-2:] == ["400", "1"] for row in rows)
    assert any(row[:2] == ["server", "longpoll"] for row in rows)
    assert "None has been called" in page
    assert re.search(r'id="trouble"[^>]* hidden>', page)


def test_rates_are_of_the_last_seconds(demo: Router) -> None:
    registry = demo.registry
    clients = registry["pushdemo.clients"]
    now = [clients.counters.started]
    clients.counters.clock = lambda: now[0]
    parts = (registry[f"pushdemo.{part}"] for part in ("backend", "topics", "clients", "generators", "caches"))
    status = Status(*parts)
    tally = clients.counters.tally("news", "sse")
    tally.wrote(1_000, messages=10)
    now[0] += 10
    assert status.report()["total"]["messages_per_second"] == 1
    tally.wrote(4_000, messages=20)
    now[0] += 2
    found = status.report()
    assert (found["rates_over"], found["uptime"]) == (2, 12)
    assert (found["total"]["messages_per_second"], found["total"]["bytes_per_second"]) == (10, 2_000)
    now[0] += 0.5
    assert status.report()["rates_over"] == 2.5, "two who ask at once are told the same, and not of a moment"


def test_a_client_of_several_topics_is_one(demo: Router) -> None:
    app = TestApp(demo)
    with serving(demo) as server, Client(port_of(server)) as client:
        client.get("/rooms/lobby/stream?transport=jsonlines").head()
        wait_until(lambda: sum(each["clients"] for each in report(app)["streams"]) == 2, what="its two rows")
        assert report(app)["total"]["clients"] == report(app)["total"]["places"] == 1


def test_clients_and_their_lag_are_told_while_they_are_there(demo: Router) -> None:
    demo.registry["pushdemo.topics"]["server"].producer = None
    topic = demo.registry["pushdemo.topics"]["server"]
    app = TestApp(demo)
    with serving(demo) as server, Client(port_of(server)) as client:
        client.get("/server/index?transport=sse").head()
        topic.publish("one")
        client.until(b"<message>one</message>")
        stream = wait_until(lambda: next((each for each in report(app)["streams"] if each["messages"]), None))
        assert (stream["clients"], stream["lag"], stream["messages"]) == (1, 0, 1)
        assert report(app)["total"]["places"] == 1
        while not report(app)["streams"][0]["lag"]:  # it does not read any more, until its socket is full
            topic.publish("x" * 500_000)
        assert report(app)["total"]["behind"] == 1
    wait_until(lambda: report(app)["streams"][0]["clients"] == 0)
    assert report(app)["total"]["lag"] == 0


@pytest.mark.heavy
def test_the_topic_brings_the_report_again_and_again(demo: Router) -> None:
    with serving(demo) as server, Client(port_of(server)) as client:
        client.get("/status/stream?transport=jsonlines", version="1.0").head()
        lines = []
        while len(lines) < 2:
            line = json.loads(client.until(b"\n"))
            lines += [line["content"]] if "content" in line else []
    own = [next(s for s in line["streams"] if s["topic"] == "pushdemo.status")["messages"] for line in lines]
    assert own[1] == own[0] + 1
    assert lines[0]["total"]["clients"] == 1


# -- Prometheus


def test_metrics_are_prometheus_s(app: TestApp) -> None:
    body = app.get("/server/index?transport=longpoll").body
    app.get("/prime?key=a")
    app.get("/prime", status=400)
    response = app.get("/metrics")
    assert response.content_type == "text/plain"
    found = samples(response.text)
    assert found["pushdemo_messages_total,topic=server,transport=longpoll"] == 1
    assert found["pushdemo_bytes_total,topic=server,transport=longpoll"] == len(body)
    assert found["pushdemo_clients,topic=server,transport=longpoll"] == 0
    assert found["pushdemo_lag,topic=server,transport=longpoll"] == 0
    assert found["pushdemo_published_total,topic=server"] == 1
    assert found["pushdemo_refusals_total,kind=generator,status=400"] == 1
    assert found["pushdemo_generator_sessions,state=open"] == 1
    assert found["pushdemo_memorize_misses_total,function=datetime_string"] == 1
    assert found["pushdemo_places_limit,kind=parked"] == 10_000


def test_metrics_come_as_openmetrics_for_those_who_ask(app: TestApp) -> None:
    response = app.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.content_type == "application/openmetrics-text"
    assert response.text.endswith("# EOF\n")


def test_two_applications_count_apart(app: TestApp) -> None:
    other = TestApp(main())
    app.get("/prime", status=400)
    assert "pushdemo_refusals_total{" in app.get("/metrics").text
    assert "pushdemo_refusals_total{" not in other.get("/metrics").text


# -- the permission


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_permission_keeps_the_figures_for_those_who_have_it(address: str) -> None:
    router = main(**GUARDED)
    app = TestApp(router)
    app.get(address, status=403)
    app.get(address, headers=OPERATOR, status=200)
    router.registry["pushdemo.topics"].close()


def test_the_json_is_guarded_as_the_page_is() -> None:
    app = TestApp(main(**GUARDED))
    app.get("/status", headers=JSON, status=403)
    app.get("/status", headers=JSON | OPERATOR, status=200)


def test_the_other_pages_need_no_permission() -> None:
    app = TestApp(main(**GUARDED))
    for address in ("/", "/load", "/primes"):
        app.get(address, status=200)


def test_another_permission_does_not_do() -> None:
    TestApp(main(**GUARDED | {"pushdemo.status_permission": "other"})).get("/status", headers=OPERATOR, status=403)


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_the_setting_everyone_is_let_in(app: TestApp, address: str) -> None:
    app.get(address, status=200)


def test_a_permission_that_nobody_checks_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"pushdemo\.status_permission = watch: the application has no security"):
        main(**{"pushdemo.status_permission": "watch"})


@pytest.mark.parametrize("address", ["/status", "/metrics", "/load", "/health/live", "/health/ready"])
def test_a_wrong_method_is_refused(app: TestApp, address: str) -> None:
    assert app.post(address, status=405).headers["Allow"] == "GET, HEAD"
