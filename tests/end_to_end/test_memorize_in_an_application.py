"""`memorize` in an application of the cookiecutter's shape: by WebTest, by a real server, by two nodes at a Redis."""

from __future__ import annotations

import enum
import http.cookiejar
import json
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router
from sqlalchemy import select
from webtest import TestApp

from pushdemo import memorize
from pushdemo.cache import functions
from tests.cache.support import Gate
from tests.fixtureapps.shop import make_app
from tests.fixtureapps.shop.models import Item
from tests.redis.support import RedisServer, redis_server
from tests.support import PATIENCE, ROOT, port_of, serving, wait_until

calls: list[Currency] = []  # of the prices
gate = Gate()


class Currency(enum.Enum):
    EUR = "eur"


@memorize(600)
def down() -> None:
    """A service that does not answer."""
    gate.stop()
    raise HTTPServiceUnavailable("the stock service is down")


@memorize(600)
def page() -> Response:
    return Response("made for one visitor")


@memorize(600, ignore=("request",))
def prices(request: Request, currency: Currency) -> dict[str, int]:
    """The prices in the database."""
    calls.append(currency)
    return {item.name: item.price for item in request.dbsession.scalars(select(Item))}


@memorize(600)
def cursor_of(request: Request) -> Any:
    return request.dbsession.scalars(select(Item))


def show(request: Request) -> dict[str, Any]:
    """`/prices`: with a session of the visitor."""
    request.session["seen"] = True
    return {"prices": prices(request, Currency.EUR)}


def unavailable(request: Request) -> None:
    request.session["user"] = request.params["user"]
    down()


def change(request: Request) -> dict[str, Any]:
    """`POST /change/{how}?price=`: a new price, and the old one is forgotten as `how` says."""
    item = request.dbsession.scalars(select(Item).where(Item.name == "jam")).one()
    item.price = int(request.params["price"])

    def forget(*_args: Any) -> None:
        prices.invalidate(currency=Currency.EUR)

    how: dict[str, Callable[[], object]] = {
        "view": forget,
        "response callback": lambda: request.add_response_callback(forget),
        "finished callback": lambda: request.add_finished_callback(forget),
        "after commit": lambda: request.tm.get().addAfterCommitHook(forget),
        "outer tween": lambda: request.environ.update({"forget": forget}),
        "thread": lambda: request.tm.get().addAfterCommitHook(lambda _status: in_thread(forget)),
    }
    how[request.matchdict["how"]]()
    return {}


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE)


def outer(handler: Callable[[Request], Response], _registry: Any) -> Callable[[Request], Response]:
    def tween(request: Request) -> Response:
        response = handler(request)
        request.environ.get("forget", lambda: None)()
        return response

    return tween


VIEWS: dict[str, Callable[[Request], Any]] = {
    "/prices": show,
    "/unavailable": unavailable,
    "/page": lambda _request: page(),
    "/cursor": lambda request: {"names": [item.name for item in cursor_of(request)]},
    "/change/{how}": change,
}


def configure(config: Configurator) -> None:
    config.add_tween("tests.end_to_end.test_memorize_in_an_application.outer")
    for number, (pattern, view) in enumerate(VIEWS.items()):
        config.add_route(f"of memorize {number}", pattern)
        config.add_view(view, route_name=f"of memorize {number}", renderer="json")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global gate
    calls.clear()
    gate = Gate()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Router]:
    """Makes nodes of one application, on one database."""
    return lambda **settings: make_app(tmp_path / "shop.sqlite", configure, **settings)


HOW = ["view", "response callback", "finished callback", "after commit", "outer tween", "thread"]


@pytest.fixture
def _alone() -> Iterator[None]:
    """Applications of other tests, which fixtures may keep, are not among those of the process meanwhile."""
    others = [caches for reference in functions.outside._applications.values() if (caches := reference()) is not None]
    for caches in others:
        functions.outside.discard(caches)
    yield
    for caches in others:
        functions.outside.add(caches)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("how", HOW)
def test_wherever_a_value_is_forgotten_the_next_request_has_the_new_one(make: Callable[..., Router], how: str) -> None:
    app = TestApp(make())
    assert app.get("/prices").json["prices"]["jam"] == 4
    app.post(f"/change/{how}?price=9")
    # What is forgotten before the commit is computed from what the database still has: here nobody asks in between.
    assert app.get("/prices").json["prices"]["jam"] == 9
    assert app.get("/prices").json["prices"]["jam"] == 9
    assert len(calls) == 2


@pytest.mark.parametrize("how", [how for how in HOW if how not in ("thread", "after commit")])
def test_two_applications_in_a_process_forget_their_own(make: Callable[..., Router], how: str) -> None:
    one, two = TestApp(make()), TestApp(make())
    for app in (one, two):
        app.get("/prices")
    one.post(f"/change/{how}?price=9")
    assert [app.get("/prices").json["prices"]["jam"] for app in (one, two)] == [9, 4]


def test_a_request_and_its_database_session_are_no_part_of_the_key(make: Callable[..., Router]) -> None:
    app = TestApp(make(toolbar=True), extra_environ={"REMOTE_ADDR": "127.0.0.1"})
    assert [app.get("/prices").json for _ in range(3)] == [{"prices": {"bread": 3, "butter": 5, "jam": 4}}] * 3
    assert len(calls) == 1


@pytest.mark.parametrize(("path", "message"), [("/page", "is a response"), ("/cursor", "serves one caller")])
def test_what_serves_one_caller_is_an_error_each_time(make: Callable[..., Router], path: str, message: str) -> None:
    app = TestApp(make(toolbar=False))
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            app.get(path)


def browser() -> tuple[urllib.request.OpenerDirector, http.cookiejar.CookieJar]:
    jar = http.cookiejar.CookieJar()
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)), jar


@pytest.mark.parametrize("toolbar", [False, True])
def test_visitors_who_wait_for_one_error_have_their_own_cookies_only(
    make: Callable[..., Router], toolbar: bool
) -> None:
    users = ["alice", "bob", "carol"]

    def ask(user: str) -> tuple[int, list[str], Any]:
        opener, _ = browser()
        try:
            opener.open(f"{url}/unavailable?user={user}", timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            with error, opener.open(f"{url}/whoami", timeout=PATIENCE) as response:
                return error.code, error.headers.get_all("Set-Cookie"), json.load(response)["user"]
        raise AssertionError("no error")

    app = make(toolbar=toolbar)
    with serving(app, threads=6) as server, ThreadPoolExecutor(3) as pool:
        url = f"http://127.0.0.1:{port_of(server)}"
        answers = [pool.submit(ask, user) for user in users]
        info = app.registry["pushdemo.caches"].info
        wait_until(lambda: sum(each.waits for each in info().values()) == 2, what="two who wait")
        gate.open()
        for user, answer in zip(users, answers, strict=True):
            code, cookies, who = answer.result(PATIENCE)
            assert (code, who) == (503, user)
            assert len([cookie for cookie in cookies if cookie.startswith("session=")]) == 1


# Two nodes at a Redis


@pytest.fixture
def nodes(make: Callable[..., Router], redis: RedisServer) -> list[TestApp]:
    redis.client.flushall()
    return [TestApp(make(pushdemo__redis_url=redis.url)) for _ in range(2)]


@pytest.mark.parametrize("how", ["view", "response callback", "finished callback", "outer tween"])
def test_two_nodes_compute_once_and_forget_together(nodes: list[TestApp], how: str) -> None:
    here, there = nodes
    assert [node.get("/prices").json["prices"]["jam"] for node in nodes] == [4, 4]
    assert len(calls) == 1
    here.post(f"/change/{how}?price=9")
    wait_until(lambda: there.get("/prices").json["prices"]["jam"] == 9, what="the new price at the other node")
    assert here.get("/prices").json["prices"]["jam"] == 9


SCRIPT = """
import sys
from pyramid.paster import bootstrap
from tests.end_to_end.test_memorize_in_an_application import Currency, prices

with bootstrap(sys.argv[1]) as env:
    prices.invalidate(currency=Currency.EUR)
    env["closer"]()
    prices.invalidate(currency=Currency.EUR)
"""


@pytest.mark.heavy
def test_a_script_forgets_for_the_site(make: Callable[..., Router], redis: RedisServer, tmp_path: Path) -> None:
    redis.client.flushall()
    site = TestApp(make(pushdemo__redis_url=redis.url))
    assert site.get("/prices").json["prices"]["jam"] == 4
    ini = tmp_path / "site.ini"
    ini.write_text(
        textwrap.dedent(f"""
            [app:main]
            use = call:tests.fixtureapps.shop:main
            sqlalchemy.url = sqlite:///{tmp_path}/shop.sqlite
            pushdemo.redis_url = {redis.url}
        """)
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(ini)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    wait_until(lambda: site.get("/prices") and len(calls) == 2, what="the second computation")
