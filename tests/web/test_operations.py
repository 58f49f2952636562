"""`config.include("pushdemo.operations")` in an application of one's own: addresses, prefix, permission."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from pushdemo.web.settings import SettingsError

ADDRESSES = ("/health/live", "/health/ready", "/metrics", "/status", "/status/stream?transport=longpoll")


@contextmanager
def application(prefix: str | None = None, **settings: str) -> Iterator[TestApp]:
    with Configurator(settings={f"pushdemo.{key}": value for key, value in settings.items()}) as config:
        if "status_permission" in settings:
            config.include("tests.fixtureapps.guarded")
        config.include("pushdemo.operations", route_prefix=prefix)
        app = TestApp(config.make_wsgi_app())
    yield app
    app.app.registry["pushdemo.topics"].close()


@pytest.mark.parametrize("prefix", [None, "ops"])
def test_an_application_gets_all_addresses_under_its_prefix(prefix: str | None) -> None:
    with application(prefix) as app:
        start = f"/{prefix}" if prefix else ""
        for address in ADDRESSES:
            assert app.get(start + address).status_int == 200
        assert app.get(f"{start}/health/ready").json == {"ready": True}
        assert "pushdemo_ready 1.0" in app.get(f"{start}/metrics").text
        assert app.get(f"{start}/status").json["total"]["clients"] == 0
        if prefix:
            app.get("/status", status=404)


def test_health_is_for_everyone_and_the_figures_for_those_who_may() -> None:
    with application(status_permission="watch") as app:
        for address in ADDRESSES:
            app.get(address, status=200 if address.startswith("/health") else 403)
            app.get(address, headers={"Authorization": "Bearer sesame"}, status=200)


def test_a_permission_that_nobody_could_grant_stops_the_application() -> None:
    config = Configurator(settings={"pushdemo.status_permission": "watch"})
    config.include("pushdemo.operations")
    with pytest.raises(SettingsError, match=r"pushdemo\.status_permission = watch: the application has no security"):
        config.make_wsgi_app()
    config.registry["pushdemo.topics"].close()


@pytest.mark.parametrize("address", ADDRESSES[:4])
def test_another_method_is_405(address: str) -> None:
    with application() as app:
        assert app.post(address, status=405).headers["Allow"] == "GET, HEAD"


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pushdemo.web.prometheus", raising=False)
    monkeypatch.delattr("pushdemo.web.prometheus", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'prometheus_client: pip install "pushdemo\[operations\]"'):
        Configurator().include("pushdemo.operations")
