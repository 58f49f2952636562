"""Pages of other origins: which may read a stream, by `pushdemo.cors_origins`, and what a browser is told of it.

What the headers mean: Fetch standard (WHATWG), section 3.2, "CORS protocol".
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.readers import TRANSPORTS, Pushing, pushing
from tests.support import chromium, wait_until

ORIGIN = "https://pages.example"
OTHER = "https://other.example"
PREFLIGHT = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: last-event-id")


def running(origins: str) -> Iterator[Pushing]:
    with pushing({"cors_origins": origins, "max_clients": 1}) as application:
        application.topics["news"].publish("a")
        yield application


@pytest.fixture(scope="module")
def none() -> Iterator[Pushing]:
    yield from running("")


@pytest.fixture(scope="module")
def some() -> Iterator[Pushing]:
    yield from running(f"http://127.0.0.1:8000 {ORIGIN}")


@pytest.fixture(scope="module")
def every() -> Iterator[Pushing]:
    yield from running("*")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(
    application: Pushing, origin: str | None, query: str = "", *headers: str, method: str = "GET"
) -> tuple[int, dict[str, str]]:
    """Status and headers for a page of `origin`."""
    given = [f"Origin: {origin}"] if origin else []
    with application.client(f"/push/news{query}", *given, *headers, "Connection: close", method=method) as client:
        return client.head()


def ask_again(application: Pushing, origin: str, query: str) -> tuple[int, dict[str, str]]:
    """The same, once the one place is free: the client before may not have been missed yet."""

    def answer() -> tuple[int, dict[str, str]] | None:
        found = ask(application, origin, query)
        return found if found[0] != 503 else None

    found: tuple[int, dict[str, str]] = wait_until(answer, what="the place of the client before")
    return found


def cors(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_no_other_origin_may_read_unless_told(none: Pushing, transport: str) -> None:
    status, headers = ask_again(none, ORIGIN, f"?transport={transport}")
    assert status == 200
    assert cors(headers) == {}
    assert headers["vary"] == "Accept"


def test_an_origin_of_the_list_may_read(some: Pushing, transport: str) -> None:
    for origin in (ORIGIN, "http://127.0.0.1:8000"):
        status, headers = ask_again(some, origin, f"?transport={transport}")
        assert status == 200
        assert cors(headers) == {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "Retry-After",
        }
        assert headers["vary"] == "Accept, Origin"


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        None,
        "null",
        "*",
        "http://pages.example",
        "https://pages.example:443",
        "https://pages.example.evil.example",
        "https://sub.pages.example",
        "https://pages.example/",
        f"{ORIGIN} {OTHER}",
    ],
)
def test_no_other_may(some: Pushing, origin: str | None) -> None:
    for method in ("GET", "OPTIONS"):
        _, headers = ask(some, origin, "?transport=sse", *PREFLIGHT, method=method)
        assert cors(headers) == {}
        assert headers["vary"] == "Accept, Origin", "a cache keeps the answer for those who may apart"


@pytest.mark.parametrize("origin", [ORIGIN, OTHER, "null"])
def test_a_star_is_every_origin(every: Pushing, transport: str, origin: str) -> None:
    _, headers = ask(every, origin, f"?transport={transport}")
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers


def test_a_preflight_is_answered_and_starts_nothing(some: Pushing) -> None:
    status, headers = ask(some, ORIGIN, "?transport=sse", *PREFLIGHT, method="OPTIONS")
    assert status == 204
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-allow-methods"] == "GET, HEAD"
    assert {name.strip().lower() for name in headers["access-control-allow-headers"].split(",")} == {
        "cache-control",
        "last-event-id",
    }
    assert int(headers["access-control-max-age"]) > 0
    assert some.topics["news"].clients == 0


def test_options_without_a_preflight_says_what_is_allowed(none: Pushing) -> None:
    status, headers = ask(none, None, method="OPTIONS")
    assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("query", "headers", "method", "status"),
    [
        ("?transport=pigeon", (), "GET", 400),
        ("?transport=%FF", (), "GET", 400),
        ("?topic=weather", (), "GET", 400),
        ("", ("Accept: image/png",), "GET", 406),
        ("", ("Content-Length: 0",), "POST", 405),
    ],
)
def test_a_page_of_another_origin_can_read_what_is_wrong(
    some: Pushing, query: str, headers: tuple[str, ...], method: str, status: int
) -> None:
    found, answered = ask(some, ORIGIN, query, *headers, method=method)
    assert found == status
    assert answered["access-control-allow-origin"] == ORIGIN
    assert answered["vary"] == "Accept, Origin"


def test_a_page_of_another_origin_can_read_when_to_come_back(some: Pushing, transport: str) -> None:
    with some.reader("sse", "/push/news").join():
        status, headers = ask(some, ORIGIN, f"?transport={transport}")
    wait_until(lambda: some.topics["news"].clients == 0)
    assert status == 503
    assert headers["retry-after"]
    assert headers["access-control-expose-headers"] == "Retry-After"
    assert headers["access-control-allow-origin"] == ORIGIN


def test_an_ended_topic_is_204_for_a_page_of_another_origin_too(every: Pushing) -> None:
    with pushing({"cors_origins": ORIGIN}) as application:
        application.topics["news"].end()
        status, headers = ask(application, ORIGIN, "?transport=sse")
    assert (status, headers["access-control-allow-origin"]) == (204, ORIGIN)


SCRIPT = """
const [url, done] = [arguments[0], arguments[arguments.length - 1]];
const read = async (query, init) => {
  try {
    const response = await fetch(url + query, { cache: "no-store", ...init });
    if (!response.ok) {
      return [response.status, response.headers.get("Retry-After"), (await response.text()).includes("pushdemo")];
    }
    const { value } = await response.body.getReader().read();
    return [response.status, new TextDecoder().decode(value).includes("news-1") ? "message" : "no message"];
  } catch (error) {
    return error.name;
  }
};
const event = () => new Promise((resolve) => {
  const source = new EventSource(url + "?transport=sse");
  source.onmessage = ({ data }) => resolve(data);
  source.onerror = () => resolve("error");
});
(async () => done([
  await read("?transport=longpoll"),
  await read("?transport=longpoll&last_event_id=earliest", { headers: { "Last-Event-ID": "x" } }),
  await read("?transport=pigeon"),
  await event(),
  await read("?transport=multipart"),
]))();
"""


def test_chromium_agrees() -> None:
    with (
        pushing() as page,
        pushing({"cors_origins": f"http://127.0.0.1:{page.port} http://localhost:1", "max_clients": 1}) as friend,
        pushing({"cors_origins": "http://localhost:1"}) as stranger,
        chromium() as driver,
    ):
        for application in (friend, stranger):
            application.topics["news"].publish("news-1")
        driver.get(f"http://127.0.0.1:{page.port}/push?transport=pigeon")  # any page of that origin
        driver.set_script_timeout(20)
        allowed = driver.execute_async_script(SCRIPT, f"http://127.0.0.1:{friend.port}/push/news")
        refused = driver.execute_async_script(SCRIPT, f"http://127.0.0.1:{stranger.port}/push/news")
    assert allowed[:4] == [[200, "message"], [200, "message"], [400, None, False], "news-1"]
    # The EventSource still holds the only place when the last is asked for.
    status, retry_after, named = allowed[4]
    assert (status, named) == (503, True)
    assert 5 <= int(retry_after) <= 15
    assert refused == ["TypeError", "TypeError", "TypeError", "error", "TypeError"]
