"""deploy/haproxy.cfg, deploy/Caddyfile, deploy/apache.conf: each before two real nodes, as Debian's package runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.test_nodes_at_one_redis import Follower, grow
from tests.readers import STREAMS, TRANSPORTS, Event, Reader
from tests.redis.support import redis_server
from tests.support import PATIENCE, ROOT, Pserve, free_port, pserve, require, wait_until

pytestmark = pytest.mark.heavy

STREAM = "/server/index"
HEARTBEAT = 1  # seconds

APACHE = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
User www-data
Group www-data
{modules}
AddOutputFilterByType DEFLATE text/html text/event-stream multipart/x-mixed-replace application/x-ndjson
"""
MODULES = """
    mpm_event authz_core authz_host setenvif headers env filter deflate proxy proxy_http proxy_balancer slotmem_shm
    lbmethod_byrequests
"""


class Proxy(NamedTuple):
    """A proxy before two nodes."""

    name: str
    port: int
    nodes: tuple[Pserve, Pserve]


def haproxy(folder: Path, port: int, text: str) -> list[str]:
    file = folder / "haproxy.cfg"
    file.write_text(text.replace("bind :80", f"bind 127.0.0.1:{port}").replace("maxconn 20000", "maxconn 500"))
    return ["haproxy", "-db", "-f", str(file)]


def caddy(folder: Path, port: int, text: str) -> list[str]:
    file = folder / "Caddyfile"
    frame = "{\n\tadmin off\n\tauto_https off\n}\n"
    file.write_text(frame + text.replace(":80 {", f"http://:{port} {{\n\tbind 127.0.0.1", 1))
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


def apache(folder: Path, port: int, text: str) -> list[str]:
    file = folder / "apache.conf"
    modules = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in MODULES.split())
    frame = APACHE.format(folder=folder, port=port, modules=modules)
    file.write_text(frame + text.replace("*:80", f"127.0.0.1:{port}"))
    return ["apache2", "-f", str(file), "-DFOREGROUND"]


PROXIES: dict[str, tuple[str, str, Callable[[Path, int, str], list[str]]]] = {
    "haproxy": ("haproxy", "haproxy.cfg", haproxy),
    "caddy": ("caddy", "Caddyfile", caddy),
    "apache": ("apache2", "apache.conf", apache),
}


@contextmanager
def running(name: str, folder: Path, nodes: Sequence[int]) -> Iterator[int]:
    """Run the proxy with its file of deploy/, before nodes at these ports; its own port."""
    program, configuration, command = PROXIES[name]
    text = (ROOT / "deploy" / configuration).read_text()
    for number, node in zip(("6543", "6544"), nodes, strict=True):
        text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{node}")
    port = free_port()
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command(folder, port, text), stdout=log, stderr=log, env=environment(folder))

    def answers() -> bool:
        assert process.poll() is None, (folder / "proxy.log").read_text()
        try:
            return get(port, "/health/ready")[0] == 200
        except OSError:
            return False

    try:
        wait_until(answers, what=program)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    program = PROXIES[request.param][0]
    require(shutil.which(program), request.param, program)
    folder = tmp_path_factory.mktemp(request.param)
    app: dict[str, object] = {"pushdemo.interval": 0.1, "pushdemo.heartbeat": HEARTBEAT, "pushdemo.longpoll.timeout": 5}
    with ExitStack() as stack:
        app["pushdemo.redis_url"] = stack.enter_context(redis_server(folder)).url
        nodes = (stack.enter_context(pserve(folder, app)), stack.enter_context(pserve(folder, app)))
        port = stack.enter_context(running(request.param, folder, [node.port for node in nodes]))
        yield Proxy(request.param, port, nodes)


def environment(folder: Path) -> dict[str, str]:
    """Caddy keeps what it knows in its home."""
    return {"PATH": "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin", "HOME": str(folder)}


def get(port: int, path: str, cookie: str = "") -> tuple[int, bytes, str]:
    """Status, body and cookie of the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        response = connection.getresponse()
        return response.status, response.read(), (response.headers["Set-Cookie"] or "").partition(";")[0]
    finally:
        connection.close()


def number(event: Event) -> int:
    return int(event.id.rpartition("-")[2])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_come_through_as_they_are_made(proxy: Proxy, transport: str) -> None:
    with Reader(proxy.port, transport, STREAM, "Accept-Encoding: gzip, br, zstd") as reader:
        events = reader.take(5)
        numbers = [number(event) for event in events if event.kind == "message"]
        assert numbers == list(range(numbers[0], numbers[0] + 5))
        if transport in STREAMS:
            assert b"content-encoding" not in reader.raw.lower().partition(b"\r\n\r\n")[0]


def clients(proxy: Proxy) -> int:
    """How many streams of the topic the two nodes hold."""
    held = 0
    for node in proxy.nodes:
        metrics = get(node.port, "/metrics")[1].decode()
        held += sum(int(float(n)) for n in re.findall(r'^pushdemo_clients\{topic="server".*\} (\S+)$', metrics, re.M))
    return held


def test_a_client_that_leaves_is_noticed(proxy: Proxy) -> None:
    wait_until(lambda: clients(proxy) == 0, what="the clients before to leave")
    readers = [Reader(proxy.port, name, STREAM) for name in STREAMS for _ in range(2)]
    for reader in readers:
        reader.next()
    wait_until(lambda: clients(proxy) == len(readers), what="all clients")
    for reader in readers:
        reader.leave()
    wait_until(lambda: clients(proxy) == 0, 5 * HEARTBEAT + 5, "the clients' leaving")


def test_a_session_stays_on_its_node(proxy: Proxy) -> None:
    for key in range(8):
        cookie, counts = "", []
        for after in range(5):
            status, body, given = get(proxy.port, f"/prime?key={proxy.name}-{key}&after={after}", cookie)
            assert status == 200, body
            cookie = given or cookie
            counts.append(json.loads(body)["count"])
        assert counts == [1, 2, 3, 4, 5]


def test_the_check_finds_nothing(proxy: Proxy) -> None:
    check = Path(sys.executable).with_name("pushdemo-check")
    url = f"http://127.0.0.1:{proxy.port}{STREAM}"
    command = [str(check), "--seconds", "3", "--heartbeat", str(HEARTBEAT), url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_node_that_is_gone_is_passed_over(proxy: Proxy) -> None:
    assert proxy.nodes[1].stop() == 0
    for _ in range(6):
        assert get(proxy.port, "/")[0] == 200
    with Reader(proxy.port, "sse", STREAM) as reader:
        assert len(reader.take(3)) == 3


def test_in_a_rolling_restart_no_client_misses_a_message(tmp_path: Path) -> None:
    """HAProxy follows readiness: it sends a draining node nobody more before that node is gone."""
    require(shutil.which("haproxy"), "HAProxy", "haproxy")
    app: dict[str, object] = {"pushdemo.interval": 0.1, "pushdemo.heartbeat": HEARTBEAT, "pushdemo.drain": 1.5}
    with ExitStack() as stack:
        app["pushdemo.redis_url"] = stack.enter_context(redis_server(tmp_path)).url
        nodes = [stack.enter_context(pserve(tmp_path, app)) for _ in range(2)]
        port = stack.enter_context(running("haproxy", tmp_path, [node.port for node in nodes]))
        followers = [Follower(transport, port) for transport in ("sse", "multipart", "longpoll", "jsonlines")]
        grow(followers)
        for number, node in enumerate(nodes):
            assert node.stop() == 0
            grow(followers, 3)
            nodes[number] = stack.enter_context(pserve(tmp_path, app, port=node.port))
            assert get(node.port, "/health/ready")[0] == 200
            grow(followers, 10)
        for follower in followers:
            follower.stop()
            follower.check(resets=False)
