"""`json_yield` over HTTP: what may be decorated, what the query says, what the answers look like."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from pyramid.authorization import ACLHelper
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.view import view_config
from webtest import TestApp

from pushdemo.web.json_yield import json_yield
from pushdemo.web.sessions import Sessions
from tests.support import Client, port_of, serving

BOUND = 30  # seconds

Items = Generator[Any, None, None]


@json_yield
def numbers(request: Request) -> Items:
    """Count to three."""
    yield from (1, 2, 3)


@json_yield
def words(context: Any, request: Request) -> Items:
    yield f"{request.params.get('word')} of {context.__class__.__name__}"
    yield request.path


@json_yield(accumulate=True)
def all_numbers(request: Request) -> Items:
    yield from (1, 2, 3)


@json_yield(accumulate=2)
def last_numbers(request: Request) -> Items:
    yield from (1, 2, 3)


@json_yield
def failing(request: Request) -> Items:
    yield 1
    raise ValueError("the password is swordfish")


@json_yield
def unencodable(request: Request) -> Items:
    yield {1, 2}


@json_yield
def everything(request: Request) -> Items:
    yield {"text": "ünï \u2028 </script> \ud800", "list": [1, 2.5, None, True], "nested": {"a": {}}}


class Reports:
    """A view class with the request alone."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @json_yield
    def lines(self) -> Items:
        yield f"{type(self).__name__} {self.request.params.get('word')}"
        yield "end"


class OtherReports(Reports):
    pass


class ContextReports:
    """A view class with the context, and a method that is configured in place."""

    def __init__(self, context: Any, request: Request) -> None:
        self.context = context
        self.request = request

    @json_yield
    def lines(self) -> Items:
        yield type(self.context).__name__


class Forgetful:
    def __init__(self, request: Request) -> None:
        pass

    @json_yield
    def lines(self) -> Items:
        yield 1


class Instance:
    """An object whose bound method is the view."""

    @json_yield
    def lines(self, request: Request) -> Items:
        yield f"bound to {request.path}"


@view_config(route_name="scanned")
@json_yield
def scanned(request: Request) -> Items:
    yield "scanned"


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    sessions = Sessions(limit=20, turn_timeout=0.01)
    yield sessions
    assert sessions.close(BOUND) == 0


@pytest.fixture
def configure(sessions: Sessions) -> Callable[..., Configurator]:
    def configure(**views: Any) -> Configurator:
        config = Configurator()
        config.include("pushdemo")
        config.registry["pushdemo.generators"] = sessions
        for name, view in views.items():
            config.add_route(name, f"/{name}")
            if view is not None:
                config.add_view(view[0] if isinstance(view, tuple) else view, route_name=name, **keywords(view))
        return config

    return configure


def keywords(view: Any) -> dict[str, Any]:
    return view[1] if isinstance(view, tuple) else {}


@pytest.fixture
def serve(configure: Callable[..., Configurator]) -> Callable[..., TestApp]:
    return lambda **views: TestApp(configure(**views).make_wsgi_app())


@pytest.fixture
def app(serve: Callable[..., TestApp]) -> TestApp:
    return serve(numbers=numbers)


# The answer


def test_one_item_a_poll_and_then_the_end(app: TestApp) -> None:
    assert [app.get("/numbers?key=K").json for _ in range(4)] == [
        {"state": "ready", "content": 1, "count": 1, "key": "K"},
        {"state": "ready", "content": 2, "count": 2, "key": "K"},
        {"state": "ready", "content": 3, "count": 3, "key": "K"},
        {"state": "done", "content": None, "count": 3, "key": "K"},
    ]


def test_the_answer_is_json_that_nobody_stores(app: TestApp) -> None:
    response = app.get("/numbers?key=K")
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/html, application/xml;q=0.9, */*;q=0.8", "image/png"]
)
def test_a_poll_is_answered_in_its_one_form_whatever_is_accepted(app: TestApp, accept: str) -> None:
    assert app.get("/numbers?key=K", headers={"Accept": accept}).json["content"] == 1


def test_two_keys_never_see_each_others_items(app: TestApp) -> None:
    answers = [(key, app.get("/numbers", {"key": key}).json["content"]) for key in "abacab"]
    assert answers == [("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 3), ("b", 2)]


@pytest.mark.parametrize("key", ["k" * 200, '☃ ä/&="\\\x00\n', "🦉" * 200, " "])
def test_a_key_is_any_text(app: TestApp, key: str) -> None:
    assert app.get("/numbers", {"key": key}).json["key"] == key
    assert app.get("/numbers", {"key": key}).json["count"] == 2


def test_content_is_whatever_json_carries(serve: Callable[..., TestApp]) -> None:
    content = serve(everything=everything).get("/everything?key=K").json["content"]
    assert content == {"text": "ünï \u2028 </script> \ud800", "list": [1, 2.5, None, True], "nested": {"a": {}}}


def test_after_makes_a_poll_idempotent(app: TestApp) -> None:
    first = [app.get("/numbers?key=K&after=0").json for _ in range(3)]
    assert first == [{"state": "ready", "content": 1, "count": 1, "key": "K"}] * 3
    assert app.get("/numbers?key=K&after=1").json["content"] == 2
    assert app.get("/numbers?key=K&after=2").json["content"] == 3
    assert [app.get("/numbers?key=K&after=3").json["state"] for _ in range(3)] == ["done"] * 3


def test_max_makes_content_a_list(app: TestApp) -> None:
    answers = [app.get(f"/numbers?key=K&after={after}&max=2").json for after in (0, 2, 3)]
    assert [(answer["content"], answer["count"]) for answer in answers] == [([1, 2], 2), ([3], 3), (None, 3)]
    assert app.get("/numbers?key=L&max=1").json["content"] == [1]


def test_accumulate_makes_content_a_list_of_all_or_the_last(serve: Callable[..., TestApp]) -> None:
    app = serve(all=all_numbers, last=last_numbers)
    assert [app.get("/all?key=K").json["content"] for _ in range(4)] == [[1], [1, 2], [1, 2, 3], None]
    assert [app.get("/last?key=K").json["content"] for _ in range(4)] == [[1], [1, 2], [2, 3], None]


# What may be decorated


def test_a_view_has_its_context_and_the_request_of_the_first_poll(serve: Callable[..., TestApp]) -> None:
    app = serve(words=words)
    assert app.get("/words?key=K&word=first").json["content"] == "first of DefaultRootFactory"
    assert app.get("/words?key=K&word=second").json["content"] == "/words"


def test_a_method_of_a_view_class(serve: Callable[..., TestApp]) -> None:
    app = serve(reports=(Reports, {"attr": "lines"}), context=(ContextReports, {"attr": "lines"}))
    assert app.get("/reports?key=K&word=a").json["content"] == "Reports a"
    assert app.get("/reports?key=K&word=b").json["content"] == "end"
    assert app.get("/context?key=K").json["content"] == "DefaultRootFactory"


def test_subclasses_do_not_share_the_sessions_of_an_inherited_method(serve: Callable[..., TestApp]) -> None:
    app = serve(one=(Reports, {"attr": "lines"}), other=(OtherReports, {"attr": "lines"}))
    assert app.get("/one?key=K&word=a").json["content"] == "Reports a"
    assert app.get("/other?key=K&word=b").json["content"] == "OtherReports b"


def test_a_bound_method(serve: Callable[..., TestApp]) -> None:
    assert serve(bound=Instance().lines).get("/bound?key=K").json["content"] == "bound to /bound"


def test_two_objects_do_not_share_the_sessions_of_their_method(serve: Callable[..., TestApp]) -> None:
    app = serve(one=Instance().lines, other=Instance().lines)
    assert [app.get(f"/{name}?key=K").json["content"] for name in ("one", "other")] == [
        "bound to /one",
        "bound to /other",
    ]
    assert [app.get(f"/{name}?key=K").json["count"] for name in ("one", "other")] == [1, 1]


def test_two_views_of_one_factory_do_not_share_sessions(serve: Callable[..., TestApp]) -> None:
    def made(word: str) -> Any:
        @json_yield
        def view(request: Request) -> Items:
            yield word

        return view

    app = serve(a=made("a"), b=made("b"))
    assert [app.get(f"/{name}?key=K").json["content"] for name in "ab"] == ["a", "b"]


def test_a_scanned_view(configure: Callable[..., Configurator]) -> None:
    config = configure(scanned=None)
    config.scan(__name__)
    assert TestApp(config.make_wsgi_app()).get("/scanned?key=K").json["content"] == "scanned"


def test_a_renderer_changes_nothing(serve: Callable[..., TestApp]) -> None:
    app = serve(numbers=(numbers, {"renderer": "string"}))
    assert app.get("/numbers?key=K").json["content"] == 1


def test_the_view_keeps_its_name_and_docstring() -> None:
    assert numbers.__name__ == "numbers"
    assert numbers.__doc__ == "Count to three."


def plain(request: Request) -> list[int]:
    return [1]


async def asynchronous(request: Request) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (plain, "its body must have a yield"),
        (asynchronous, "write it as a plain generator function"),
        (Reports, "decorate the method"),
        (numbers, "put json_yield below that one"),
        ("text", "'text'"),
    ],
)
def test_what_is_no_generator_function_is_refused_where_it_is_decorated(function: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy):
        json_yield(function)
    with pytest.raises(TypeError, match=remedy):
        json_yield(accumulate=True)(function)


@pytest.mark.parametrize("accumulate", [0, -1])
def test_an_accumulate_below_one_is_refused_where_it_decorates(accumulate: int) -> None:
    with pytest.raises(ValueError, match=f"accumulate={accumulate}: must be"):
        json_yield(accumulate=accumulate)


@pytest.mark.parametrize("accumulate", [2.5, "5", None])
def test_an_accumulate_that_is_no_number_of_items_is_refused_where_it_decorates(accumulate: Any) -> None:
    with pytest.raises(TypeError, match=f"accumulate={accumulate!r}: must be"):
        json_yield(accumulate=accumulate)


def test_without_the_add_on_the_error_says_what_to_include() -> None:
    config = Configurator()
    config.add_route("numbers", "/numbers")
    config.add_view(numbers, route_name="numbers")
    with pytest.raises(RuntimeError, match=r'config\.include\("pushdemo"\)'):
        TestApp(config.make_wsgi_app()).get("/numbers?key=K")


def test_a_view_class_that_keeps_no_request_is_told(serve: Callable[..., TestApp]) -> None:
    with pytest.raises(TypeError, match=r"as self\.request, which Forgetful does not set"):
        serve(forgetful=(Forgetful, {"attr": "lines"})).get("/forgetful?key=K")


# Bad input


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("", "key"),
        ("key=", "key"),
        ("key=" + "k" * 201, "key"),
        ("key=%ff", "key"),
        *(
            (f"key=K&after={text}", "after")
            for text in ["", "x", "-1", "1.5", "+1", "1_0", "%D9%A3", "%EF%BC%91", str(2**53), "9" * 30]
        ),
        *((f"key=K&max={text}", "max") for text in ["", "x", "-1", "0", "2.0", "1001", "9" * 5000]),
    ],
)
def test_bad_input_is_400_names_the_parameter_and_begins_nothing(
    app: TestApp, sessions: Sessions, query: str, parameter: str
) -> None:
    answer = app.get(f"/numbers?{query}", status=400).json
    assert answer["state"] == "error"
    assert answer["parameter"] == parameter
    assert parameter in answer["reason"]
    assert sessions.info()["open"] == 0


def test_after_beyond_the_count_is_400_and_says_the_count(app: TestApp) -> None:
    app.get("/numbers?key=K")
    answer = app.get("/numbers?key=K&after=2", status=400).json
    assert (answer["parameter"], answer["count"], answer["key"]) == ("after", 1, "K")


def test_after_may_be_any_whole_number_that_json_keeps_exact(app: TestApp) -> None:
    assert app.get(f"/numbers?key=K&after={2**53 - 1}", status=410).json["parameter"] == "after"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_another_method_is_405_and_begins_nothing(app: TestApp, sessions: Sessions, method: str) -> None:
    response = app.request("/numbers?key=K", method=method, status=405)
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS, DELETE, POST"
    assert "GET" in response.json["reason"]
    assert sessions.info()["open"] == 0


def test_head_costs_no_item_and_begins_nothing(app: TestApp, sessions: Sessions) -> None:
    response = app.head("/numbers?key=K")
    assert (response.content_type, response.body) == ("application/json", b"")
    assert sessions.info()["open"] == 0
    app.get("/numbers?key=K")
    app.head("/numbers?key=K")
    assert app.get("/numbers?key=K").json["content"] == 2


# Refusals and failures


def test_a_failing_generator_is_500_that_tells_nothing_of_the_inside(
    serve: Callable[..., TestApp], caplog: pytest.LogCaptureFixture
) -> None:
    app = serve(failing=failing)
    app.get("/failing?key=K")
    for _ in range(2):
        response = app.get("/failing?key=K&after=1", status=500)
        assert response.json == {
            "state": "error",
            "content": None,
            "count": 1,
            "key": "K",
            "reason": "the generator failed",
        }
    (record,) = caplog.records
    assert "test_json_yield.failing failed" in record.getMessage()
    assert "swordfish" in caplog.text


def test_what_json_cannot_carry_is_an_error_and_a_log_line_that_names_the_view(
    serve: Callable[..., TestApp], caplog: pytest.LogCaptureFixture
) -> None:
    answer = serve(unencodable=unencodable).get("/unencodable?key=K", status=500).json
    assert (answer["state"], answer["reason"]) == ("error", "the generator failed")
    assert "test_json_yield.unencodable yields or returns what JSON cannot carry" in caplog.text


def test_overlapping_calls_for_one_key_are_409_when_the_turn_does_not_come(serve: Callable[..., TestApp]) -> None:
    entered, go = threading.Event(), threading.Event()

    @json_yield
    def slow(request: Request) -> Items:
        entered.set()
        assert go.wait(BOUND)
        yield 1

    app, answers = serve(slow=slow), []
    first = threading.Thread(target=lambda: answers.append(app.get("/slow?key=K").json))
    first.start()
    assert entered.wait(BOUND)
    response = app.get("/slow?key=K", status=409)
    assert response.headers["Retry-After"] == "1"
    assert "another call" in response.json["reason"]
    go.set()
    first.join(BOUND)
    assert answers == [{"state": "ready", "content": 1, "count": 1, "key": "K"}]


def test_at_the_limit_503_says_when_to_come_back(app: TestApp) -> None:
    for number in range(20):
        app.get("/numbers", {"key": str(number)})
    response = app.get("/numbers?key=more", status=503)
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert "20 generator sessions are open" in response.json["reason"]


# Closing


@pytest.mark.parametrize(
    "close",
    [
        lambda app: app.delete("/numbers?key=K"),
        lambda app: app.post("/numbers?key=K&close=1"),
        lambda app: app.post("/numbers?key=K&close=1", "", {"Sec-Fetch-Site": "same-origin"}),
    ],
)
def test_delete_and_beacon_end_the_session(app: TestApp, close: Callable[[TestApp], Any]) -> None:
    app.get("/numbers?key=K")
    for _ in range(2):
        response = close(app)
        assert (response.status_code, response.body) == (204, b"")
        assert "Content-Type" not in response.headers
    app.get("/numbers?key=K&after=1", status=410)
    assert app.get("/numbers?key=K").json["content"] == 1


def test_a_beacon_from_another_site_is_refused(app: TestApp) -> None:
    app.get("/numbers?key=K")
    answer = app.post("/numbers?key=K&close=1", "", {"Sec-Fetch-Site": "cross-site"}, status=403).json
    assert "another site" in answer["reason"]
    assert app.get("/numbers?key=K").json["content"] == 2


def test_the_applications_csrf_policy_holds_for_closing_and_not_for_polling(
    configure: Callable[..., Configurator],
) -> None:
    config = configure(numbers=numbers)
    config.set_default_csrf_options(require_csrf=True, check_origin=False)
    config.set_session_factory(lambda request: TokenSession())
    app = TestApp(config.make_wsgi_app())
    assert app.get("/numbers?key=K").json["content"] == 1
    with pytest.raises(Exception, match="CSRF"):
        app.post("/numbers?key=K&close=1")
    assert app.get("/numbers?key=K").json["content"] == 2
    assert app.delete("/numbers?key=K", headers={"X-CSRF-Token": "token"}).status_code == 204


class TokenSession(dict[str, Any]):
    def get_csrf_token(self) -> str:
        return "token"


# Ownership


class HeaderPolicy:
    """A security policy that believes what the client says it is."""

    def identity(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    def authenticated_userid(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return ACLHelper().permits(context, [], permission)


def test_another_user_with_the_same_key_has_another_session(configure: Callable[..., Configurator]) -> None:
    config = configure(numbers=numbers)
    config.set_security_policy(HeaderPolicy())
    app = TestApp(config.make_wsgi_app())
    users: list[dict[str, str]] = [{"X-User": "ann"}, {"X-User": "ben"}, {}]
    for _ in range(2):
        counts = [app.get("/numbers?key=K", headers=headers).json["count"] for headers in users]
        assert len(set(counts)) == 1
    app.delete("/numbers?key=K", headers=users[0])
    assert [app.get("/numbers?key=K", headers=headers).json["count"] for headers in users] == [1, 3, 3]


# Pages of other origins

PAGES = "https://pages.example"


@pytest.fixture
def foreign(sessions: Sessions) -> TestApp:
    """An application that pages of another origin may read."""
    config = Configurator(settings={"pushdemo.cors_origins": f"http://other.example {PAGES}"})
    config.include("pushdemo")
    config.registry["pushdemo.generators"] = sessions
    for view in (numbers, failing):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)
    return TestApp(config.make_wsgi_app())


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/numbers?key=K", "GET", 200),
        ("/numbers?key=K", "HEAD", 200),
        ("/numbers?key=K", "DELETE", 204),
        ("/numbers?key=K&close=1", "POST", 204),
        ("/numbers?key=K&after=9", "GET", 410),
        ("/numbers", "GET", 400),
        ("/numbers?key=K", "PUT", 405),
        ("/numbers?key=K&transport=pigeon", "GET", 400),
        ("/numbers?key=K&transport=longpoll", "GET", 200),
        ("/numbers?key=K&transport=sse", "GET", 200),
        ("/numbers?key=S&transport=sse&after=9", "GET", 410),
    ],
)
def test_a_page_of_an_origin_that_may_reads_every_answer(foreign: TestApp, path: str, method: str, status: int) -> None:
    response = foreign.request(path, method=method, headers={"Origin": PAGES}, status=status)
    assert response.headers.getall("Access-Control-Allow-Origin") == [PAGES]
    assert response.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert "Origin" in response.headers["Vary"]
    for stranger in ({"Origin": "https://evil.example"}, {}):
        refused = 403 if method == "POST" and stranger else status  # a page that may not read must not close either
        response = foreign.request(path, method=method, headers=stranger, status=refused)
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Origin" in response.headers["Vary"]


def test_a_page_of_an_origin_that_may_reads_that_the_generator_has_failed(foreign: TestApp) -> None:
    foreign.get("/failing?key=K", headers={"Origin": PAGES})
    response = foreign.get("/failing?key=K", headers={"Origin": PAGES}, status=500)
    assert response.headers["Access-Control-Allow-Origin"] == PAGES
    assert response.json["reason"] == "the generator failed"


def test_a_preflight_is_answered_and_begins_nothing(foreign: TestApp, app: TestApp, sessions: Sessions) -> None:
    preflight = {"Origin": PAGES, "Access-Control-Request-Method": "DELETE"}
    for path in ("/numbers?key=K", "/numbers"):
        response = foreign.options(path, headers=preflight, status=204)
        assert response.headers["Access-Control-Allow-Origin"] == PAGES
        assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS, DELETE, POST"
        assert "Last-Event-ID" in response.headers["Access-Control-Allow-Headers"]
        assert int(response.headers["Access-Control-Max-Age"]) > 0
        assert response.body == b""
    response = app.options("/numbers?key=K", headers=preflight, status=204)
    assert not [name for name in response.headers if name.startswith("Access-Control")]
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS, DELETE, POST"
    assert sessions.info()["open"] == 0


@pytest.mark.parametrize(("origin", "status"), [(PAGES, 204), ("https://evil.example", 403)])
def test_a_beacon_from_an_origin_that_may_ends_the_session(foreign: TestApp, origin: str, status: int) -> None:
    foreign.get("/numbers?key=K")
    beacon = {"Sec-Fetch-Site": "cross-site", "Origin": origin}
    foreign.post("/numbers?key=K&close=1", "", beacon, status=status)


# On a real server


@pytest.fixture
def port(configure: Callable[..., Configurator]) -> Iterator[int]:
    with serving(configure(numbers=numbers).make_wsgi_app()) as server:
        yield port_of(server)


def test_http_1_0(port: int) -> None:
    with Client(port) as client:
        status, _, body = client.get("/numbers?key=K", version="1.0").response()
    assert status == 200
    assert json.loads(body)["content"] == 1


def test_head_and_delete_have_no_body_on_the_wire(port: int) -> None:
    for method, expected in [("HEAD", 200), ("DELETE", 204)]:
        with Client(port) as client:
            status, headers = client.get("/numbers?key=K", "Connection: close", method=method).head()
            assert status == expected
            assert "transfer-encoding" not in headers
            assert client.rest() == b""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Origin": "http://localhost"}, 204),
        ({"Origin": "http://LOCALHOST"}, 204),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "http://localhost:8080"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 204),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_page_of_another_site_closes_no_session(app: TestApp, headers: dict[str, str], status: int) -> None:
    app.get("/numbers?key=K")
    headers = {"Host": "localhost", **headers}
    app.post("/numbers?key=K&close=1", "", headers, status=status)
    assert app.get("/numbers?key=K&after=1", status="*").status_int == (410 if status == 204 else 200)


@pytest.mark.parametrize("query", ["", "key=K&after=x", "key=%ff", "key=K&after=9"])
def test_a_refusal_is_text_for_no_browser_to_guess_at(app: TestApp, query: str) -> None:
    response = app.get(f"/numbers?{query}", status="4*")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
