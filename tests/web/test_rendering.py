"""Values as JSON by the application's own renderer, where they need it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.registry import Registry
from pyramid.renderers import JSON
from pyramid.request import Request
from webtest import TestApp

from pushdemo import json_yield
from pushdemo.web.rendering import blank_request, json_text


class Order:
    """Says itself how it is JSON."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __json__(self, request: Request) -> dict[str, Any]:
        return {"order": self.number, "url": request.route_url("order", number=self.number)}


class Careless:
    def __json__(self, request: Request) -> Any:
        return {"price": float("nan")}


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def configured(renderer: Any = None) -> Configurator:
    config = Configurator()
    config.include("pushdemo")
    config.add_route("order", "/orders/{number}")
    if renderer is None:
        renderer = JSON(indent=4)
        renderer.add_adapter(Decimal, lambda value, request: str(value))
        renderer.add_adapter(datetime, lambda value, request: value.isoformat())
    config.add_renderer("json", renderer)
    return config


@pytest.fixture(scope="module")
def registry() -> Registry:
    config = configured()
    config.commit()
    return config.registry


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true]}'),
        ("grün", '"grün"'),
        (Decimal("1.10"), '"1.10"'),
        ({"at": NOON}, '{"at": "2026-01-02T12:00:00+00:00"}'),
        (Order(7), '{"order": 7, "url": "http://localhost/orders/7"}'),
        (["a\nb", Decimal(1)], '["a\\nb", "1"]'),
    ],
)
def test_values_are_written_on_one_line(registry: Registry, value: Any, text: str) -> None:
    found = json_text(registry, value)
    assert "\n" not in found
    assert json.loads(found) == json.loads(text)
    if found != text:
        assert (
            " ".join(found.split()).replace("{ ", "{").replace(" }", "}").replace("[ ", "[").replace(" ]", "]") == text
        )


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], Careless(), {"x": Careless()}])
def test_what_is_no_json_is_refused(registry: Registry, value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON|Out of range"):
        json_text(registry, value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), {(1, 2): 3}])
def test_what_no_adapter_knows_is_a_type_error(registry: Registry, value: Any) -> None:
    with pytest.raises(TypeError):
        json_text(registry, value)


def test_a_renderer_of_bytes_and_of_half_characters() -> None:
    for made, expected in ((b'{"a": "gr\xc3\xbcn"}', '{"a": "grün"}'), ('"\ud800"', None), ("{]", None)):
        config = configured(lambda info, made=made: lambda value, system: made)
        config.commit()
        if expected:
            assert json_text(config.registry, object()) == expected
        else:
            with pytest.raises(ValueError, match=r"surrogates|Expecting"):
                json_text(config.registry, object())


def test_plain_values_do_not_reach_the_renderer() -> None:
    config = configured(lambda info: lambda value, system: pytest.fail("it was asked"))
    config.commit()
    assert json_text(config.registry, {"a": 1}) == '{"a":1}'


def test_a_blank_request_has_the_applications_methods_and_nobody_s_session(registry: Registry) -> None:
    request = blank_request(registry, "https://shop.example")
    assert request.route_url("order", number=1) == "https://shop.example/orders/1"
    assert callable(request.push)
    assert request.authenticated_userid is None
    assert not request.cookies


def orders(request: Request) -> Iterator[Any]:
    yield Order(1)
    yield {"price": Decimal("1.10"), "at": NOON, "word": "grün"}
    yield "plain"
    return [Decimal(3)]


EXPECTED = [
    {"order": 1, "url": "http://shop.example/orders/1"},
    {"price": "1.10", "at": "2026-01-02T12:00:00+00:00", "word": "grün"},
    "plain",
]


@pytest.fixture
def app() -> Iterator[TestApp]:
    config = configured()
    config.add_route("orders", "/orders")
    config.add_view(json_yield(orders), route_name="orders")
    config.add_route("careless", "/careless")
    config.add_view(json_yield(careless), route_name="careless")
    app = TestApp(config.make_wsgi_app(), extra_environ={"HTTP_HOST": "shop.example"})
    yield app
    assert app.app.registry["pushdemo.generators"].close(20) == 0


def careless(request: Request) -> Iterator[Any]:
    yield Careless()


def test_json_yield_gives_items_and_the_return_value_by_the_applications_renderer(app: TestApp) -> None:
    answers = [app.get(f"/orders?key=K&after={after}").json for after in range(4)]
    assert [answer["content"] for answer in answers] == [*EXPECTED, ["3"]]
    assert [answer["state"] for answer in answers] == ["ready"] * 3 + ["done"]
    assert app.get("/orders?key=L&max=3").json["content"] == EXPECTED


def test_so_does_a_stream(app: TestApp) -> None:
    response = Request.blank("/orders?key=S&transport=jsonlines", base_url="http://shop.example").get_response(app.app)
    lines = [json.loads(line) for line in b"".join(response.app_iter).splitlines()]
    assert [line["content"] for line in lines if "id" in line] == EXPECTED


def test_an_item_that_becomes_no_json_is_a_failure(app: TestApp) -> None:
    for _ in range(2):
        assert app.get("/careless?key=K&after=0", status=500).json["state"] == "error"
