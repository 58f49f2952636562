"""The bare loop of send() where there is no C compiler: what Python itself asks for one message to every client.

usage: send_loop.py PORT RATE
"""

from __future__ import annotations

import select
import socket
import sys
import time

from message import event

GREETING = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\n"
)


def main(port: int, rate: float) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    clients: list[socket.socket] = []
    number, due = 0, time.monotonic()
    while True:
        if select.select([listener], [], [], max(0.0, due - time.monotonic()))[0]:
            client, _ = listener.accept()
            client.setblocking(False)
            client.send(GREETING)
            clients.append(client)
        if time.monotonic() >= due:
            due += 1 / rate
            number += 1
            data = event(number)
            chunk = b"%x\r\n%b\r\n" % (len(data), data)
            clients = [client for client in clients if sent(client, chunk)]


def sent(client: socket.socket, chunk: bytes) -> bool:
    """False when the client has gone; a full socket loses the message, as it does in send_loop.c."""
    try:
        client.send(chunk)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
