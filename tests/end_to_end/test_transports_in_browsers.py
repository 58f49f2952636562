"""What browsers make of the transports by themselves, without a line of push.js: `EventSource` and `<img>`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.readers import Pushing, pushing
from tests.support import chromium, require, wait_until

require(shutil.which("chromium") and shutil.which("chromedriver"), "Chromium", "chromium chromium-driver")

BOUND = 60.0  # seconds: a browser on a busy machine takes its time

LISTEN = """
window.told = [];
window.source = new EventSource(arguments[0]);
for (const kind of ["open", "error", "message", "reset", "failing", "end", ...arguments[1]]) {
  source.addEventListener(kind, ({ data, lastEventId }) => told.push([kind, data, lastEventId]));
}
"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with chromium() as driver:
        yield driver
        driver.get("about:blank")


def listen(driver: Any, application: Pushing, path: str, *topics: str) -> None:
    """Open an EventSource on a page of its origin; what it is told is kept in `told`."""
    driver.get(f"http://127.0.0.1:{application.port}/push?transport=none")
    driver.execute_script(LISTEN, path, topics)


def told(driver: Any, *kinds: str) -> list[list[str | None]]:
    """What it has been told, of these kinds."""
    events = json.loads(driver.execute_script("return JSON.stringify(told)"))
    return [event for event in events if event[0] in kinds]


def is_closed(driver: Any) -> bool:
    return bool(driver.execute_script("return source.readyState === EventSource.CLOSED"))


def test_an_event_source_is_told_of_the_end_and_does_not_come_back(chrome: Any) -> None:
    with pushing() as application:
        news = application.topics["news"]
        news.publish("a\nb")
        listen(chrome, application, "/push/news?transport=sse")
        wait_until(lambda: told(chrome, "message"), BOUND, "the message")
        news.notify("failing")
        wait_until(lambda: told(chrome, "failing"), BOUND, "the failure")
        news.publish("c")
        news.end()
        wait_until(lambda: is_closed(chrome), BOUND, "the browser to give up")
        ids = [f"{news.epoch}-{number}" for number in (1, 1, 2, 2)]
        assert told(chrome, "message", "reset", "failing", "end") == [
            ["message", "a\nb", ids[0]],
            ["failing", '{"reason": "the source fails and is tried again", "last_event_id": "' + ids[1] + '"}', ids[1]],
            ["message", "c", ids[2]],
            ["end", '{"reason": "nothing follows", "last_event_id": "' + ids[3] + '"}', ids[3]],
        ]
        assert len(told(chrome, "open")) == 1, "it asks once more, and gets 204"


@pytest.mark.parametrize("last", ["", "&last_event_id=0123abcd-7"])
def test_an_event_source_of_an_ended_topic_without_a_message_does_not_come_back(chrome: Any, last: str) -> None:
    with pushing() as application:
        application.topics["news"].end()
        listen(chrome, application, f"/push/news?transport=sse{last}")
        wait_until(lambda: is_closed(chrome), BOUND, "the browser to give up")
        assert len(told(chrome, "reset")) == bool(last)


def test_heartbeats_are_no_events(chrome: Any) -> None:
    with pushing({"heartbeat": 0.2}) as application:
        application.topics["news"].publish("a")
        listen(chrome, application, "/push/news?transport=sse")
        wait_until(lambda: told(chrome, "message"), BOUND, "the message")
        with application.reader("sse") as beside:
            beside.next()
            for _ in range(3):
                assert beside.next(heartbeats=True).kind == "heartbeat"
        application.topics["news"].publish("b")
        wait_until(lambda: len(told(chrome, "message")) == 2, BOUND, "the next message")
        assert [event[1] for event in told(chrome, "message")] == ["a", "b"]


def test_an_event_source_of_several_topics_resumes_all_of_them(chrome: Any) -> None:
    with pushing(a={}, b={}) as application:
        application.topics["a"].publish("a1")
        listen(chrome, application, "/push?transport=sse&topic=a&topic=b&events=topic", "a", "b")
        wait_until(lambda: told(chrome, "a"), BOUND, "the message")
        port = application.port
        old = {name: (topic.epoch, topic.publish(f"{name}!")) for name, topic in application.topics.items()}
        wait_until(lambda: told(chrome, "b"), BOUND, "the message")
    assert [event[1] for event in told(chrome, "a", "b")] == ["a1", "a!", "b!"]
    with pushing(port=port, a={}, b={}) as application:
        for name, topic in application.topics.items():  # the same topics, as if only the connections had been lost
            epoch, message = old[name]
            topic.epoch = epoch
            for number in range(1, message.number + 1):
                topic.publish(f"{name} {number}")
            topic.publish(f"{name} while nobody listened")
        wait_until(lambda: len(told(chrome, "a", "b")) == 5, BOUND, "what was missed")
        assert told(chrome, "reset") == []
        missed = ["a while nobody listened", "b while nobody listened"]
        assert [event[1] for event in told(chrome, "a", "b")][3:] == missed


def picture(width: int) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="10"><rect width="9" height="9"/></svg>'


def test_a_picture_changes_with_each_message_and_stands_heartbeats_and_the_end(chrome: Any) -> None:
    """Chromium shows a part when it has the header of the next one: each picture comes twice, but for the last."""
    with pushing({"heartbeat": 0.2}, plot={"content_type": "image/svg+xml"}) as application:
        plot = application.topics["plot"]
        chrome.get(f"http://127.0.0.1:{application.port}/push?transport=none")
        chrome.execute_script("document.body.innerHTML = '<img src=\"/push/plot\">'")

        def width() -> int:
            return int(chrome.execute_script("return document.images[0].naturalWidth"))

        with application.reader("multipart", "/push/plot") as beside:
            beside.join()
            for shown in (11, 12, 13):
                plot.publish(picture(shown))
                plot.publish(picture(shown))
                wait_until(lambda shown=shown: width() == shown, BOUND, "the picture")
                assert beside.contents(2) == [picture(shown)] * 2
                for _ in range(2):
                    assert beside.next(heartbeats=True).kind == "heartbeat"
                assert width() == shown
            plot.publish(picture(14))
            plot.end()
            beside.rest()
        wait_until(lambda: width() == 14, BOUND, "the last picture")
