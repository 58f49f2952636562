"""Marks: `heavy` tests run where CI=true, or with `-m heavy`; `io_uring` ones where the kernel has it.

Properties are tried with fewer examples than where CI=true.
"""

from __future__ import annotations

import ctypes
import os
import sys

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


@pytest.fixture(autouse=True)
def _threads_before() -> None:
    """What `threads` of support.py leaves out. It comes first: other fixtures of a test start threads."""
    note_threads()


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not has_io_uring() and (left_out := [item for item in items if "io_uring" in item.keywords]):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if os.environ.get("CI") == "true" or "heavy" in config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="heavy: run with `-m heavy`, or CI=true")
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(skip)
