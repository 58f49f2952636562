"""`pushdemo.drain`: a stopping server is not ready, serves on for a while, and then ends as ever."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_proxies import get
from tests.readers import Reader
from tests.support import PATIENCE, Client, pserve, wait_until

STREAM = "/server/index"
DRAIN = 1.5  # seconds


@pytest.mark.heavy
def test_a_draining_node_is_not_ready_and_serves_on(tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.interval": 0.05, "pushdemo.drain": DRAIN}) as node:
        assert get(node.port, "/health/ready")[0] == 200
        with Reader(node.port, "sse", STREAM) as reader, Client(node.port) as idle:
            reader.take(2)
            began = time.monotonic()
            node.process.send_signal(signal.SIGTERM)
            wait_until(lambda: get(node.port, "/health/ready")[0] == 503, DRAIN, "the node to say that it is not ready")
            status, body, _ = get(node.port, "/health/ready")
            assert (status, json.loads(body)["reason"]) == (503, "the server is stopping")
            assert get(node.port, "/health/live")[0] == 200
            assert idle.get("/").head()[0] == 200
            reader.take(3)
            assert node.process.wait(PATIENCE) == 0
            assert DRAIN <= time.monotonic() - began < DRAIN + 3
            assert reader.client
            assert b"\nretry: " in reader.raw + reader.client.rest()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with pserve(tmp_path, {"pushdemo.drain": 60}) as node:
        get(node.port, "/")
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: get(node.port, "/health/ready")[0] == 503, what="the node to say that it is not ready")
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(10) == 0
