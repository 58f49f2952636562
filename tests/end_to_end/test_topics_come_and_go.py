"""Topics of a pattern under a real server: clients that come and go, few topics that may live, and no message lost."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.topics.catalog import Catalog
from tests.support import PATIENCE, Client, port_of, serving, wait_until


def say(request: Request) -> Response:
    message = request.publish("room.{id}", request.matchdict["word"], id=request.matchdict["id"])
    return Response(text=message.id if message else "dropped")


def listen(request: Request) -> Response:
    return request.push("news", "room.{id}", id=request.matchdict["id"])  # type: ignore[no-any-return]


@contextmanager
def rooms(**settings: object) -> Iterator[tuple[int, Catalog]]:
    """The port of a server with rooms, and its topics."""
    ini = {f"pushdemo.{key.replace('__', '.')}": str(value) for key, value in settings.items()}
    with Configurator(settings=ini) as config:
        config.include("pushdemo")
        config.add_topic("news", content_type="text/plain")
        config.add_topic("room.{id}", content_type="text/plain")
        for name, pattern, view in (("say", "/say/{id}/{word}", say), ("listen", "/listen/{id}", listen)):
            config.add_route(name, pattern)
            config.add_view(view, route_name=name)
        app = config.make_wsgi_app()
    with serving(app) as server:
        yield port_of(server), app.registry["pushdemo.topics"]


def heard(client: Client, word: str) -> bool:
    """Whether the client is brought this word."""
    while True:
        for line in client.chunk().splitlines():
            if json.loads(line).get("content") == word:
                return True


def test_each_client_hears_what_is_said_once_it_listens_however_short_topics_live() -> None:
    """Each visitor joins one of five rooms, of which three may live for a moment, and must hear its own word."""
    outcomes: list[str] = []

    def visit(port: int, number: int) -> None:
        chance = random.Random(number)
        with Client(port) as speaker:
            for turn in range(25):
                id, word = chance.randrange(5), f"{number}.{turn}"
                with Client(port) as listener:
                    listener.get(f"/listen/{id}?transport=jsonlines&topic=room.{{id}}")
                    status, _ = listener.head()
                    if status != 200:
                        outcomes.append(f"{status}")
                        continue
                    listener.chunk()  # the stream has begun
                    said = speaker.get(f"/say/{id}/{word}").response()[2]
                    outcomes.append("heard" if said != b"dropped" and heard(listener, word) else "lost")
                if chance.random() < 0.3:
                    threading.Event().wait(chance.random() / 100)

    with rooms(topics__limit=3, topics__lifetime=0.01) as (port, catalog):
        threads = [threading.Thread(target=visit, args=(port, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE)
            assert not thread.is_alive()
        wait_until(lambda: list(catalog) == ["news"], what="the end of all rooms")
    assert set(outcomes) <= {"heard", "503"}
    assert outcomes.count("heard") > 50


@pytest.mark.parametrize("transport", ["jsonlines", "sse"])
def test_who_comes_back_to_a_forgotten_room_is_told_that_it_has_missed_something(transport: str) -> None:
    with rooms(topics__lifetime=0.05) as (port, catalog):
        with Client(port) as client:
            last = client.get("/say/1/hello").response()[2].decode()
        wait_until(lambda: "room.~1" not in catalog, what="the end of the room")
        with Client(port) as client:
            client.get(f"/listen/1?transport={transport}&topic=room.~1&last_event_id={last}").head()
            client.until(b"reset")
