"""`pushdemo-check` against our server, and against a real nginx between that buffers, compresses, or cuts."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden, HTTPFound
from pyramid.request import Request
from pyramid.response import Response

from pushdemo import check
from tests.end_to_end.test_behind_nginx import CONFIGURATION
from tests.fixtureapps import newsroom, texts
from tests.support import PATIENCE, free_port, port_of, pserve, require, serving, threads, wait_until

require(shutil.which("nginx"), "nginx", "nginx")

QUIET = 1000.0  # seconds: no heartbeat while a test runs
GZIP = "gzip on; gzip_types *; gzip_proxied any; gzip_http_version 1.0;"
DEAF = "proxy_ignore_headers X-Accel-Buffering;"  # what the response says of buffering is not heard


@contextmanager
def site(heartbeat: float = 0.5) -> Iterator[str]:
    """The address of a stream of our server, on which nothing but heartbeats follows the first message."""
    app = newsroom.main(**{"pushdemo.heartbeat": str(heartbeat)})
    app.registry["pushdemo.topics"]["news"].publish("the first")
    with serving(app) as server:
        yield f"http://127.0.0.1:{port_of(server)}/push/news"


@contextmanager
def behind_nginx(folder: Path, url: str, directives: str) -> Iterator[str]:
    """The address of the same stream through an nginx with these directives in its location."""
    port = free_port()
    upstream = url.removesuffix("/push/news")
    server = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; {directives} }} }}"
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, servers=server))
    with subprocess.Popen(["nginx", "-p", folder, "-c", file, "-e", folder / "error.log"]) as process:
        try:
            wait_until(lambda: process.poll() is None and listens(port), what="nginx")
            yield f"http://127.0.0.1:{port}/push/news"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def nginx_lines(said: str) -> str:
    """The lines for nginx in what the check has said."""
    (block,) = re.findall(r"^  nginx:\n((?:      .*\n)+)", said, re.MULTILINE)
    return str(block)


def run(url: str, *options: str, seconds: float = 1.2) -> int:
    return check.main([url, "--seconds", str(seconds), *options])


@pytest.mark.heavy
def test_nothing_is_found_where_nothing_is_between(capsys: pytest.CaptureFixture[str]) -> None:
    with site() as url:
        assert run(url, "--heartbeat", "0.5", seconds=2) == check.FINE
    said = capsys.readouterr().out
    for name in ("multipart", "sse"):
        assert re.search(rf"^{name}: first byte after 0\.\d\d s, 1 messages, longest silence [01]\.\d s$", said, re.M)
    assert "Nothing on the way was seen" in said


@pytest.mark.heavy
@pytest.mark.parametrize("directives", ["", 'proxy_http_version 1.1; proxy_set_header Connection "";'])
def test_nothing_is_found_behind_an_nginx_that_lets_streams_through(tmp_path: Path, directives: str) -> None:
    with site() as url, behind_nginx(tmp_path, url, directives) as between:
        assert run(between, "--heartbeat", "0.5", seconds=2) == check.FINE


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("directives", "found", "not_found", "heartbeat"),
    [
        (DEAF, "buffers", "compresses", 0.5),
        (GZIP, "compresses", "buffers", 0.5),
        ("proxy_read_timeout 500ms;", "cuts", "buffers", QUIET),
    ],
    ids=["buffers", "compresses", "cuts"],
)
def test_what_nginx_does_is_found_and_the_lines_that_are_given_mend_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    directives: str,
    found: str,
    not_found: str,
    heartbeat: float,
) -> None:
    with site(heartbeat) as url:
        with behind_nginx(tmp_path, url, directives) as between:
            assert run(between) == check.FOUND
        said = capsys.readouterr().out
        assert "answered by nginx" in said
        assert f"Something between here and the server {found} the stream" in said
        assert len(re.findall(r"^  (?:multipart|sse): ", said, re.M)) == 2
        assert f"server {not_found}" not in said
        assert all(f"\n  {proxy}:\n" in said for proxy in ("nginx", "Caddy", "HAProxy"))
        lines = nginx_lines(said)
        # nginx takes a directive once: the line that is given stands in the place of the one that did the harm.
        kept = re.sub("|".join(line.split()[0] + r" [^;]*;" for line in lines.splitlines()), "", directives)
        with behind_nginx(tmp_path, url, f"{kept}\n{lines}") as between:
            assert run(between) == check.FINE


@pytest.mark.heavy
def test_a_heartbeat_sooner_than_the_cut_mends_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directives = "proxy_read_timeout 2s;"
    with site(QUIET) as url, behind_nginx(tmp_path, url, directives) as between:
        assert run(between, seconds=3) == check.FOUND
    (told,) = re.findall(r"pushdemo\.heartbeat = ([\d.]+)", capsys.readouterr().out)
    with site(float(told)) as url, behind_nginx(tmp_path, url, directives) as between:
        assert run(between, seconds=3) == check.FINE


@pytest.mark.heavy
def test_a_stream_that_ends_in_the_midst_of_messages_was_not_cut_for_its_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 0.6}) as running:
        kill = threading.Timer(3.3, running.process.kill)
        kill.start()
        assert run(f"{running.url}/server/index", seconds=PATIENCE) == check.FOUND
        kill.join()
    said = capsys.readouterr().out
    assert "Something between here and the server ends the stream" in said
    assert "Not for its silence" in said
    assert "pushdemo.heartbeat" not in said
    assert "proxy_read_timeout" not in said


@pytest.mark.heavy
def test_silence_for_longer_than_the_heartbeat_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with site(QUIET) as url:  # as if something held the heartbeats back
        assert run(url, "--heartbeat", "0.5", seconds=3) == check.FOUND
    assert "the server writes every 0.5 s or sooner" in capsys.readouterr().out


@pytest.mark.heavy
def test_it_says_how_it_goes_while_it_waits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_PROGRESS", 0.3)
    with site() as url:
        assert run(url, seconds=2) == check.FINE
    progress = capsys.readouterr().err.splitlines()
    assert len(progress) >= 3
    assert all(re.fullmatch(r" +[012] of 2 s: multipart \d messages, sse \d messages", line) for line in progress)


def test_a_stream_that_ends_by_itself_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(texts.main()) as server:
        assert run(f"http://127.0.0.1:{port_of(server)}/push/texts?last_event_id=earliest", seconds=20) == check.FINE
    said = capsys.readouterr().out
    assert len(re.findall(r" 11 messages.*, ended by the server after [\d.]+ s$", said, re.M)) == 2


def test_a_picture_is_asked_for_by_multipart_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(texts.main()) as server:
        assert run(f"http://127.0.0.1:{port_of(server)}/push/pictures?last_event_id=earliest") == check.FINE
    assert re.findall(r"^(\w+): first byte", capsys.readouterr().out, re.M) == ["multipart"]


@pytest.mark.heavy
def test_an_address_may_insist_on_a_transport(capsys: pytest.CaptureFixture[str]) -> None:
    with site() as url:
        assert run(f"{url}?transport=jsonlines", "--heartbeat", "0.5", seconds=2) == check.FINE
    assert re.findall(r"^(\w+): .* (\d+) messages", capsys.readouterr().out, re.M) == [("jsonlines", "1")]


@pytest.mark.heavy
def test_redirections_are_followed_and_headers_are_sent() -> None:
    def push(request: Request) -> Response:
        if request.headers.get("X-Pass") != "let: me in":
            raise HTTPForbidden
        return request.push("news")

    with Configurator(settings={"pushdemo.heartbeat": "0.5"}) as config:
        config.include("pushdemo")
        config.add_topic("news")
        config.add_route("old", "/old")
        config.add_view(lambda request: HTTPFound("/new"), route_name="old")
        config.add_route("new", "/new")
        config.add_view(push, route_name="new")
    with serving(config.make_wsgi_app()) as server:
        url = f"http://127.0.0.1:{port_of(server)}/old"
        assert run(url, "--header", "X-Pass: let: me in", seconds=1) == check.FINE
        assert run(url, seconds=1) == check.UNASKED


@pytest.mark.parametrize(
    ("path", "reason"), [("/nowhere", "404 Not Found"), ("/page", "no stream, but text/html"), ("/held", "no stream")]
)
def test_what_is_no_stream_is_said_to_be_none(capsys: pytest.CaptureFixture[str], path: str, reason: str) -> None:
    with site() as url:
        assert run(url.replace("/push/news", path)) == check.UNASKED
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1/server/index", "http://127.0.0.1:x/", "http://[::1/"])
def test_a_wrong_address_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url) == check.UNASKED
    assert url in capsys.readouterr().err


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"http://127.0.0.1:{free_port()}/") == check.UNASKED
    assert "refused" in capsys.readouterr().err


def test_a_site_without_a_place_could_not_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    app = newsroom.main(**{"pushdemo.max_clients": "1"})
    release = app.registry["pushdemo.clients"].all
    assert release.take()
    with serving(app) as server:
        assert run(f"http://127.0.0.1:{port_of(server)}/push/news") == check.UNASKED
    assert "multipart: 503 Service Unavailable" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--seconds", "soon"], ["-H", "Cookie"], []])
def test_wrong_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check.main([*options, *(["http://127.0.0.1/"] if options else [])])
    assert ended.value.code == 2
    assert "usage: pushdemo-check" in capsys.readouterr().err


def test_it_leaves_no_thread_and_no_client_behind() -> None:
    app = newsroom.main()
    with serving(app) as server:
        assert run(f"http://127.0.0.1:{port_of(server)}/push/news", seconds=0.5) == check.FINE
        assert not any(threads(f"probe-{name}") for name in ("multipart", "sse"))
        wait_until(lambda: app.registry["pushdemo.clients"].all.taken == 0, what="the end of the subscriptions")
