"""deploy/nginx.conf and production.ini: two nodes behind a real nginx, streams, sessions, health, a rolling restart."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import pytest

from pushdemo.web.settings import PREFIX, Settings
from tests.end_to_end.test_nodes_at_one_redis import NODES, STREAM, Follower, get, grow
from tests.readers import Reader
from tests.redis.support import redis_server
from tests.support import ROOT, Client, Pserve, free_port, pserve, require, self_signed, wait_until

require(shutil.which("nginx"), "nginx", "nginx")

pytestmark = pytest.mark.heavy

INI = configparser.RawConfigParser(delimiters="=")
INI.read(ROOT / "production.ini", encoding="utf-8")

FRAME = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on; gzip_types *;
{site}
}}
"""


class Site:
    """Two nodes behind nginx; `port` is nginx's."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        redis = stack.enter_context(redis_server(folder))
        self.folder = folder
        self.app = dict(INI["app:main"]) | NODES | {"pushdemo.redis_url": redis.url}
        self.server = {key: value for key, value in INI["server:main"].items() if key != "listen"}
        self.nodes = [self.node(stack, 0) for _ in range(2)]
        self.port = free_port()
        site = (ROOT / "deploy" / "nginx.conf").read_text()
        for old, new in zip(("6543", "6544"), self.nodes, strict=True):
            site = site.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new.port}")
        site = site.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        self.secure_port, self.certificate = free_port(), self_signed(folder)
        site = site.replace("# listen 443 ssl", f"listen 127.0.0.1:{self.secure_port} ssl")
        site = re.sub(r"# (ssl_certificate\w* +)\S+;", rf"\1{self.certificate};", site)
        conf = folder / "nginx.conf"
        conf.write_text(FRAME.format(folder=folder, site=site))
        command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)]
        self.process = subprocess.Popen(command)
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        wait_until(self._answers, what="nginx")

    def node(self, stack: ExitStack, port: int) -> Pserve:
        return stack.enter_context(pserve(self.folder, self.app, self.server, port))

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "error.log").read_text()
        try:
            return get(self.port, "/health/live")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("nginx"), stack)


@pytest.mark.parametrize("transport", ["sse", "multipart", "jsonlines"])
def test_messages_come_through_as_they_are_published(site: Site, transport: str) -> None:
    with Reader(site.port, transport, STREAM, "Accept-Encoding: gzip") as reader:
        began = time.monotonic()
        events = reader.take(4)
        assert {event.kind for event in events} == {"message"}
        assert time.monotonic() - began > 0.1, "one by one, and not in a bunch"
        assert b"content-encoding" not in reader.raw.lower().partition(b"\r\n\r\n")[0]


def test_http_2_is_live_and_one_connection_has_many_streams(site: Site) -> None:
    urls = [f"https://127.0.0.1:{site.secure_port}{STREAM}?transport=sse&n={number}" for number in range(8)]
    command = ["curl", "--http2", "--no-buffer", "--silent", "--parallel", "--parallel-max", "8", "--max-time", "3"]
    outputs = [part for number in range(8) for part in ("--output", str(site.folder / f"stream-{number}"))]
    trace = ["--cacert", str(site.certificate), "--write-out", "%{http_version} %{num_connects}\n"]
    ended = subprocess.run([*command, *trace, *outputs, *urls], capture_output=True, text=True, timeout=60, check=False)
    versions, connects = zip(*(line.split() for line in ended.stdout.splitlines()), strict=True)
    assert set(versions) == {"2"}
    assert sum(map(int, connects)) == 1
    for number in range(8):
        assert (site.folder / f"stream-{number}").read_text().count("\ndata: ") > 5


def test_a_session_stays_on_its_node(site: Site) -> None:
    for key in range(12):
        counts = []
        for after in range(5):
            status, body = get(site.port, f"/prime?key=key-{key}&after={after}")
            assert status == 200, body
            counts.append(re.search(rb'"count": (\d+)', body)[1])  # type: ignore[index]
        assert counts == [b"1", b"2", b"3", b"4", b"5"]


def test_sessions_are_on_both_nodes(site: Site) -> None:
    here = []
    for key in range(40):
        get(site.port, f"/prime?key=spread-{key}&after=0")
        here.append(get(site.nodes[0].port, f"/prime?key=spread-{key}&after=1")[0])
    assert set(here) == {200, 421}


def test_production_ini_shows_every_key_with_its_default() -> None:
    shown = {key: value for key, value in INI["app:main"].items() if key.startswith(PREFIX)}
    assert Settings.from_ini(shown) == Settings()
    assert len(shown) == len(fields(Settings)) - 1, "all but the durations of single functions"


def test_health_is_answered_and_told_to_nobody_else(site: Site) -> None:
    assert get(site.port, "/health/ready") == (200, b'{"ready": true}')
    conf = (ROOT / "deploy" / "nginx.conf").read_text()
    assert re.search(r"location /health/ \{[^}]*deny all;", conf)


def test_in_a_rolling_restart_no_client_misses_a_message(site: Site) -> None:
    followers = [Follower(transport, site.port) for transport in ("sse", "multipart", "longpoll", "sse", "jsonlines")]
    grow(followers)
    with ExitStack() as stack:
        for number, node in enumerate(site.nodes):
            assert node.stop() == 0
            with Client(site.port) as client:
                assert client.get("/").head()[0] == 200, "the other node serves the page"
            grow(followers, 3)
            site.nodes[number] = site.node(stack, node.port)
            grow(followers, 3)
        for follower in followers:
            follower.stop()
            follower.check(resets=False)
