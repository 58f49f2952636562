"""`config.include("pushdemo")` in an application: its directive, its request methods, and what two of them share."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError, ConfigurationError
from pyramid.request import Request
from pyramid.router import Router
from webtest import TestApp

import pushdemo
from pushdemo import memorize
from pushdemo.topics.topic import Topic
from tests.fixtureapps import chat
from tests.support import PATIENCE, Client, port_of, pserve, pserve_command, serving, write_ini

WARNING = "the server of this application cannot park responses"
made = 0


def one() -> str:
    return "one value"


def two() -> Iterator[str]:
    yield "first"
    yield "second"


async def later() -> str:
    return "never"


@memorize
def number() -> int:
    """Another number each time it is computed."""
    global made
    made += 1
    return made


@contextmanager
def application(configure: Callable[[Configurator], Any], **settings: Any) -> Iterator[Router]:
    """An application with the add-on and `/push/{topic}`; `configure` adds the rest."""
    ini = {"pushdemo.longpoll.timeout": "1", **{f"pushdemo.{key}": str(value) for key, value in settings.items()}}
    with Configurator(settings=ini) as config:
        config.include("pushdemo")
        configure(config)
        config.add_route("push", "/push/{topic}")
        config.add_view(lambda request: request.push(request.matchdict["topic"]), route_name="push")
        app = config.make_wsgi_app()
    try:
        yield app
    finally:
        app.registry["pushdemo.topics"].close()


def topic_of(app: Router, name: str) -> Topic:
    topic: Topic = app.registry["pushdemo.topics"][name]
    return topic


def contents(app: Router, path: str) -> list[Any]:
    """What one long poll brings."""
    return [message["content"] for message in TestApp(app).get(path, {"transport": "longpoll"}).json["messages"]]


# -- topics


@pytest.mark.parametrize(
    "source", [one, "tests.web.test_config.one", lambda: "one value"], ids=["function", "name", "any"]
)
def test_a_function_is_a_source_at_the_pace_of_the_ini(source: Any) -> None:
    with application(lambda config: config.add_topic("t", source), interval=1000) as app:
        assert contents(app, "/push/t") == ["<message>one value</message>"]


def test_a_generator_function_is_a_source_that_may_set_its_own_pace() -> None:
    add = lambda config: config.add_topic("t", source=two, interval=0, content_type="text/plain")  # noqa: E731
    with application(add) as app:
        response = TestApp(app).get("/push/t?transport=jsonlines&last_event_id=earliest")
        assert [entry["content"] for entry in map(json.loads, response.text.splitlines()) if "content" in entry] == [
            "first",
            "second",
        ]


def test_an_interval_of_its_own_is_kept() -> None:
    with application(lambda config: config.add_topic("t", one, interval=0.01), interval=1000) as app:
        topic = topic_of(app, "t")
        topic.join()
        try:
            assert topic.wait(2, PATIENCE), "three messages within 1000 s"
        finally:
            topic.leave()


def test_without_a_source_it_is_published_to() -> None:
    def say(request: Request) -> str:
        return str(request.publish("t", request.json_body).id)

    def configure(config: Configurator) -> None:
        config.add_topic("t", content_type="application/json")
        config.add_route("say", "/say")
        config.add_view(say, route_name="say", renderer="string")

    with application(configure) as app:
        id = TestApp(app).post_json("/say", {"text": "ἓν"}).text
        answer = TestApp(app).get("/push/t?transport=longpoll").json
        assert [(entry["id"], entry["content"]) for entry in answer["messages"]] == [(id, {"text": "ἓν"})]


def test_any_thread_publishes_through_the_registry() -> None:
    with application(lambda config: config.add_topic("t", content_type="application/json")) as app:
        topic = topic_of(app, "t")
        threads = [threading.Thread(target=lambda: [topic.publish(n) for n in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        path = "/push/t?last_event_id=earliest"
        assert sorted(contents(app, path)) == sorted(4 * list(range(25)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "t", "source": later}, TypeError, "must be a function or a generator function, not async"),
        ({"name": "t", "source": 5}, TypeError, "must be a function or a generator function, not 5"),
        ({"name": "t", "source": "tests.web.test_config.missing"}, ImportError, "missing"),
        ({"name": "t", "source": one, "interval": -1}, ValueError, "interval = -1: must be a number of seconds"),
        ({"name": "t", "source": two, "interval": float("nan")}, ValueError, "interval = nan: must be"),
        ({"name": "t", "source": one, "interval": 0}, ValueError, "needs an interval in seconds"),
        ({"name": "a name"}, ValueError, "a topic's name is up to 100 letters"),
        ({"name": "message"}, ValueError, "an event of that name has a meaning of its own"),
    ],
)
def test_what_will_not_do_stops_the_application(arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words), application(lambda config: config.add_topic(**arguments)):
        pass


def test_two_topics_of_one_name_are_a_conflict() -> None:
    def news(config: Configurator) -> None:
        config.add_topic("t", one)

    def weather(config: Configurator) -> None:
        config.add_topic("t", two)

    def configure(config: Configurator) -> None:
        config.include(news)
        config.include(weather)

    with pytest.raises(ConfigurationConflictError, match=r"pushdemo\.topic"), application(configure):
        pass


def test_an_applications_own_topic_takes_the_place_of_an_included_one() -> None:
    def included(config: Configurator) -> None:
        config.add_topic("t", content_type="text/plain")

    def configure(config: Configurator) -> None:
        config.include(included)
        config.add_topic("t", one)

    with application(configure, interval=1000) as app:
        assert contents(app, "/push/t") == ["<message>one value</message>"]


def test_topics_can_be_looked_at() -> None:
    with application(lambda config: config.add_topic("t", one, content_type="text/plain")) as app:
        (entry,) = app.registry.introspector.get_category("pushdemo topics")
        assert dict(entry["introspectable"]) == {"name": "t", "source": one, "content_type": "text/plain"}


def test_an_unknown_topic_names_those_that_there_are() -> None:
    with application(lambda config: config.add_topic("prices")) as app:
        request = Request.blank("/")
        request.registry = app.registry
        for use in (lambda: pushdemo.web.publish.publish(request, "pries", 1), lambda: TestApp(app).get("/push/pries")):
            with pytest.raises(KeyError, match="no topic pries; there are: prices"):
                use()


def test_a_wrong_setting_stops_the_application() -> None:
    with pytest.raises((ConfigurationError, ValueError), match=r"pushdemo\.interval = soon"):
        Configurator(settings={"pushdemo.interval": "soon"}).include("pushdemo")


# -- two applications in one process


def test_two_applications_share_no_topic() -> None:
    add = lambda config: config.add_topic("t", content_type="text/plain")  # noqa: E731
    with application(add) as first, application(add) as second:
        topic_of(first, "t").publish("for the first alone")
        assert contents(first, "/push/t") == ["for the first alone"]
        assert topic_of(second, "t").head == 0


def test_two_applications_keep_their_own_values_and_durations() -> None:
    def configure(config: Configurator) -> None:
        config.add_route("number", "/number")
        config.add_view(lambda request: number(), route_name="number", renderer="json")

    with (
        application(configure, **{"memorize.duration": 1000}) as kept,
        application(configure, **{"memorize.duration": 0}) as never,
    ):
        first = [TestApp(app).get("/number").json for app in (kept, never, kept, never)]
    assert first[0] == first[2]
    assert len(set(first)) == 3


def test_two_applications_have_their_own_places() -> None:
    add = lambda config: config.add_topic("t")  # noqa: E731
    with application(add, max_clients=1) as first, application(add, max_clients=1) as second:
        assert first.registry["pushdemo.clients"].all.take()
        with serving(first) as full, serving(second) as free:
            for server, status in ((full, 503), (free, 200)):
                with Client(port_of(server)) as client:
                    assert client.get("/push/t").head()[0] == status


# -- permissions


def test_a_permission_guards_a_stream_as_any_view() -> None:
    app = chat.main()
    with serving(app) as server:
        for path, cookie, status in (
            ("/lobby/messages", None, 403),
            ("/lobby/messages", "a visitor", 200),
            ("/staff/messages", "a visitor", 403),
            ("/staff/messages", "@one of the staff", 200),
        ):
            headers = [f"Cookie: {ticket(app, cookie)}"] if cookie else []
            with Client(port_of(server)) as client:
                assert client.get(path, *headers).head()[0] == status, (path, cookie)
        TestApp(app).post_json("/staff/messages", {"text": "x"}, status=403)
    assert topic_of(app, "staff").head == 0


def test_a_refused_client_takes_no_place() -> None:
    app = chat.main(**{"pushdemo.max_clients": "1"})
    with serving(app) as server:
        for _ in range(3):
            with Client(port_of(server)) as client:
                assert client.get("/staff/messages").response()[0] == 403
        assert app.registry["pushdemo.clients"].all.taken == 0
    assert topic_of(app, "staff").clients == 0


def ticket(app: Router, name: str) -> str:
    """The cookie of someone who has logged in."""
    form = {"name": name.lstrip("@"), "word": chat.WORD if name.startswith("@") else ""}
    response = TestApp(app).post("/login", form)
    return str(response.headers.getall("Set-Cookie")[0].partition(";")[0])


# -- another server


def test_a_view_looks_at_the_memorized_values_and_forgets_them() -> None:
    def values(request: Request) -> list[Any]:
        if request.method == "DELETE":
            request.memorized.clear(number.name)
        return [number(), request.memorized.info()[number.name].hits, type(request) is Request]

    def configure(config: Configurator) -> None:
        config.add_route("values", "/values")
        config.add_view(values, route_name="values", renderer="json")

    with application(configure) as app:
        first, hits, plain = TestApp(app).get("/values").json
        assert (hits, plain) == (0, True), "Pyramid makes no class for this request, as it does for a property"
        assert TestApp(app).get("/values").json[:2] == [first, 1]
        assert TestApp(app).delete("/values").json[0] == first + 1


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if WARNING in record.getMessage()]


def test_a_server_that_cannot_park_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with application(lambda config: config.add_topic("t"), max_threads=7) as app:
        for _ in range(3):
            TestApp(app).get("/", status=404)
    (said,) = warnings(caplog)
    assert "no more than 7 may (pushdemo.max_threads)" in said
    assert "`use = egg:pushdemo` in the ini's [server:main]" in said
    assert [record.levelno for record in caplog.records if WARNING in record.getMessage()] == [logging.WARNING]


def test_our_server_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with (
        application(lambda config: config.add_topic("t")) as app,
        serving(app) as server,
        Client(port_of(server)) as client,
    ):
        assert client.get("/push/t").head()[0] == 200
    assert warnings(caplog) == []


def test_an_application_without_topics_has_nothing_to_lose(caplog: pytest.LogCaptureFixture) -> None:
    with application(lambda config: None) as app:
        TestApp(app).get("/", status=404)
    assert warnings(caplog) == []


def test_the_log_of_plain_waitress_begins_with_the_warning(tmp_path: Path) -> None:
    with pserve(tmp_path, {}, {"use": "egg:waitress"}) as running:
        assert running.log.count(WARNING) == 1
        for _ in range(2):
            with Client(running.port) as client:
                assert client.get("/").response()[0] == 200
        assert running.log.count(WARNING) == 1


@pytest.mark.parametrize("command", ["proutes", "ptweens", "pshell"])
def test_a_command_that_serves_nobody_is_not_warned(tmp_path: Path, command: str) -> None:
    arguments = pserve_command(write_ini(tmp_path))
    program, ini = arguments.pop("args")
    arguments["args"] = [str(Path(program).with_name(command)), ini]
    ended = subprocess.run(**arguments, input="", capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert WARNING not in ended.stdout + ended.stderr
