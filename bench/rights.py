"""What it costs to hold a client that has an owner and an end: memory of the server, beside clients without.

usage: python bench/rights.py [CLIENTS]. Linux only; each client is an open file here and in the server.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WARM = 200  # clients that are there before the measurement begins
SETTLED = 2.0  # seconds after the last client has come


def serve(limited: bool, clients: int) -> None:
    """The server, in a process of its own; prints its port."""
    from pyramid.config import Configurator
    from pyramid.request import Request

    from pushdemo.server import Server

    class Named:
        def authenticated_userid(self, request: Request) -> str | None:
            return request.headers.get("X-User")

        identity = authenticated_userid

        def permits(self, request: Request, context: Any, permission: str) -> bool:
            return True

    with Configurator(settings={"pushdemo.max_clients": str(2 * clients)}) as config:
        config.set_security_policy(Named())
        config.include("pushdemo")
        config.add_topic("news", content_type="text/plain")
        config.add_route("news", "/news")
        options = {"expires": 3600} if limited else {"owner": None}
        config.add_view(lambda request: request.push("news", **options), route_name="news")
        server = Server(config.make_wsgi_app(), listen="127.0.0.1:0")
    print(server.addresses[0][1], flush=True)
    server.run()


def bytes_a_client(limited: bool, clients: int) -> float:
    """The growth of the server's resident memory with so many clients."""
    command = [sys.executable, __file__, "serve", str(int(limited)), str(clients)]
    root = str(Path(__file__).parent.parent)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        held: list[socket.socket] = []
        try:
            for number in range(WARM):
                held.append(listen(port, number))
            time.sleep(SETTLED)
            before = resident(process.pid)
            for number in range(clients):
                held.append(listen(port, WARM + number))
            time.sleep(SETTLED)
            return (resident(process.pid) - before) / clients
        finally:
            for sock in held:
                sock.close()
            process.terminate()


def listen(port: int, number: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(f"GET /news HTTP/1.1\r\nHost: localhost\r\nX-User: user-{number}\r\n\r\n".encode())
    assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    return sock


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    clients = int(sys.argv[1]) if sys.argv[1:] else 5000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plain, limited = (bytes_a_client(limited, clients) for limited in (False, True))
    print(f"{clients} clients: {plain:.0f} bytes each, {limited:.0f} with an owner and an end: {limited - plain:+.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2] == "1", int(sys.argv[3]))
    else:
        main()
