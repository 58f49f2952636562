"""Publishing from a request: after the commit, with names, renderers and adapters; and by a SQLAlchemy session.

The application has the cookiecutter's shape: SQLAlchemy, zope.sqlalchemy, pyramid_tm and pyramid_retry. The tests ask
clients what they were told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.renderers import JSON
from pyramid.request import Request
from pyramid.router import Router
from pyramid_retry import RetryableException
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session
from webtest import TestApp

import pushdemo
from pushdemo import memorize, topic
from tests.fixtureapps.shop import make_app
from tests.fixtureapps.shop.models import Item

View = Callable[[Request], Any]


class Shop:
    """The application with one more view, `POST /do`, which a test gives."""

    def __init__(self, folder: Path) -> None:
        self.view: View = lambda request: None
        self.attempts = 0
        self.app: Router = make_app(
            folder / "shop.sqlite", self.configure, toolbar=False, pushdemo__longpoll__timeout=0.05
        )
        self.web = TestApp(self.app)

    def configure(self, config: Configurator) -> None:
        config.add_topic("orders.{user}", content_type="application/json")
        config.add_topic("all", content_type="application/json")
        config.add_route("do", "/do")
        config.add_view(self.do, route_name="do", renderer="json", request_method="POST")
        config.add_route("listen", "/listen")
        config.add_view(lambda request: request.push("orders.{user}", user="ann"), route_name="listen")
        config.add_exception_view(self.failed, context=LookupError, renderer="json")
        config.add_route("order", "/orders/{id}")

    def failed(self, error: Exception, request: Request) -> str:
        request.response.status = 400
        request.publish("all", "from the exception view")
        return "failed"

    def do(self, request: Request) -> Any:
        self.attempts += 1
        return self.view(request)

    def post(self, view: View, **options: Any) -> Any:
        self.view = view
        return self.web.post("/do", **options)

    def told(self) -> list[Any]:
        """What a client is told of the topic of `ann`, all of it."""
        topics = self.app.registry["pushdemo.topics"]
        if not topics.find(topics.refer("orders.{user}", {"user": "ann"})):
            return []
        answer = self.web.get("/listen?transport=longpoll&last_event_id=earliest").json
        return [message["content"] for message in answer["messages"]]

    def names(self) -> set[str]:
        with self.app.registry["dbsession_factory"]() as session:
            return {item.name for item in session.query(Item)}

    @property
    def unsent(self) -> dict[tuple[str, str], int]:
        return self.app.registry["pushdemo.clients"].counters.unsent_messages()  # type: ignore[no-any-return]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.app.registry["pushdemo.topics"].close()


def publish(request: Request, value: Any, **options: Any) -> Any:
    return request.publish("orders.{user}", value, user="ann", **options)


# -- the transaction of pyramid_tm


def test_a_message_waits_for_the_commit_and_keeps_its_order(shop: Shop) -> None:
    before: list[Any] = []

    def view(request: Request) -> str:
        for number in range(3):
            assert publish(request, number) is None
        request.dbsession.add(Item(name="tea", price=1))
        before.extend(shop.told())
        return "done"

    assert shop.post(view).json == "done"
    assert before == []
    assert shop.told() == [0, 1, 2]
    assert "tea" in shop.names()
    assert shop.unsent == {}


def test_a_topic_ends_after_the_commit_and_after_its_last_message(shop: Shop) -> None:
    def last_word(request: Request) -> Any:
        request.publish("orders.{user}", "the last", user="ann")
        request.end_topic("orders.{user}", user="ann")
        return request.registry["pushdemo.topics"].find(topic("orders.{user}", user="ann")) is None

    def failing(request: Request) -> None:
        request.end_topic("orders.{user}", user="ann")
        raise LookupError

    shop.post(failing, status=400)
    assert shop.told() == []
    assert shop.post(last_word).json is True, "nothing has happened before the commit"
    assert shop.told() == ["the last"]
    assert shop.app.registry["pushdemo.topics"]["orders.~ann"].ended


def test_an_error_in_the_view_drops_what_it_has_published(shop: Shop) -> None:
    def view(request: Request) -> None:
        publish(request, "never")
        raise RuntimeError("after publishing")

    with pytest.raises(RuntimeError, match="after publishing"):
        shop.post(view)
    assert shop.told() == []
    assert shop.unsent == {("orders.{user}", "aborted"): 1}


def test_so_does_an_error_that_an_exception_view_answers(shop: Shop) -> None:
    def view(request: Request) -> None:
        publish(request, "never")
        raise LookupError("answered")

    shop.post(view, status=400)
    assert shop.told() == []
    assert shop.unsent == {("all", "aborted"): 1, ("orders.{user}", "aborted"): 1}


@pytest.mark.parametrize("end", [lambda tm: tm.abort(), lambda tm: tm.doom()])
def test_an_aborted_or_doomed_transaction_drops_its_messages(shop: Shop, end: Callable[[Any], None]) -> None:
    def view(request: Request) -> None:
        publish(request, "before")
        end(request.tm)
        if request.tm._txn is None:
            request.tm.begin()
            return
        assert publish(request, "behind") is None

    shop.post(view)
    assert shop.told() == []


def test_a_commit_that_fails_drops_its_messages(shop: Shop) -> None:
    def view(request: Request) -> None:
        publish(request, "never")
        request.dbsession.add(Item(name="bread", price=1))  # which there is: the constraint is met at the commit

    with pytest.raises(IntegrityError):
        shop.post(view)
    assert shop.told() == []
    assert shop.unsent == {("orders.{user}", "aborted"): 1}


def test_a_request_that_is_tried_three_times_publishes_once(shop: Shop) -> None:
    def view(request: Request) -> None:
        publish(request, shop.attempts)
        if shop.attempts < 3:
            raise type("Conflict", (RuntimeError, RetryableException), {})
        request.dbsession.add(Item(name="tea", price=1))

    shop.post(view)
    assert shop.told() == [3]


def test_a_rollback_to_a_savepoint_drops_what_came_behind_it(shop: Shop) -> None:
    def view(request: Request) -> None:
        publish(request, "before")
        savepoint = request.tm.savepoint()
        publish(request, "dropped")
        savepoint.rollback()
        publish(request, "after")

    shop.post(view)
    assert shop.told() == ["before", "after"]
    assert shop.unsent == {("orders.{user}", "aborted"): 1}


def test_a_rollback_to_a_savepoint_that_is_older_than_the_first_message_loses_none_that_follow(shop: Shop) -> None:
    def view(request: Request) -> None:
        savepoint = request.tm.savepoint()
        publish(request, "dropped")
        savepoint.rollback()
        publish(request, "first")
        again = request.tm.savepoint()
        publish(request, "dropped too")
        again.rollback()
        publish(request, "second")

    shop.post(view)
    assert shop.told() == ["first", "second"]


def test_a_value_is_checked_and_encoded_at_once(shop: Shop) -> None:
    def view(request: Request) -> str:
        value = {"items": ["a"]}
        publish(request, value)
        value["items"].append("b")
        for wrong, options in ((object(), {}), (float("nan"), {}), ("x", {"event": "a\nb"}), ("x", {"event": "reset"})):
            with pytest.raises((TypeError, ValueError)):
                publish(request, wrong, **options)
        with pytest.raises(KeyError):
            request.publish("unknown", 1)
        return "done"

    shop.post(view)
    assert shop.told() == [{"items": ["a"]}]


def test_now_does_not_wait_and_brings_the_message(shop: Shop) -> None:
    def view(request: Request) -> str:
        publish(request, "later")
        id: str = publish(request, "now", now=True).id
        assert shop.told() == ["now"]
        return id

    assert shop.post(view).json.endswith("-1")
    assert shop.told() == ["now", "later"]


def test_after_the_end_of_the_request_a_message_is_sent_at_once(shop: Shop) -> None:
    kept: list[Request] = []
    shop.post(lambda request: kept.append(request))
    assert publish(kept[0], "late").number == 1
    assert shop.told() == ["late"]


def test_a_thread_of_the_request_publishes_into_its_transaction(shop: Shop) -> None:
    def view(request: Request) -> None:
        thread = threading.Thread(target=publish, args=(request, "from a thread"))
        thread.start()
        thread.join()
        assert shop.told() == []

    shop.post(view)
    assert shop.told() == ["from a thread"]


def test_what_fails_after_the_commit_is_logged_and_counted_and_the_others_are_sent(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def view(request: Request) -> str:
        request.publish("all", "lost")
        publish(request, "sent")
        request.dbsession.add(Item(name="tea", price=1))
        shop.app.registry["pushdemo.topics"]["all"].end()  # before the commit: nothing can be published any more
        return "done"

    assert shop.post(view).json == "done"
    assert "tea" in shop.names()
    assert shop.told() == ["sent"]
    assert shop.unsent == {("all", "failed"): 1}
    assert "a message to all is lost after its commit" in caplog.text


def test_ten_thousand_messages_of_one_transaction(shop: Shop) -> None:
    def view(request: Request) -> None:
        for number in range(10_000):
            publish(request, number)

    shop.post(view)
    assert shop.told()[-1] == 9_999
    (figures,) = [each for each in shop.app.registry["pushdemo.topics"].figures() if each.topic == "orders.{user}"]
    assert figures.published == 10_000


@memorize(3600, name="tests.publish.price")
def price() -> int:
    return next(PRICES)


PRICES = iter(range(1_000))


def test_memorized_values_are_forgotten_after_the_commit_too(shop: Shop) -> None:
    found: list[int] = []

    def view(request: Request) -> str:
        found.append(price())
        request.memorized.invalidate(price)
        found.append(price())
        if "fail" in request.params:
            raise LookupError("on purpose")
        return "done"

    shop.post(view)
    first = found[0]
    assert found == [first, first]
    shop.post(lambda request: found.append(price()))
    assert found[-1] == first + 1
    shop.view = view
    shop.web.post("/do?fail=1", status=400)
    shop.post(lambda request: [found.append(price()), request.memorized.clear("tests.publish.price")][:0])
    assert found[-1] == first + 1, "a rollback forgets nothing"
    shop.post(lambda request: found.append(price()))
    assert found[-1] == first + 2
    shop.post(lambda request: request.memorized.clear("tests.publish.unknown"), status=400)


# -- without pyramid_tm


@pytest.fixture
def plain() -> Iterator[Router]:
    with Configurator() as config:
        config.include("pushdemo")
        config.add_topic("news", content_type="application/json")
        app = config.make_wsgi_app()
    yield app
    app.registry["pushdemo.topics"].close()


def request_of(app: Router) -> Request:
    from pushdemo.web.rendering import blank_request

    return blank_request(app.registry)


def test_without_a_transaction_a_message_is_sent_at_once(plain: Router) -> None:
    assert request_of(plain).publish("news", 1).number == 1


def test_a_transaction_manager_may_be_given(plain: Router) -> None:
    request, tm = request_of(plain), transaction.TransactionManager(explicit=True)
    news = plain.registry["pushdemo.topics"]["news"]
    with tm:
        assert request.publish("news", 1, tm=tm) is None
        assert news.number == 0
    assert news.number == 1
    tm.begin()
    request.publish("news", 2, tm=tm)
    tm.abort()
    assert news.number == 1


# -- by a session of SQLAlchemy


@pytest.fixture
def session(shop: Shop) -> Iterator[Session]:
    with shop.app.registry["dbsession_factory"]() as session:
        yield session


def told_by(shop: Shop, session: Session | scoped_session[Session], value: Any) -> None:
    pushdemo.publish_on_commit(session, shop.app.registry, "orders.{user}", value, user="ann")


def test_a_session_publishes_at_its_outermost_commit_alone(shop: Shop, session: Session) -> None:
    told_by(shop, session, 1)
    with session.begin_nested():
        told_by(shop, session, 2)
    assert shop.told() == []
    session.commit()
    assert shop.told() == [1, 2]
    session.add(Item(name="tea", price=1))
    session.commit()
    assert shop.told() == [1, 2], "once"
    told_by(shop, session, 3)
    session.commit()
    assert shop.told() == [1, 2, 3]


def test_a_session_s_rollbacks_drop_messages(shop: Shop, session: Session) -> None:
    told_by(shop, session, "kept")
    outer = session.begin_nested()
    told_by(shop, session, "dropped")
    inner = session.begin_nested()
    told_by(shop, session, "dropped")
    inner.commit()
    outer.rollback()
    told_by(shop, session, "kept too")
    session.commit()
    assert shop.told() == ["kept", "kept too"]
    told_by(shop, session, "dropped")
    session.rollback()
    session.commit()
    assert shop.told() == ["kept", "kept too"]
    assert shop.unsent == {("orders.{user}", "aborted"): 3}


@pytest.mark.parametrize("scoped", [False, True])
def test_a_session_that_is_closed_drops_messages(shop: Shop, scoped: bool) -> None:
    factory = shop.app.registry["dbsession_factory"]
    session = scoped_session(factory) if scoped else factory()
    told_by(shop, session, "dropped")
    session.close()
    told_by(shop, session, "kept")
    with session.begin_nested():
        told_by(shop, session, "kept too")
    nested = session.begin_nested()
    told_by(shop, session, "dropped")
    nested.rollback()
    session.commit()
    assert shop.told() == ["kept", "kept too"]
    session.begin_nested()
    told_by(shop, session, "dropped")
    session.close()
    session.commit()
    session.close()
    assert shop.told() == ["kept", "kept too"]
    assert shop.unsent == {("orders.{user}", "aborted"): 3}


def test_what_waits_for_a_scoped_session_is_dropped_with_it(shop: Shop) -> None:
    session = scoped_session(shop.app.registry["dbsession_factory"])
    told_by(shop, session, "dropped")
    session.remove()
    told_by(shop, session, "kept")
    session.commit()
    session.remove()
    assert shop.told() == ["kept"]
    assert shop.unsent == {("orders.{user}", "aborted"): 1}


# -- values, renderers, names


class Order:
    """A value with an opinion of its own."""

    def __json__(self, request: Request) -> dict[str, Any]:
        assert request.authenticated_userid is None
        assert not request.cookies
        return {"url": request.route_url("order", id=7), "user": request.params.get("user")}


@pytest.fixture
def rich() -> Iterator[TestApp]:
    with Configurator(
        settings={
            "pushdemo.base_url": "https://shop.example/app/",
            "pushdemo.longpoll.timeout": "0.05",
        }
    ) as config:
        config.include("pushdemo")
        config.include("pyramid_jinja2")
        renderer = JSON(indent=4)
        renderer.add_adapter(datetime, lambda value, request: value.isoformat())
        renderer.add_adapter(Decimal, lambda value, request: str(value))
        config.add_renderer("json", renderer)
        config.add_topic("values", content_type="application/json")
        config.add_topic("made", lambda registry: {"at": datetime(2009, 1, 1, tzinfo=UTC), "of": registry.package_name},
                         interval=1000, content_type="application/json")  # fmt: skip
        config.add_topic("orders", content_type="text/html", renderer="templates/order.jinja2")
        config.add_topic("any", content_type="text/html")
        config.add_topic("xml")
        config.add_route("order", "/orders/{id}")
        config.add_route("push", "/push/{topic}")
        config.add_view(lambda request: request.push(request.matchdict["topic"]), route_name="push")
        config.add_route("do", "/do")
        config.registry["test.view"] = None
        config.add_view(lambda request: request.registry["test.view"](request), route_name="do", renderer="string")
        app = config.make_wsgi_app()
    yield TestApp(app, extra_environ={"HTTP_COOKIE": "user=ann", "REMOTE_USER": "ann"})
    app.registry["pushdemo.topics"].close()


def do(app: TestApp, view: View) -> None:
    app.app.registry["test.view"] = view
    app.get("/do?user=ann")


def contents(app: TestApp, topic: str) -> list[Any]:
    answer = app.get(f"/push/{topic}?transport=longpoll&last_event_id=earliest").json
    return [message["content"] for message in answer["messages"]]


def test_json_is_the_applications_own_on_one_line_with_a_blank_request(rich: TestApp) -> None:
    value = {"at": datetime(2009, 1, 1, tzinfo=UTC), "price": Decimal("1.50"), "order": Order()}
    do(rich, lambda request: request.publish("values", value))
    assert contents(rich, "values") == [
        {
            "at": "2009-01-01T00:00:00+00:00",
            "price": "1.50",
            "order": {"url": "https://shop.example/app/orders/7", "user": None},
        }
    ]
    message, _ = rich.app.registry["pushdemo.topics"]["values"].following(0)
    assert b"\n" not in message.body
    with pytest.raises(ValueError, match="NaN"):
        do(rich, lambda request: request.publish("values", {"order": Order(), "x": float("nan")}))


def test_a_source_has_the_applications_json_and_the_registry(rich: TestApp) -> None:
    assert contents(rich, "made") == [{"at": "2009-01-01T00:00:00+00:00", "of": rich.app.registry.package_name}]


def test_a_topics_or_a_messages_renderer_makes_the_body(rich: TestApp) -> None:
    link = '<li id="o5"><a href="https://shop.example/app/orders/5">&lt;tea&gt;</a></li>'
    do(rich, lambda request: request.publish("orders", {"id": 5, "name": "<tea>"}))
    do(rich, lambda request: request.publish("any", {"id": 5, "name": "<tea>"}, renderer="templates/order.jinja2"))
    do(rich, lambda request: request.publish("xml", {"id": 5, "name": "<tea>"}, renderer="templates/order.jinja2"))
    assert contents(rich, "orders") == contents(rich, "any") == contents(rich, "xml") == [link]


@pytest.mark.parametrize("topic", ["xml", "any"])
@pytest.mark.parametrize("value", [{"a": 1}, [1]])
def test_a_dict_or_a_list_where_it_is_no_body_names_the_type_that_would_do(
    rich: TestApp, topic: str, value: Any
) -> None:
    with pytest.raises(TypeError, match='content_type="application/json"'):
        do(rich, lambda request: request.publish(topic, value))


@pytest.mark.parametrize(
    ("transport", "said"),
    [
        ("sse", "event: price\ndata: 1\n\n"),
        ("jsonlines", '"content": 1, "event": "price"}\n'),
        ("longpoll", '"content": 1, "event": "price"}'),
        ("multipart", "X-Event: price\r\n\r\n1\r\n"),
    ],
)
def test_an_events_name_travels_by_every_transport(rich: TestApp, transport: str, said: str) -> None:
    do(rich, lambda request: request.publish("values", 1, event="price"))
    do(rich, lambda request: request.publish("values", 2))
    rich.app.registry["pushdemo.topics"]["values"].end()
    body = rich.get(f"/push/values?transport={transport}&last_event_id=earliest").text
    assert said in body
    assert body.count("price") == 1


@pytest.mark.parametrize("event", ["a\nb", "a\r", "\0", "open", "message", "error", "begin", "reset", "failing", "end"])
def test_a_name_that_no_event_can_have_is_refused(rich: TestApp, event: str) -> None:
    with pytest.raises(ValueError, match="an event cannot be named"):
        do(rich, lambda request: request.publish("values", 1, event=event))
