"""Publishing from other processes, at a real redis-server: the publisher, the command, and redis-cli alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator

import pushdemo
from pushdemo.publisher import Publisher, main
from pushdemo.redis import scripts
from pushdemo.topics.message import Message
from pushdemo.topics.topic import EARLIEST, Topic
from tests.redis.support import RedisServer, namespace, redis_server
from tests.support import ROOT, wait_until

LUA = ROOT / "pushdemo/redis/publish.lua"


class Application:
    """An application with topics at a Redis, and what a client of each is told."""

    def __init__(self, server: RedisServer, space: str) -> None:
        self.settings = {"pushdemo.redis_url": server.url, "pushdemo.redis_namespace": space}
        with Configurator(settings=dict(self.settings)) as config:
            config.include("pushdemo")
            config.add_topic("news")
            config.add_topic("text", content_type="text/plain", history=3)
            config.add_topic("orders.{user}", content_type="application/json", lifetime=60)
            config.add_topic("{room}{seat}.x{row}", content_type="text/plain")
            self.app = config.make_wsgi_app()
        self.backend = config.registry["pushdemo.backend"]
        self.catalog = config.registry["pushdemo.topics"]
        self._joined: list[Topic] = []
        wait_until(lambda: server.client.exists(f"{{{space}}}:1:declared:orders.{{user}}"), what="the declarations")

    def listen(self, pattern: str, **values: str) -> Topic:
        """The topic, which has a client from now on."""
        topic: Topic = self.catalog.open(self.catalog.refer(pattern, values))
        topic.join()
        self._joined.append(topic)
        wait_until(lambda: topic.current, what="the reader")  # type: ignore[attr-defined]
        return topic

    def close(self) -> None:
        for topic in self._joined:
            topic.leave()
        self.catalog.close()
        self.backend.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def application(server: RedisServer) -> Iterator[Application]:
    made = Application(server, namespace())
    yield made
    made.close()


@pytest.fixture
def publisher(server: RedisServer, application: Application) -> Iterator[Publisher]:
    with pushdemo.publisher(server.url, namespace=application.backend.namespace) as publisher:
        yield publisher


def newest(topic: Topic) -> Message:
    message, _ = topic.following(topic.head - 1)
    assert message is not None
    return message


def told(topic: Topic, count: int) -> list[bytes]:
    """The bodies of all messages, once there are so many."""
    wait_until(lambda: topic.number == count, what="messages")
    position, bodies = topic.begin(EARLIEST).position, []
    while (message := topic.following(position)[0]) is not None:
        position = message.position
        bodies.append(message.body)
    return bodies


def test_a_message_reaches_the_clients_of_its_topic_alone(application: Application, publisher: Publisher) -> None:
    ann, bob = application.listen("orders.{user}", user="ann"), application.listen("orders.{user}", user="bob")
    id = publisher.publish("orders.{user}", {"id": 5}, user="ann")
    assert told(ann, 1) == [b'{"id":5}']
    assert newest(ann).id == id
    publisher.publish(pushdemo.topic("orders.{user}", user="bob"), {"id": 6}, event="order")
    assert told(bob, 1) == [b'{"id":6}']
    assert newest(bob).event == "order"
    assert ann.number == 1


def test_content_type_and_history_are_those_that_the_application_has_declared(
    server: RedisServer, application: Application, publisher: Publisher
) -> None:
    news, text = application.listen("news"), application.listen("text")
    publisher.publish("news", "a & b")
    assert told(news, 1) == [b"<message>a &amp; b</message>"]
    for number in range(9):
        publisher.publish("text", f"{number}")
    assert told(text, 9) == [b"6", b"7", b"8"]
    assert server.client.xlen(text.stream) == 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="text or bytes, not dict"):
        publisher.publish("text", {})


def test_what_nobody_listens_to_is_kept_for_its_lifetime(
    server: RedisServer, application: Application, publisher: Publisher
) -> None:
    publisher.publish("orders.{user}", 1, user="cyd")
    keys = [f"{{{application.backend.namespace}}}:1:{kind}:orders.~cyd" for kind in ("topic", "stream")]
    assert all(60_000 < server.client.pttl(key) <= 65_000 for key in keys)
    assert told(application.listen("orders.{user}", user="cyd"), 1) == [b"1"]


def test_a_topic_can_be_ended(application: Application, publisher: Publisher) -> None:
    topic = application.listen("orders.{user}", user="ann")
    publisher.end_topic("orders.{user}", user="ann")
    wait_until(lambda: topic.ended, what="the end")
    with pytest.raises(RuntimeError, match="has ended"):
        publisher.publish("orders.{user}", 1, user="ann")


def test_an_unknown_topic_is_an_error_that_names_those_there_are(
    application: Application, publisher: Publisher
) -> None:
    for _ in range(2):
        with pytest.raises(KeyError, match=r"no topic nonsense; there are: news, orders\.\{user\}, text"):
            publisher.publish("nonsense", 1)
    with pytest.raises(TypeError, match="lacks user"):
        publisher.publish("orders.{user}", 1)
    with pytest.raises(ValueError, match="an event cannot be named 'reset'"):
        publisher.publish("news", "a", event="reset")


def test_a_publisher_made_before_a_fork_works_in_the_child_and_goes_on(
    application: Application, publisher: Publisher
) -> None:
    topic = application.listen("text")
    publisher.publish("text", "before")
    child = os.fork()
    if not child:
        publisher.publish("text", "child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    publisher.publish("text", "parent")
    assert told(topic, 3) == [b"before", b"child", b"parent"]


@pytest.mark.heavy
def test_declarations_are_back_after_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushdemo.redis.reader.LOOK", 0.1)
    with redis_server(tmp_path) as server:
        application = Application(server, namespace())
        server.client.flushall()
        with pushdemo.publisher(server.url, namespace=application.backend.namespace) as publisher:
            wait_until(lambda: publisher._outside._patterns(), what="the declarations")
            assert publisher.publish("text", "a")
        application.close()


# -- the command


def command(*arguments: str) -> str:
    """What the command says on standard error as it fails; empty where it does not."""
    try:
        main(arguments)
    except SystemExit as exit:
        return f"{exit.code}"  # as text it is said on standard error, and the status is 1
    return ""


@pytest.fixture
def ini(tmp_path: Path, application: Application) -> str:
    path = tmp_path / "production.ini"
    lines = [f"{key} = {value}" for key, value in application.settings.items()]
    path.write_text("\n".join(["[app:main]", "use = egg:pushdemo", *lines]))
    return str(path)


def test_the_command_publishes_a_value_a_file_or_lines(
    application: Application, ini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, text = application.listen("orders.{user}", user="ann"), application.listen("text")
    assert not command(ini, "orders.{user}", "user=ann", "--value", '{"id": 5}')
    assert told(orders, 1) == [b'{"id": 5}']
    (tmp_path / "message.txt").write_text("a\nb")
    assert not command(ini, "text", "--file", str(tmp_path / "message.txt"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("c\nd\n"))
    assert not command(ini, "text", "--event", "line")
    assert told(text, 3) == [b"a\nb", b"c", b"d"]
    assert newest(text).event == "line"
    assert not command(ini, "text", "--end")
    wait_until(lambda: text.ended, what="the end")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["orders.{user}", "--value", "1"], "lacks user"),
        (["orders.{user}", "user", "--value", "1"], "user is not a placeholder's name=value"),
        (["orders.{user}", "user=ann", "--value", "{"], "not a body of type application/json"),
        (["nonsense", "--value", "1"], "no topic nonsense; there are:"),
        (["news", "--file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_the_command_says_what_is_wrong(application: Application, ini: str, arguments: list[str], said: str) -> None:
    error = command(ini, *arguments)
    assert said in error
    assert error.startswith("pushdemo-publish: ")


def test_a_process_without_redis_cannot_be_reached(tmp_path: Path) -> None:
    ini = tmp_path / "alone.ini"
    ini.write_text("[app:main]\nuse = egg:pushdemo\n")
    assert "a process that shares its topics with none cannot be reached" in command(str(ini), "a", "--value", "b")


# -- redis-cli alone


def cli(server: RedisServer, application: Application, *arguments: str) -> str:
    space = application.backend.namespace
    run = subprocess.run(
        ["redis-cli", "-p", str(server.port), "--eval", str(LUA), space, ",", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_redis_cli_publishes_as_the_publisher_does(server: RedisServer, application: Application) -> None:
    news, orders = application.listen("news"), application.listen("orders.{user}", user="Ann O./~é")
    id = cli(server, application, "news", "a <b> & c")
    assert told(news, 1) == [b"<message>a &lt;b&gt; &amp; c</message>"]
    assert newest(news).id == id
    cli(server, application, "orders.{user}", '{"id":\n5}', "user=Ann O./~é", "event=price")
    assert told(orders, 1) == [b'{"id": 5}']
    assert newest(orders).event == "price"
    values = {"room": "a.b", "seat": "1", "row": "z"}
    seats = application.listen("{room}{seat}.x{row}", **values)
    cli(server, application, "{room}{seat}.x{row}", "taken", *(f"{name}={value}" for name, value in values.items()))
    assert told(seats, 1) == [b"taken"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense", "a"], "no topic nonsense is declared"),
        (["orders.{user}", "1"], "user is missing"),
        (["orders.{user}", "1", "user=a", "other=b"], "other is missing, or no placeholder"),
        (["orders.{user}", "{", "user=a"], "the message is not JSON"),
        (["news", "a", "event=reset"], "an event cannot be named reset"),
        (["news", "a", "event"], "event is not name=value"),
    ],
)
def test_redis_cli_is_told_what_is_wrong(
    server: RedisServer, application: Application, arguments: list[str], said: str
) -> None:
    assert said in cli(server, application, *arguments)


def test_the_file_for_other_languages_has_the_functions_that_nodes_run() -> None:
    assert scripts.SHARED in LUA.read_text(encoding="utf-8")


def test_two_nodes_hear_of_it(server: RedisServer) -> None:
    space = namespace()
    with ExitStack() as stack:
        nodes: list[Any] = [Application(server, space) for _ in range(2)]
        for node in nodes:
            stack.callback(node.close)
        topics = [node.listen("text") for node in nodes]
        with pushdemo.publisher(server.url, namespace=space) as publisher:
            publisher.publish("text", "a")
        assert [told(topic, 1) for topic in topics] == [[b"a"]] * 2
