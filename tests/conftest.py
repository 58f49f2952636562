"""Marks: `heavy` tests run where CI=true, or with `-m heavy`; `io_uring` ones where the kernel has it.

Properties are tried with fewer examples than where CI=true.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support import note_threads

collect_ignore = [] if sys.platform == "linux" else ["delivery/test_io_uring.py"]


settings.register_profile("daily", max_examples=30)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") != "true":
        settings.load_profile("daily")
    config.addinivalue_line("markers", "heavy: takes long, or a machine with nothing else to do; run with `-m heavy`")
    config.addinivalue_line("markers", "io_uring: deselected where the kernel has none, or forbids it")
    config.addinivalue_line("markers", "network_namespaces: deselected where this process may not make one")


@pytest.fixture(autouse=True)
def _bounds() -> Iterator[None]:
    """Note which threads ran before the test, and close the nodes at Redis that it leaves open.

    It comes first: other fixtures of a test start threads.
    """
    note_threads()
    yield
    if (support := sys.modules.get("tests.redis.support")) is not None:  # a test has imported it
        for node in list(support.Node.open):
            node.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, ours non-blocking."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def pytest_report_header() -> str:
    return f"io_uring: {'yes' if has_io_uring() else 'no, its tests are deselected'}"


def has_io_uring() -> bool:
    """What the kernel says, whatever `Ring` makes of it: io_uring_setup(2), and IORING_FEAT_RW_CUR_POS of Linux 5.6."""
    if sys.platform != "linux":
        return False
    parameters = (ctypes.c_uint32 * 30)()
    descriptor = ctypes.CDLL(None).syscall(425, ctypes.c_long(1), parameters)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return bool(parameters[5] & 8)


def has_network_namespaces() -> bool:
    """Whether this process may make a network namespace and a pair of interfaces (root, with iproute2)."""
    name = f"h{os.getpid() % 100_000}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
        pair = ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b"]
        made = made and subprocess.run(pair, capture_output=True, check=False).returncode == 0
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return made


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, has in (("io_uring", has_io_uring), ("network_namespaces", has_network_namespaces)):
        if (left_out := [item for item in items if mark in item.keywords]) and not has():
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
    if os.environ.get("CI") == "true" or "heavy" in config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="heavy: run with `-m heavy`, or CI=true")
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(skip)
