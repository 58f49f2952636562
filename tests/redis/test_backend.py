"""`pushdemo.redis_url`: what is taken, what is refused at start, and that a password is never shown."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from pushdemo.redis.connection import Link
from pushdemo.topics.producer import Producer
from pushdemo.topics.topic import Topic
from pushdemo.web.broker import InProcess
from pushdemo.web.settings import Settings, SettingsError
from tests.redis.support import RedisBackend, RedisTopic
from tests.support import free_port


def application(url: str) -> Any:
    with Configurator(settings={"pushdemo.redis_url": url}) as config:
        config.include("pushdemo")
        return config.registry["pushdemo.backend"]


def refused(url: str) -> str:
    with pytest.raises(SettingsError) as caught:
        application(url)
    assert "swordfish" not in str(caught.value)
    return str(caught.value)


def test_without_a_url_everything_is_in_the_process() -> None:
    assert isinstance(application(""), InProcess)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://:swordfish@example.org:7000/3", "example.org:7000"),
        ("rediss://user:swordfish@example.org", "example.org:6379"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock"),
    ],
)
def test_three_schemes_are_taken(url: str, address: str) -> None:
    assert isinstance(application(url), RedisBackend)
    assert Link(url).address == address


@pytest.mark.parametrize("url", ["http://:swordfish@example.org", "localhost:6379", "redis+srv://:swordfish@h/0"])
def test_another_scheme_is_refused(url: str) -> None:
    assert refused(url) == (
        "pushdemo.redis_url = (not shown): must be a redis://, rediss://, unix:// or redis[s]+sentinel:// URL, or "
        "nothing, such as redis://localhost:6379/0"
    )


@pytest.mark.parametrize("url", ["redis://:swordfish@example.org:x/0", "redis://:swordfish@h/0?unknown=1"])
def test_a_url_that_the_package_cannot_use_is_refused(url: str) -> None:
    assert refused(url).startswith("pushdemo.redis_url: not a URL that the redis package can use")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pushdemo.redis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    assert refused("redis://localhost") == 'pushdemo.redis_url needs the redis package: pip install "pushdemo[redis]"'


def test_publishing_without_redis_is_a_503_that_says_when_to_try_again() -> None:
    port = free_port()
    with Configurator(settings={"pushdemo.redis_url": f"redis://127.0.0.1:{port}"}) as config:
        config.include("pushdemo")
        config.add_topic("news")
        config.add_route("publish", "/publish")
        config.add_view(lambda request: request.publish("news", "lost"), route_name="publish")
        app = config.make_wsgi_app()
    response = TestApp(app).post("/publish", status=503)
    assert response.headers["Retry-After"] == "5"
    assert "nothing can be published to news" in response.text
    assert str(port) not in response.text
    app.registry["pushdemo.topics"].close()
    app.registry["pushdemo.backend"].close()


def test_a_password_is_not_shown_where_the_key_is_misspelt() -> None:
    with pytest.raises(SettingsError, match=r"pushdemo\.redis_ulr = \(not shown\); did you mean pushdemo\.redis_url"):
        Settings.from_ini({"pushdemo.redis_ulr": "redis://:swordfish@example.org"})


def test_a_password_is_not_in_what_is_shown_of_the_settings() -> None:
    settings = Settings.from_ini({"pushdemo.redis_url": "redis://:swordfish@example.org"})
    assert settings.redis_url == "redis://:swordfish@example.org"
    assert "swordfish" not in repr(settings)


def test_a_topic_that_is_not_shared_is_the_node_s_own() -> None:
    with Configurator(settings={"pushdemo.redis_url": "redis://localhost"}) as config:
        config.include("pushdemo")
        config.add_topic("everyone")
        config.add_topic("mine", lambda: "figures", shared=False)
        config.commit()
        topics = config.registry["pushdemo.topics"]
    assert isinstance(topics["everyone"], RedisTopic)
    assert type(topics["mine"]) is Topic
    assert type(topics["mine"].producer) is Producer
