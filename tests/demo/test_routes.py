"""The demo application by WebTest: all that is finite. For streams see end_to_end/test_demo_under_pserve.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from pyramid.router import Router
from webtest import TestApp

from pushdemo.demo import main
from pushdemo.topics.topic import Topic
from tests.fixtureapps import texts

STREAM = "/server/index"
ROOM = "/rooms/lobby"
PAGES = ["/", ROOM, "/primes", "/document", "/job"]


@pytest.fixture
def demo() -> Iterator[Router]:
    demo = main(**{"pushdemo.interval": "1000", "pushdemo.longpoll.timeout": "0.3"})
    yield demo
    demo.registry["pushdemo.topics"].close()


@pytest.fixture
def app(demo: Router) -> TestApp:
    return TestApp(demo)


@pytest.fixture
def topic(demo: Router) -> Topic:
    return demo.registry["pushdemo.topics"]["server"]  # type: ignore[no-any-return]


def poll(app: TestApp, path: str = STREAM, last: str | None = None) -> dict[str, Any]:
    """One long poll's answer."""
    query = {"transport": "longpoll"} | ({} if last is None else {"last_event_id": last})
    return app.get(path, query).json  # type: ignore[no-any-return]


# -- pages


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_html_and_all_that_it_names_is_there(app: TestApp, path: str) -> None:
    response = app.get(path)
    assert response.content_type == "text/html"
    assert response.charset.lower() == "utf-8"
    named = re.findall(r'(?:src|href)="(/[^"#]*)"', response.text)
    assert {name.rpartition(".")[2] for name in named} >= {"js", "css", "svg"}
    for address in named:
        assert app.get(address).maybe_follow().status_int == 200, address


@pytest.mark.parametrize(
    ("interval", "words"), [("5", "every 5 seconds"), ("0.25", "every 0.25 seconds"), ("1", "every second")]
)
def test_the_front_page_says_how_often_a_message_comes(interval: str, words: str) -> None:
    page = TestApp(main(**{"pushdemo.interval": interval})).get("/")
    assert words in page.text
    assert re.search(r'<ul id="container"[^>]*></ul>', page.text)


@pytest.mark.parametrize("path", [*PAGES, STREAM])
def test_head_brings_what_get_would_without_a_body(app: TestApp, path: str, topic: Topic) -> None:
    response = app.head(path)
    assert response.status_int == 200
    assert response.body == b""
    assert (topic.head, topic.clients) == (0, 0), "nothing has started"


@pytest.mark.parametrize("path", [*(path for path in PAGES if path != ROOM), STREAM])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_405_and_says_which_would_do(app: TestApp, path: str, method: str) -> None:
    response = app.request(path, method=method, status=405)
    assert response.headers["Allow"] == ("GET, HEAD, OPTIONS" if path == STREAM else "GET, HEAD")
    assert method in response.text


def test_an_unknown_address_is_404(app: TestApp) -> None:
    app.get("/server", status=404)


@pytest.mark.parametrize(
    ("page", "generator", "call"),
    [
        ("primes", "/prime", "sessionButton({"),
        ("document", "/document/lines", "sessionButton({"),
        ("job", "/job/run", "poll("),
    ],
)
def test_a_page_names_its_generator_and_loads_its_script_and_nothing_inline(
    app: TestApp, page: str, generator: str, call: str
) -> None:
    html = app.get(f"/{page}").html
    assert html.find(id=page)["data-url"] == generator
    (script,) = html.find_all("script")
    assert script["type"] == "module"
    assert script.get_text() == ""
    assert call in app.get(script["src"]).text
    assert not [tag for tag in html.find_all(True) for name in tag.attrs if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("page", ["primes", "document", "job"])
def test_a_page_begins_no_generator(app: TestApp, demo: Router, page: str) -> None:
    app.get(f"/{page}")
    assert demo.registry["pushdemo.generators"].info()["open"] == 0


# -- generators


def test_prime_counts_as_the_post_does(app: TestApp) -> None:
    answers = [app.get("/prime?key=a").json for _ in range(6)]
    assert [(answer["state"], answer["content"]) for answer in answers] == [
        ("ready", number) for number in (1, 2, 3, 5, 7, 11)
    ]


def test_two_keys_never_see_each_others_items(app: TestApp) -> None:
    numbers = [app.get(f"/prime?key={key}").json["content"] for key in "abaabb"]
    assert numbers == [1, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("query", ["", "?key=", "?Key=a"])
def test_prime_without_a_key_is_400_and_names_the_parameter(app: TestApp, query: str) -> None:
    answer = app.get(f"/prime{query}", status=400).json
    assert answer["state"] == "error"
    assert answer["parameter"] == "key"
    assert "key: must be 1 to 200 characters" in answer["reason"]


def test_prime_by_a_wrong_method_is_405(app: TestApp) -> None:
    assert "GET" in app.put("/prime?key=a", status=405).headers["Allow"]


# -- which transport


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "multipart/x-mixed-replace"),
        ("*/*", "multipart/x-mixed-replace"),
        ("text/event-stream", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/json", "application/json"),
        ("application/json;q=0.4, text/event-stream;q=0.5", "text/event-stream"),
    ],
)
def test_accept_chooses_the_transport(app: TestApp, accept: str | None, content_type: str) -> None:
    response = app.head(STREAM, headers={"Accept": accept} if accept else {})
    assert response.content_type == content_type
    assert "Accept" in response.headers["Vary"]


def test_nothing_that_fits_is_406_and_lists_what_there_is(app: TestApp) -> None:
    response = app.get(STREAM, headers={"Accept": "image/png"}, status=406)
    for transport in ("multipart", "sse", "jsonlines", "longpoll"):
        assert f"transport={transport}" in response.text
    assert "Accept" in response.headers["Vary"]


def test_a_picture_by_events_is_406() -> None:
    app = TestApp(texts.main())
    response = app.get("/push/pictures?transport=sse", status=406)
    assert "multipart/x-mixed-replace (transport=multipart)" in response.text
    assert "transport=longpoll" not in response.text


def test_an_unknown_transport_is_400_and_lists_the_known(app: TestApp) -> None:
    response = app.get(f"{STREAM}?transport=websocket", status=400)
    assert "transport=websocket: must be one of multipart, sse, jsonlines, longpoll" in response.text


@pytest.mark.parametrize("query", ["transport=%ff", "topic=%ff", "transport=longpoll&last_event_id=%c3%28"])
def test_a_query_that_is_no_utf_8_is_400(app: TestApp, query: str) -> None:
    assert "the query is not percent-encoded UTF-8" in app.get(f"{STREAM}?{query}", status=400).text


# -- long polling


def test_the_first_long_poll_brings_a_message_at_once(app: TestApp) -> None:
    answer = poll(app)
    assert answer["state"] == "ready"
    (message,) = answer["messages"]
    assert message["id"] == answer["last_event_id"]
    assert ElementTree.fromstring(message["content"]).tag == "message"


def test_a_long_poll_that_nothing_comes_for_says_so_and_can_be_asked_again(app: TestApp, topic: Topic) -> None:
    last = poll(app)["last_event_id"]
    assert poll(app, last=last) == {"state": "waiting", "messages": [], "last_event_id": last}
    topic.publish("next")
    assert [message["content"] for message in poll(app, last=last)["messages"]] == ["<message>next</message>"]


def test_a_client_that_comes_back_gets_all_that_it_missed(app: TestApp, topic: Topic) -> None:
    last = poll(app)["last_event_id"]
    ids = [topic.publish(text).id for text in "abc"]
    answer = poll(app, last=last)
    assert [message["id"] for message in answer["messages"]] == ids
    assert answer["last_event_id"] == ids[-1]
    assert "reset" not in answer


@pytest.mark.parametrize("last", ["00000000-1", "nonsense", "{epoch}-7", "{epoch}-" + "9" * 5000, "\U0001d11e"])
def test_an_id_that_is_not_known_is_a_reset_and_the_newest_message(app: TestApp, topic: Topic, last: str) -> None:
    poll(app)
    answer = poll(app, last=last.format(epoch=topic.epoch))
    assert answer["reset"] is True
    assert [message["id"] for message in answer["messages"]] == [f"{topic.epoch}-1"]
    assert topic.clients == 0


def test_a_finished_topic_says_done_to_whoever_has_it_all() -> None:
    app = TestApp(texts.main())
    last = "earliest"
    states = []
    while not states or states[-1] == "ready":
        answer = poll(app, "/push/values", last)
        last = answer["last_event_id"]
        states.append(answer["state"])
    assert states[-1] == "done"
    assert poll(app, "/push/values", last) == {"state": "done", "messages": [], "last_event_id": last}


def test_an_event_source_does_not_come_back_to_a_finished_topic() -> None:
    router = texts.main()
    topic = router.registry["pushdemo.topics"]["silent"]
    last = topic.publish("the last").id
    topic.end()
    response = TestApp(router).get("/push/silent?transport=sse", headers={"Last-Event-ID": last})
    assert (response.status_int, response.body) == (204, b"")
