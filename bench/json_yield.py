"""Polls a second and memory of `json_yield`, beside a bare Pyramid JSON view and the 2010 post's decorator on CherryPy.

usage: json_yield.py [ROUNDS [POLLS]]. Needs the package `cherrypy`. Linux only. Both Pyramid views are served by one
waitress, the post's decorator by CherryPy's own server, each server in a process of its own with 4 threads. The load is
this process: kept connections, a key each, that poll again as soon as they are answered. One connection, as one page
polls, is what the bars are held against: it shows what a poll costs. With several, the threads of each server also
contend for the interpreter, which weighs on two cores more than the decorators do; those figures are printed below. In
every round each of the three gets POLLS polls; rounds are short and their order turns, so that what else the machine
does falls on all alike. Printed are medians over the rounds, the medians of the rounds' ratios, and the CPU time that
the server used for a poll.

The bytes of an idle session are what tracemalloc finds for 10,000 sessions begun through Pyramid and polled once each,
less what it finds for 10,000 requests to a view that does no more than put its started generator into a list.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import selectors
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Generator
from io import BytesIO
from typing import Any

from process import cpu_seconds
from pyramid.config import Configurator

THREADS = 4
SESSIONS = 10_000


def numbers(request: Any) -> Generator[int, None, None]:
    number = 0
    while True:
        number += 1
        yield number


def bare(request: Any) -> dict[str, Any]:
    return {"state": "ready", "content": 1, "count": 1, "key": request.params["key"]}


def pyramid_app(*, keep: list[Any] | None = None) -> Any:
    """The application with both views; `keep` adds one that starts the generator and puts it into that list."""
    from pushdemo import json_yield

    def kept(request: Any) -> Any:
        assert keep is not None
        generator = numbers(request)
        keep.append(generator)
        document = {"state": "ready", "content": next(generator), "count": 1, "key": request.GET["key"]}
        request.response.body = json.dumps(document).encode()
        return request.response

    with Configurator(
        settings={"pushdemo.generators.limit": str(2 * SESSIONS), "pushdemo.generators.timeout": "3600"}
    ) as config:
        config.include("pushdemo")
        for name, view, renderer in [
            ("bare", bare, "json"),
            ("numbers", json_yield(numbers), None),
            ("kept", kept, None),
        ]:
            config.add_route(name, f"/{name}")
            config.add_view(view, route_name=name, renderer=renderer)
        return config.make_wsgi_app()


def serve_pyramid(port: int) -> None:
    import waitress

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # four connections in turn are no news
    waitress.serve(pyramid_app(), host="127.0.0.1", port=port, threads=THREADS, _quiet=True)


def serve_cherrypy(port: int) -> None:
    """The post's decorator as its text describes it: a dict from function and key to generator, nothing else."""
    import cherrypy

    generators: dict[tuple[Any, str], Any] = {}

    def json_yield(function: Any) -> Any:
        @functools.wraps(function)
        def poll(self: Any, key: str, *args: Any, **kwargs: Any) -> bytes:
            if (function, key) not in generators:
                generators[function, key] = function(self, *args, **kwargs)
            try:
                content = next(generators[function, key])
                return json.dumps({"state": "ready", "content": content}).encode()
            except StopIteration:
                del generators[function, key]
                return json.dumps({"state": "done", "content": None}).encode()

        return poll

    class Root:
        @cherrypy.expose
        @json_yield
        def numbers(self) -> Generator[int, None, None]:
            yield from numbers(None)

    cherrypy.config.update(
        {
            "server.socket_host": "127.0.0.1",
            "server.socket_port": port,
            "server.thread_pool": THREADS,
            "environment": "production",
            "log.screen": False,
            "engine.autoreload.on": False,
        }
    )
    cherrypy.quickstart(Root())


class Connection:
    """One kept connection that polls one path; it reads no more of an answer than its status, length and end."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()

    def send(self) -> None:
        self.socket.sendall(self.request)

    def receive(self) -> None:
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        head = answer[:end].lower()
        assert head.startswith(b"http/1.1 200"), answer
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(answer) < end + 4 + length:
            answer += self._more()

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the server closed a kept connection"
        return data


def seconds(connections: list[Connection], polls: int) -> float:
    """The time that so many polls took, over all connections."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        began = time.perf_counter()
        for connection in connections:
            connection.send()
        to_send, to_receive = polls - len(connections), polls
        while to_receive:
            for ready, _ in selector.select():
                ready.data.receive()
                to_receive -= 1
                if to_send:
                    to_send -= 1
                    ready.data.send()
        return time.perf_counter() - began


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(port: int) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


TARGETS = {"bare view": ("pyramid", "/bare"), "json_yield": ("pyramid", "/numbers"), "post": ("cherrypy", "/numbers")}
BARS = {"bare view": 0.85, "post": 1.6}


def measure_rates(rounds: int, polls: int) -> None:
    ports = {name: free_port() for name in ("pyramid", "cherrypy")}
    servers = {
        name: subprocess.Popen([sys.executable, __file__, "serve", name, str(port)]) for name, port in ports.items()
    }
    try:
        for port in ports.values():
            await_port(port)
        for clients in (1, THREADS):
            print(f"{clients} connection{'s' * (clients > 1)}")
            report(*rates(servers, ports, clients, rounds, polls))
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.wait(10)


def rates(
    servers: dict[str, subprocess.Popen[bytes]], ports: dict[str, int], clients: int, rounds: int, polls: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Polls a second of each target in each round, and the server's CPU seconds a poll."""
    load = {
        name: [Connection(ports[server], f"{path}?key={clients}-{number}") for number in range(clients)]
        for name, (server, path) in TARGETS.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in TARGETS}
    cpu = dict.fromkeys(TARGETS, 0.0)
    for number in range(-3, rounds):  # the first three warm up
        turn = number % len(TARGETS)
        for name in list(TARGETS)[turn:] + list(TARGETS)[:turn]:
            pids = [servers[TARGETS[name][0]].pid]
            used = cpu_seconds(pids)
            took = seconds(load[name], polls)
            if number >= 0:
                rates[name].append(polls / took)
                cpu[name] += (cpu_seconds(pids) - used) / rounds / polls
    for connection in (each for connections in load.values() for each in connections):
        connection.socket.close()
    return rates, cpu


def report(rates: dict[str, list[float]], cpu: dict[str, float]) -> None:
    for name, values in rates.items():
        low, middle, high = statistics.quantiles(values, n=4)
        spread = f"quartiles {low:.0f}, {high:.0f}"
        print(f"  {name:11}{middle:6.0f} polls/s ({spread}), {cpu[name] * 1e6:4.0f} us of CPU a poll")
    for other, bar in BARS.items():
        ratio = statistics.median(ours / its for ours, its in zip(rates["json_yield"], rates[other], strict=True))
        print(f"  json_yield to {other:10}{ratio:5.2f} (to reach: {bar})")


def environ(path: str, key: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": f"key={key}",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def held_bytes(path: str) -> float:
    """Bytes that one more poll of `path` under a new key leaves behind."""
    keep: list[Any] = []
    app = pyramid_app(keep=keep)

    def begin(numbered: range) -> None:
        for number in numbered:
            b"".join(app(environ(path, f"00000000-0000-4000-8000-{number:012}"), lambda status, headers: None))

    begin(range(100))
    gc.collect()
    tracemalloc.start()
    begin(range(100, 100 + SESSIONS))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] / SESSIONS
    tracemalloc.stop()
    return held


def measure_memory() -> None:
    ours, own = held_bytes("/numbers"), held_bytes("/kept")
    print(
        f"idle session {ours:.0f} bytes; generator and request alone {own:.0f}: {ours - own:.0f} more (to reach: 2048)"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["serve"]:
        {"pyramid": serve_pyramid, "cherrypy": serve_cherrypy}[arguments[1]](int(arguments[2]))
        return
    rounds, polls = (int(text) for text in (arguments + ["60", "200"][len(arguments) :]))
    measure_rates(rounds, polls)
    measure_memory()


if __name__ == "__main__":
    main(sys.argv[1:])
