"""System calls with the interpreter's lock held, and Python's own where they cannot be had."""

from __future__ import annotations

import os
import platform
import select
import socket
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from pushdemo.delivery import held
from pushdemo.delivery.held import FAILED, Acceptor, Epoll, NonBlockingSocket, Receiver, send


@pytest.fixture(params=["held", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        for name in ("send_raw", "_receive", "_accept", "_epoll_ctl"):
            monkeypatch.setattr(held, name, lambda *_: FAILED)


def test_bytes_are_sent_and_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert send(ours, b"with\0zero") == 9
    assert theirs.recv(100) == b"with\0zero"
    receive = Receiver(4)
    theirs.send(b"\0\0abcd")
    assert receive(ours) == b"\0\0ab"
    assert receive(ours) == b"cd"
    with pytest.raises(BlockingIOError):
        receive(ours)
    theirs.close()
    assert receive(ours) == b""
    with pytest.raises(BrokenPipeError):
        send(ours, b"m")


def test_a_full_socket_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    sent = 0
    with suppress(BlockingIOError):
        while (taken := send(ours, bytes(100_000))) > 0:
            sent += taken
    assert sent > 0
    with pytest.raises(BlockingIOError):
        send(ours, b"m")


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "unix"])
def test_connections_are_accepted(family: str, tmp_path: object) -> None:
    if family == "unix":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"{tmp_path}/socket")
    elif family == "IPv6" and not socket.has_ipv6:
        pytest.skip("this system has no IPv6")
    else:
        listening = socket.socket(socket.AF_INET6 if family == "IPv6" else socket.AF_INET)
        listening.bind(("::1" if family == "IPv6" else "127.0.0.1", 0))
    with listening, socket.socket(listening.family) as client:
        listening.listen()
        listening.setblocking(False)
        accept = Acceptor(listening)
        with pytest.raises(BlockingIOError):
            accept()
        client.connect(listening.getsockname())
        ours, address = accept()
        with ours:
            assert (ours.family, ours.type) == (listening.family, listening.type)
            assert address == ours.getpeername() == client.getsockname()
            assert not ours.get_inheritable()
            with pytest.raises(BlockingIOError):
                ours.recv(5)
            client.sendall(b"hello")
            assert ours.recv(5) == b"hello"
            for blocks in (False, True, False):
                ours.setblocking(blocks)
                assert ours.getblocking() == os.get_blocking(ours.fileno()) == blocks


def test_a_closed_socket_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    for call in (lambda: send(ours, b"m"), lambda: Receiver(10)(ours), lambda: Acceptor(ours)()):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


def test_each_receiver_has_a_buffer_of_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    """Servers in one process have a thread each."""
    ours, theirs = pair
    wrong, together = list[bytes](), threading.Barrier(2)

    def read(sock: socket.socket, other: socket.socket, data: bytes) -> None:
        receive = Receiver(1000)
        together.wait()
        for _ in range(2000):
            other.send(data)
            if (got := receive(sock)) != data:
                wrong.append(got)

    theirs.setblocking(False)
    threads = [
        threading.Thread(target=read, args=(ours, theirs, b"a" * 900)),
        threading.Thread(target=read, args=(theirs, ours, b"b" * 900)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
def test_epoll_is_python_s(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd, epoll = ours.fileno(), Epoll()
    epoll.register(fd, select.EPOLLIN)
    with pytest.raises(FileExistsError):
        epoll.register(fd, select.EPOLLIN)
    assert epoll.poll(0, 10) == []
    theirs.send(b"a")
    assert epoll.poll(5, 10) == [(fd, select.EPOLLIN)]
    epoll.modify(fd, select.EPOLLOUT)
    assert epoll.poll(5, 10) == [(fd, select.EPOLLOUT)]
    epoll.unregister(fd)
    assert epoll.poll(0, 10) == []
    for call in (lambda: epoll.modify(fd, select.EPOLLIN), lambda: epoll.unregister(fd)):
        with pytest.raises(FileNotFoundError):
            call()
    epoll.close()
    with pytest.raises(ValueError, match="closed"):
        epoll.register(fd, select.EPOLLIN)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64") or sys.platform != "linux", reason="not everywhere")
@pytest.mark.parametrize("way", ["held"], indirect=True)
def test_on_linux_nothing_is_left_to_python(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    number: Any = SimpleNamespace(fileno=ours.fileno)  # that is all that they need of a socket
    assert send(number, b"m") == 1
    theirs.send(b"m")
    assert Receiver(10)(number) == b"m"
    epoll = Epoll()
    python = epoll._python
    epoll._python = SimpleNamespace(fileno=python.fileno)  # type: ignore[assignment]
    epoll.register(ours.fileno(), select.EPOLLIN)
    epoll.modify(ours.fileno(), select.EPOLLOUT)
    assert python.poll(0) == [(ours.fileno(), select.EPOLLOUT)]
    epoll.unregister(ours.fileno())
    python.close()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = Acceptor(listening)()
        with connection:
            assert isinstance(connection, NonBlockingSocket)
