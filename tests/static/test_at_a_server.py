"""push.js at the real server, whose bytes nobody wrote by hand: several topics, lost connections, a restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.readers import Pushing, pushing
from tests.static.engines import Engine, Watch

TOPICS = {"news": {}, "figures": {"content_type": "application/json"}}
INI = {"cors_origins": "*", "longpoll.timeout": 0.2}


@pytest.fixture(params=["node-multipart", "node-jsonlines", "node-longpoll", "chromium-multipart", "chromium-sse"])
def client(request: pytest.FixtureRequest) -> tuple[Engine, str]:
    """Something that runs push.js, and a transport there."""
    engine, transport = request.param.split("-")
    return request.getfixturevalue(engine), transport


@pytest.fixture
def served() -> Iterator[Pushing]:
    with pushing(INI, **TOPICS) as served:
        yield served


def received(watch: Watch) -> list[tuple[str, object]]:
    return [(message["topic"], message["content"]) for message in watch.messages]


def subscribe(client: tuple[Engine, str], port: int, **options: object) -> Watch:
    engine, transport = client
    return engine.subscribe(f"http://127.0.0.1:{port}/push", transport=transport, text=["news"], **options)


@pytest.mark.heavy
def test_each_topic_is_resumed_after_its_own_last_message(client: tuple[Engine, str], served: Pushing) -> None:
    news, figures = served.topics["news"], served.topics["figures"]
    watch = subscribe(client, served.port)
    watch.state("live")
    figures.publish({"a": 1})
    watch.until(lambda watch: len(watch.messages) == 1)
    figures.publish(2)
    news.publish("42")
    watch.until(lambda watch: len(watch.messages) == 3)
    assert received(watch) == [("figures", {"a": 1}), ("figures", 2), ("news", "42")]
    watch.close()
    news.publish("while nobody listened")
    again = subscribe(client, served.port, lastEventId=watch.told[-1]["closed"])
    again.until(lambda watch: watch.messages)
    figures.publish(3)
    again.until(lambda watch: len(watch.messages) == 2)
    assert received(again) == [("news", "while nobody listened"), ("figures", 3)]
    assert again.resets == 0
    again.close()


@pytest.mark.heavy
def test_a_topic_without_a_message_is_not_begun_anew_when_the_connection_is_lost(client: tuple[Engine, str]) -> None:
    with pushing(INI, **TOPICS) as served:
        port = served.port
        watch = subscribe(client, port)
        watch.state("live")
        served.topics["figures"].publish(1)
        watch.until(lambda watch: watch.messages)
    with pushing(INI, port, **TOPICS) as served:
        watch.until(lambda watch: watch.resets)  # both topics have another life
        watch.until(lambda watch: watch.states[-1]["state"] == "live")
        served.topics["news"].publish("after the restart")
        watch.until(lambda watch: len(watch.messages) == 2)
        assert received(watch) == [("figures", 1), ("news", "after the restart")]
        assert watch.resets == 1
        watch.close()


@pytest.mark.heavy
def test_the_end_of_all_topics_is_the_end(client: tuple[Engine, str], served: Pushing) -> None:
    watch = subscribe(client, served.port)
    watch.state("live")
    served.topics["news"].publish("last")
    watch.until(lambda watch: watch.messages)
    for topic in served.topics.values():
        topic.end()
    watch.state("ended")


@pytest.mark.heavy
def test_a_state_is_loaded_before_the_stream_and_again_after_a_restart(client: tuple[Engine, str]) -> None:
    with pushing(INI, news={}) as served:
        port, news = served.port, served.topics["news"]
        state = news.publish("in the state").id
        news.publish("after it")
        engine, transport = client
        url = f"http://127.0.0.1:{port}/push/news"
        watch = engine.subscribe(url, transport=transport, text=True, load=[state, ""])
        watch.until(lambda watch: watch.messages)
    with pushing(INI, port, news={}) as served:
        served.topics["news"].publish("of the new life")
        watch.until(lambda watch: len(watch.messages) == 2)
        assert [message["content"] for message in watch.messages] == ["after it", "of the new life"]
        assert (watch.of("load"), watch.resets) == ([state, ""], 1)
        watch.close()


@pytest.mark.heavy
def test_an_event_bears_the_name_that_its_publisher_has_given_it(client: tuple[Engine, str], served: Pushing) -> None:
    watch = subscribe(client, served.port, events=["price"], named=True)
    watch.state("live")
    served.topics["figures"].publish(7, event="price")
    served.topics["figures"].publish(8)
    watch.until(lambda watch: watch.messages)
    (named,) = watch.of("event")
    assert (named["topic"], named["event"], named["content"]) == ("figures", "price", 7)
    assert received(watch) == [("figures", 8)]
    watch.close()
