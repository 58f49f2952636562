"""The steps of generators in an application of the cookiecutter's shape: transactions, sessions, errors, by polls and
by streams.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sseclient
import transaction
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_request
from pyramid.tweens import EXCVIEW
from pyramid_retry import RetryableException
from webtest import TestApp

from pushdemo import json_yield
from tests.fixtureapps.shop import make_app
from tests.fixtureapps.shop.models import Item
from tests.support import Client, port_of, serving

Views = dict[str, Callable[..., Any]]


class Shop:
    """The application with generator views, each at `/steps/{name}`, and a way to ask for them."""

    def __init__(self, database: Path, views: Views, configure: Any = None, **settings: Any) -> None:
        def add(config: Configurator) -> None:
            for name, view in views.items():
                config.add_route(f"steps.{name}", f"/steps/{name}")
                config.add_view(json_yield(view), route_name=f"steps.{name}")
            if configure:
                configure(config)

        self.wsgi = make_app(database, add, **settings)
        self.app = TestApp(self.wsgi)
        self.sessions = self.wsgi.registry["pushdemo.generators"]

    def poll(self, name: str, key: str = "K", after: int | None = None, **more: Any) -> tuple[int, Any]:
        """Status and answer of a poll."""
        query = {"key": key} | ({} if after is None else {"after": after}) | more
        response = self.app.get(f"/steps/{name}", query, status="*")
        return response.status_int, response.json

    def stream(self, name: str, key: str = "S") -> list[Any]:
        """The events of a stream up to its end."""
        response = Request.blank(f"/steps/{name}?key={key}&transport=sse").get_response(self.wsgi)
        assert response.status_int == 200
        return list(sseclient.SSEClient(iter([b"".join(response.app_iter)])).events())

    def walk(self, how: str, name: str, key: str = "K") -> list[Any]:
        """All contents of a generator, by polls or by a stream."""
        if how == "stream":
            return [json.loads(event.data) for event in self.stream(name, key) if event.event == "message"]
        contents: list[Any] = []
        while (answer := self.poll(name, key, after=len(contents))[1])["state"] == "ready":
            contents.append(answer["content"])
        return contents

    def price(self, item: str = "bread") -> int:
        """The price that the database has, seen by a request of another client."""
        price: int = self.app.get(f"/items/{item}").json["price"]
        return price


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def make(views: Views, configure: Any = None, **settings: Any) -> Shop:
        made.append(Shop(tmp_path / f"{len(made)}.sqlite", views, configure, toolbar=False, **settings))
        return made[-1]

    yield make
    for each in made:
        assert each.sessions.close(20) == 0


@pytest.fixture(params=["polls", "stream"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def raise_price(request: Any, item: str = "bread") -> int:
    found = request.dbsession.query(Item).filter_by(name=item).one()
    found.price += 1
    request.dbsession.flush()
    price: int = found.price
    return price


# What a generator raises


def fails_first(request: Request) -> Iterator[int]:
    raise_price(request)
    yield from ()
    raise ValueError("the other half cannot be done")


@pytest.mark.parametrize("settings", [{}, {"tm__commit_veto": "pyramid_tm.default_commit_veto"}])
def test_a_first_step_that_fails_is_rolled_back_and_answered_as_json(
    shop: Callable[..., Shop], settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    site = shop({"fails": fails_first}, **settings)
    for _ in range(2):
        assert site.poll("fails", after=0) == (
            500,
            {"state": "error", "content": None, "count": 0, "key": "K", "reason": "the generator failed"},
        )
    assert site.price() == 3
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "fails_first failed" in record.getMessage()
    assert "Key 'K', http://localhost/steps/fails?key=K&after=0" in record.getMessage()


def test_a_first_item_that_is_no_json_is_rolled_back_with_its_step(shop: Callable[..., Shop]) -> None:
    def unencodable(request: Request) -> Iterator[Any]:
        raise_price(request)
        yield {"prices": {1, 2}}

    site = shop({"unencodable": unencodable})
    assert site.poll("unencodable")[0] == 500
    assert site.price() == 3


def test_the_toolbar_lets_the_answer_through(tmp_path: Path) -> None:
    site = Shop(tmp_path / "shop.sqlite", {"fails": fails_first}, toolbar=True)
    site.app.extra_environ = {"REMOTE_ADDR": "127.0.0.1"}
    assert site.poll("fails")[1]["reason"] == "the generator failed"
    assert site.price() == 3


def test_tweens_see_the_exception_of_any_step(shop: Callable[..., Shop]) -> None:
    seen: list[str] = []

    def later(request: Request) -> Iterator[int]:
        yield 1
        raise KeyError("later")

    def configure(config: Configurator) -> None:
        config.add_tween("tests.web.test_steps.noting", over=EXCVIEW)
        config.registry["test.seen"] = seen

    site = shop({"first": fails_first, "later": later}, configure)
    site.poll("first")
    assert site.poll("later", after=0)[0] == 200
    assert seen == ["ValueError: the other half cannot be done"]
    for _ in range(2):
        status, answer = site.poll("later", after=1)
        assert (status, answer["count"], answer["state"]) == (500, 1, "error")
    assert seen[1:] == ["KeyError: 'later'"] * 2
    assert site.poll("later", after=0)[1]["content"] == 1


def noting(handler: Any, registry: Any) -> Any:
    """A tween as exclog's."""

    def tween(request: Request) -> Response:
        response = handler(request)
        if error := getattr(request, "exception", None):
            registry["test.seen"].append(f"{type(error).__name__}: {error}")
        return response

    return tween


def test_a_more_specific_exception_view_answers(shop: Callable[..., Shop]) -> None:
    def refuse(error: ValueError, request: Request) -> Response:
        return Response(f"refused: {error}", status=422)

    def late(request: Request) -> Iterator[int]:
        yield 1
        raise ValueError("late")

    def missing(request: Request) -> Iterator[int]:
        yield 1
        raise HTTPNotFound("no such order", headers={"X-Order": "7"})

    def configure(config: Configurator) -> None:
        config.add_exception_view(refuse, context=ValueError)

    site = shop({"late": late, "missing": missing}, configure)
    for name in ("late", "missing"):
        assert site.poll(name, after=0)[0] == 200
    for _ in range(2):
        response = site.app.get("/steps/late?key=K&after=1", status=422)
        assert response.text == "refused: late"
        response = site.app.get("/steps/missing?key=K&after=1", status=404)
        assert response.headers.getall("X-Order") == ["7"]
        assert "no such order" in response.text


def test_an_exception_view_for_everything_else_is_not_shadowed(shop: Callable[..., Shop]) -> None:
    def apology(error: Exception, request: Request) -> Response:
        return Response("we are sorry", status=500)

    def breaks(request: Request) -> Response:
        raise ValueError("plain")

    def configure(config: Configurator) -> None:
        config.add_exception_view(apology)
        config.add_route("breaks", "/breaks")
        config.add_view(breaks, route_name="breaks")

    site = shop({"fails": fails_first}, configure)
    assert site.app.get("/breaks", status=500).text == "we are sorry"
    assert site.poll("fails")[1]["state"] == "error"


def test_a_first_step_that_is_tried_again_has_a_new_generator(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []

    def retried(request: Request) -> Iterator[int]:
        begun.append(1)
        price = raise_price(request)
        if len(begun) < 3:
            raise RetryableException("a conflict")
        yield price
        yield len(begun)

    site = shop({"retried": retried})
    assert site.poll("retried")[1]["content"] == 4
    assert site.price() == 4
    assert site.poll("retried")[1] == {"state": "ready", "content": 3, "count": 2, "key": "K"}
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("after", [None, 1])
def test_a_later_step_is_not_tried_again_and_its_error_is_logged_once(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture, after: int | None
) -> None:
    begun: list[int] = []

    def later(request: Request) -> Iterator[int]:
        begun.append(1)
        yield 1
        raise RetryableException("a conflict")

    site = shop({"later": later})
    assert site.poll("later", after=after and 0)[0] == 200
    for _ in range(2):
        status, answer = site.poll("later", after=after)
        assert (status, answer["state"], answer["count"]) == (500, "error", 1)
    assert len(begun) == 1
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "later failed" in record.getMessage()


class FailsToCommit:
    """A data manager that has had its vote as often as the test wants."""

    def __init__(self, manager: Any, error: Exception) -> None:
        self.transaction_manager = manager
        self.error = error
        manager.get().join(self)

    def tpc_vote(self, transaction: Any) -> None:
        raise self.error

    def sortKey(self) -> str:
        return "~"

    def tpc_begin(self, transaction: Any) -> None: ...
    def commit(self, transaction: Any) -> None: ...
    def tpc_finish(self, transaction: Any) -> None: ...
    def tpc_abort(self, transaction: Any) -> None: ...
    def abort(self, transaction: Any) -> None: ...


def conflicting(begun: list[int], times: int, error: Exception) -> Callable[..., Any]:
    def view(request: Request) -> Iterator[int]:
        begun.append(1)
        price = raise_price(request)
        if len(begun) <= times:
            FailsToCommit(request.tm, error)
        yield price
        yield -1

    return view


@pytest.mark.parametrize("after", [None, 0])
def test_a_commit_that_is_tried_again_gives_the_first_item_of_a_new_generator(
    shop: Callable[..., Shop], after: int | None
) -> None:
    begun: list[int] = []
    site = shop({"conflict": conflicting(begun, 2, transaction.interfaces.TransientError("busy"))})
    assert site.poll("conflict", after=after) == (200, {"state": "ready", "content": 4, "count": 1, "key": "K"})
    assert (len(begun), site.price()) == (3, 4)
    assert site.poll("conflict", after=None if after is None else 1)[1]["content"] == -1


def test_a_first_item_whose_commit_fails_is_not_given(shop: Callable[..., Shop]) -> None:
    begun: list[int] = []
    site = shop({"broken": conflicting(begun, 1, ValueError("a constraint"))})
    status, answer = site.poll("broken", after=0)
    assert (status, answer["state"], answer["count"]) == (500, "error", 0)
    assert site.price() == 3
    assert site.poll("broken", after=1)[0] == 410
    assert site.poll("broken", after=0)[1]["content"] == 4
    assert site.price() == 4


def test_a_first_step_in_a_transaction_is_answered_alone(shop: Callable[..., Shop]) -> None:
    """Or a second one that fails would roll back a first item that is given."""

    def two(request: Request) -> Iterator[int]:
        yield raise_price(request)
        raise_price(request)
        yield 2

    site = shop({"two": two})
    assert site.poll("two", after=0, max=5)[1]["content"] == [4]
    assert site.price() == 4
    assert site.poll("two", after=1, max=5)[0] == 500, "the session of the first request is over"
    assert site.price() == 4


def test_a_poll_that_is_tried_again_gives_its_item_again(shop: Callable[..., Shop]) -> None:
    tries: list[int] = []

    def counting(request: Request) -> Iterator[int]:
        yield from range(1, 10)

    def configure(config: Configurator) -> None:
        config.add_tween("tests.web.test_steps.conflicting_tween", under="pyramid_tm.tm_tween_factory")
        config.registry["test.tries"] = tries

    site = shop({"counting": counting}, configure)
    assert [site.poll("counting")[1]["content"] for _ in range(3)] == [1, 2, 3]
    assert len(tries) == 6
    assert [site.poll("counting", max=2)[1]["content"] for _ in range(2)] == [[4, 5], [6, 7]]


def test_only_a_failure_of_the_last_attempt_is_counted(shop: Callable[..., Shop]) -> None:
    tries: list[int] = []

    def failing(request: Request) -> Iterator[int]:
        tries.append(1)
        if len(tries) % 3:
            raise RetryableException("a conflict")
        yield 1

    site = shop({"failing": failing})
    assert site.poll("failing")[0] == 200
    assert len(tries) == 3
    assert site.wsgi.registry["pushdemo.clients"].counters.refusals() == {}


def conflicting_tween(handler: Any, registry: Any) -> Any:
    """Lets each request's first attempt fail after its view."""

    def tween(request: Request) -> Response:
        response = handler(request)
        registry["test.tries"].append(1)
        if request.environ["retry.attempt"] == 0 and request.path.startswith("/steps"):
            raise RetryableException("once")
        return response

    return tween


# Steps with a transaction, a session and a request of their own


def raising_prices(request: Request) -> Iterator[int]:
    for _ in range(3):
        with request.step() as step:
            price = raise_price(step)
        yield price


def test_each_step_has_a_transaction_and_a_session_of_its_own(shop: Callable[..., Shop], how: str) -> None:
    site = shop({"raising": raising_prices})
    assert site.walk(how, "raising") == [4, 5, 6]
    assert site.price() == 6


def test_a_step_is_committed_before_its_item_is_given(shop: Callable[..., Shop]) -> None:
    site = shop({"raising": raising_prices})
    for after, price in enumerate((4, 5, 6)):
        assert site.poll("raising", after=after)[1]["content"] == price
        assert site.price() == price
    response = Request.blank("/steps/raising?key=S&transport=sse").get_response(site.wsgi)
    chunks = iter(response.app_iter)
    next(chunks)
    assert b"data: 7\n" in next(chunks)
    assert site.price() == 7
    response.app_iter.close()


def test_a_step_that_fails_is_rolled_back_and_those_before_stay(shop: Callable[..., Shop], how: str) -> None:
    def second_fails(request: Request) -> Iterator[int]:
        for number in range(3):
            with request.step() as step:
                price = raise_price(step)
                if number == 1:
                    raise ValueError("the other half cannot be done")
            yield price

    site = shop({"second": second_fails})
    assert site.walk(how, "second") == [4]
    assert site.price() == 4


def test_a_generator_may_go_on_after_a_step_that_is_rolled_back_or_doomed(shop: Callable[..., Shop], how: str) -> None:
    def stubborn(request: Request) -> Iterator[str]:
        try:
            with request.step() as step:
                raise_price(step)
                raise ValueError("not this one")
        except ValueError:
            yield "rolled back"
        with request.step() as step:
            raise_price(step)
            step.tm.doom()
        yield "doomed"
        with request.step() as step:
            FailsToCommit(step.tm, ValueError("at commit"))
            raise_price(step)
        yield "not reached"

    site = shop({"stubborn": stubborn})
    assert site.walk(how, "stubborn") == ["rolled back", "doomed"]
    assert site.price() == 3


def test_a_step_is_a_request_as_the_generators_and_the_current_one(shop: Callable[..., Shop], how: str) -> None:
    def looking(request: Request) -> Iterator[Any]:
        for _ in range(2):
            with request.step() as step:
                yield_me = [
                    step is not request,
                    get_current_request() is step,
                    step.registry is request.registry,
                    step.matched_route.name,
                    step.path_qs == request.path_qs,
                    step.GET["key"] == request.GET["key"],
                    step.made,
                    step.context is request.context,
                    step.tm is not request.tm,
                    step.body == b"",
                ]
            yield [*yield_me, get_current_request() is request]

    def configure(config: Configurator) -> None:
        config.add_request_method(lambda request: "made", "made", reify=True)

    site = shop({"looking": looking}, configure)
    seen = [True, True, True, "steps.looking", True, True, "made", True, True, True, True]
    assert site.walk(how, "looking") == [seen, seen]


def test_the_generators_request_is_the_current_one_in_every_step_and_at_its_end(
    shop: Callable[..., Shop], how: str
) -> None:
    closed: list[bool] = []

    def looking(request: Request) -> Iterator[bool]:
        try:
            for _ in range(3):
                yield get_current_request() is request
        finally:
            closed.append(get_current_request() is request)

    site = shop({"looking": looking})
    assert site.walk(how, "looking") == [True] * 3
    site.poll("looking", "other", after=0)
    assert site.sessions.close(20) == 0
    assert closed == [True, True]
    assert get_current_request() is None


def test_a_yield_within_a_step_is_refused_and_rolled_back(
    shop: Callable[..., Shop], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def careless(request: Request) -> Iterator[int]:
        with request.step() as step:
            yield raise_price(step)

    site = shop({"careless": careless})
    assert site.walk(how, "careless") == []
    assert "careless yields within `with request.step()`" in caplog.text
    assert site.price() == 3
    assert get_current_request() is None


def test_without_a_transaction_manager_a_step_is_a_request_alone(tmp_path: Path) -> None:
    def looking(request: Request) -> Iterator[str]:
        for _ in range(2):
            with request.step() as step:
                path = step.path
            yield path

    with Configurator() as config:
        config.include("pushdemo")
        config.add_route("looking", "/looking")
        config.add_view(json_yield(looking), route_name="looking")
        app = TestApp(config.make_wsgi_app())
    assert [app.get("/looking?key=K").json["content"] for _ in range(3)] == ["/looking", "/looking", None]


def test_one_transaction_manager_for_all_is_refused_with_a_remedy(caplog: pytest.LogCaptureFixture) -> None:
    def stepping(request: Request) -> Iterator[int]:
        with request.step():
            pass
        yield 1

    with Configurator() as config:
        config.include("pyramid_tm")
        config.include("pushdemo")
        config.add_route("stepping", "/stepping")
        config.add_view(json_yield(stepping), route_name="stepping")
        app = TestApp(config.make_wsgi_app())
    app.get("/stepping?key=K", status=500)
    assert "tm.manager_hook = pyramid_tm.explicit_manager" in caplog.text


def test_a_steps_finished_callbacks_run(shop: Callable[..., Shop], how: str) -> None:
    finished: list[int] = []

    def noting_the_end(request: Request) -> Iterator[int]:
        for number in range(2):
            with request.step() as step:
                step.add_finished_callback(lambda _, number=number: finished.append(number))
            yield len(finished)

    assert shop({"noting": noting_the_end}).walk(how, "noting") == [1, 2]


@pytest.mark.parametrize("by_step", [True, False])
def test_what_a_step_publishes_is_sent_when_the_step_is_committed(
    shop: Callable[..., Shop], how: str, by_step: bool
) -> None:
    def telling(request: Request) -> Iterator[int]:
        for number in range(3):
            try:
                with request.step() as step:
                    price = raise_price(step)
                    (step if by_step else request).publish("prices", {"price": price})
                    if number == 1:
                        raise ValueError("rolled back")
            except ValueError:
                continue
            yield published(request)

    def published(request: Request) -> Any:
        return request.registry["pushdemo.topics"]["prices"].head

    def configure(config: Configurator) -> None:
        config.add_topic("prices", content_type="application/json")

    site = shop({"telling": telling}, configure)
    assert site.walk(how, "telling") == [1, 2]
    assert site.price() == 5


def test_steps_of_a_parked_stream_are_committed_in_whatever_thread(shop: Callable[..., Shop]) -> None:
    threads: set[str] = set()

    def raising(request: Request) -> Iterator[list[Any]]:
        for _ in range(5):
            with request.step() as step:
                price = raise_price(step)
            threads.add(threading.current_thread().name)
            yield [price, get_current_request() is request]

    site = shop({"raising": raising})
    with serving(site.wsgi, threads=2) as server, Client(port_of(server)) as client:
        client.get("/steps/raising?key=S", "Accept: text/event-stream").head()
        for price in range(4, 9):
            client.until(f"data: [{price}, true]\n".encode())
            with Client(port_of(server)) as other:
                other.get("/items/bread")
                assert json.loads(other.response()[2])["price"] >= price
        client.until(b"event: end\n")
    assert all(name.startswith("waitress") for name in threads)


# Changes that are lost


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda request: request.session.__setitem__("step", request.session.get("step", 0) + 1), "request.session"),
        (lambda request: request.session.flash("done"), "request.session"),
        (lambda request: request.response.set_cookie("step", "1"), "request.response"),
        (lambda request: request.response.headers.__setitem__("X-Step", "1"), "request.response"),
        (lambda request: setattr(request.response, "status_int", 202), "request.response"),
        (lambda request: request.add_finished_callback(print), "request.add_finished_callback"),
    ],
)
def test_a_change_after_the_first_step_is_warned_of_once_with_the_views_name(
    shop: Callable[..., Shop], how: str, caplog: pytest.LogCaptureFixture, change: Any, what: str
) -> None:
    def changing(request: Request) -> Iterator[int]:
        yield 0
        for number in range(3):
            change(request)
            yield number

    site = shop({"changing": changing})
    for key in "AB":
        assert len(site.walk(how, "changing", key)) == 4
    (warning,) = warnings(caplog)
    assert ".changing " in warning
    assert f" {what} " in warning


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda step: step.session.flash("done"), "changes step.session"),
        (lambda step: step.response.set_cookie("step", "1"), "uses step.response"),
        (lambda step: step.session.get("user"), None),
    ],
)
def test_a_change_of_a_steps_own_session_or_response_is_warned_of_too(
    shop: Callable[..., Shop], how: str, caplog: pytest.LogCaptureFixture, change: Any, what: str | None
) -> None:
    def changing(request: Request) -> Iterator[int]:
        for number in range(3):
            with request.step() as step:
                change(step)
            yield number

    site = shop({"changing": changing})
    site.app.get("/login?user=ann")
    site.walk(how, "changing")
    assert len(warnings(caplog)) == (what is not None)
    assert not what or what in warnings(caplog)[0]


def test_a_nested_change_of_a_session_that_the_first_step_has_changed_is_warned_of(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    def changing(request: Request) -> Iterator[int]:
        request.session["basket"] = []
        yield 0
        request.session["basket"].append("bread")
        yield 1

    site = shop({"changing": changing})
    assert site.poll("changing")[1]["content"] == 0
    assert warnings(caplog) == []
    site.poll("changing")
    assert len(warnings(caplog)) == 1


def test_what_the_first_step_changes_is_kept_and_a_look_is_no_change(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    def looking(request: Request) -> Iterator[Any]:
        request.session["user"] = "ann"
        request.response.set_cookie("first", "1")
        yield 0
        yield request.session.get("user")
        yield request.response.status

    site = shop({"looking": looking})
    assert site.walk("polls", "looking") == [0, "ann", "200 OK"]
    assert "first" in site.app.cookies
    assert site.app.get("/whoami").json == {"user": "ann"}
    assert warnings(caplog) == []


def test_a_session_that_is_only_read_in_a_later_step_is_no_change(
    shop: Callable[..., Shop], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reading(request: Request) -> Iterator[Any]:
        yield 0
        yield request.session.get("user")

    site = shop({"reading": reading})
    site.app.get("/login?user=ann")
    site.walk(how, "reading")
    assert warnings(caplog) == []
