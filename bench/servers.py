"""The servers of the bench: what each needs, its versions and the command that starts it. Nothing is started here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).parent
PEERS = BENCH / "peers"
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


@dataclass(frozen=True)
class Start:
    """What a command is made from; `scratch` is a directory of the run's own."""

    python: str
    port: int
    rate: float
    clients: int
    scratch: Path


Command = Callable[[Start], list[str]]


@dataclass(frozen=True)
class Server:
    """One row of the table.

    `pypi`: distributions that its Python must have (ours: the running Python, else the peers'); `debian`: packages;
    `modes`: the tables it is in; `beside`: a second process that publishes, not counted as the server's; `page`: it has
    a /page; `path`: what its clients ask for, where that is not the mode's.
    """

    name: str
    command: Command
    pypi: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("fanout", "hold")
    beside: Command | None = None
    page: bool = True
    ours: bool = False
    path: str = ""


def script(path: Path, *options: str) -> Command:
    """A Python file that takes PORT, RATE, CLIENTS and its own options."""
    return lambda start: [start.python, str(path), str(start.port), str(start.rate), str(start.clients), *options]


def bare_loop(start: Start) -> list[str]:
    compiler = shutil.which("cc")
    if compiler is None:
        return script(PEERS / "send_loop.py")(start)
    binary = start.scratch / "send_loop"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(BENCH / "send_loop.c")], check=True)
    return [str(binary), str(start.port), str(start.rate)]


def nchan(start: Start) -> list[str]:
    text = (PEERS / "nchan.conf").read_text()
    for word, value in {"MODULE": NCHAN_MODULE, "SCRATCH": start.scratch, "PORT": start.port}.items():
        text = text.replace(f"@{word}@", str(value))
    conf = start.scratch / "nginx.conf"
    conf.write_text(text)
    return ["nginx", "-p", str(start.scratch), "-c", str(conf)]


def gunicorn(start: Start) -> list[str]:
    options = f"-k gevent -w 1 --worker-connections {start.clients + 1000} --backlog 4096 --log-level error"
    address = f"-b 127.0.0.1:{start.port} --chdir {PEERS}"
    return [start.python, "-m", "gunicorn", *options.split(), *address.split(), "gevent_app:app"]


def uvicorn(start: Start) -> list[str]:
    options = "--loop uvloop --http httptools --no-access-log --log-level error --backlog 4096"
    address = f"--port {start.port} --app-dir {PEERS}"
    return [start.python, "-m", "uvicorn", *options.split(), *address.split(), "sse_app:app"]


SERVERS = (
    Server("send loop", bare_loop, page=False),
    Server("pushdemo", script(BENCH / "app.py"), ("pyramid", "waitress"), modes=("fanout", "hold", "polls"), ours=True),
    Server(
        "pushdemo, no io_uring",
        script(BENCH / "app.py", "--no-ring"),
        ("pyramid", "waitress"),
        modes=("fanout",),
        ours=True,
    ),
    Server("Nchan", nchan, debian=("nginx", "libnginx-mod-nchan"), beside=script(PEERS / "nchan_publish.py")),
    Server("gunicorn + gevent", gunicorn, ("gunicorn", "gevent", "packaging")),
    Server(
        "aiohttp + uvloop", script(PEERS / "aiohttp_app.py"), ("aiohttp", "uvloop"), modes=("fanout", "hold", "polls")
    ),
    Server("sse-starlette", uvicorn, ("sse-starlette", "starlette", "uvicorn", "uvloop", "httptools")),
    Server(
        "2009 code, a thread a client", script(PEERS / "threads_2009.py"), ("pyramid", "waitress"), modes=("fanout",)
    ),
)


def describe(server: Server, python: str) -> tuple[str, str]:
    """The versions of what `server` is made of, and what has to be installed for it: one of the two is empty."""
    if server.ours and not (BENCH.parent / "pushdemo" / "server").is_dir():
        return "", "pushdemo/server"
    found = debian_versions(server.debian) | pypi_versions(server.pypi, sys.executable if server.ours else python)
    missing = [name for name, version in found.items() if not version]
    if missing:
        return "", f"{'apt' if server.debian else 'pip'} install {' '.join(missing)}"
    return ", ".join(f"{name} {version}" for name, version in found.items()) or compiler_version(), ""


def pypi_versions(names: tuple[str, ...], python: str) -> dict[str, str]:
    code = """
import importlib.metadata, json, sys
found = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
print(json.dumps({name: found.get(name, "") for name in sys.argv[1:]}))
"""
    answer = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(answer)
    return versions


def debian_versions(names: tuple[str, ...]) -> dict[str, str]:
    if names and not (shutil.which("nginx") and NCHAN_MODULE.exists()):
        return dict.fromkeys(names, "")
    query = ["dpkg-query", "-W", "-f", "${Version}"]
    return {name: subprocess.run([*query, name], check=False, capture_output=True, text=True).stdout for name in names}


def compiler_version() -> str:
    if shutil.which("cc") is None:
        return f"in Python {sys.version.split()[0]}: there is no cc"
    return subprocess.run(["cc", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
