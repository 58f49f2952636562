"""Clients that others wrote, from their registries: what they make of our streams, and how they come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.readers import pushing
from tests.relay import relay
from tests.support import PATIENCE, require, wait_until

MODULES = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]

# Each reads the address in process.argv[2] and prints a line of JSON for whatever happens.
SAY = "const say = (told) => console.log(JSON.stringify(told));\n"
FETCH_EVENT_SOURCE = """
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = require("@microsoft/fetch-event-source");
fetchEventSource(process.argv[2], {
  onopen: async () => say({ opened: true }),
  onmessage: ({ event, data, id }) => say({ event, id, data: JSON.parse(data) }),
  onclose: () => say({ closed: true }),
  onerror: (error) => { say({ error: error.message }); },
});
"""
POLYFILL = """
globalThis.window = globalThis;
const { EventSourcePolyfill } = require("event-source-polyfill");
"""
LISTEN = """
source.addEventListener("message", ({ data, lastEventId }) => say({ id: lastEventId, data }));
source.addEventListener("reset", ({ data }) => say({ event: "reset", data: JSON.parse(data) }));
"""
RESUMING = {
    "event-source-polyfill": POLYFILL + "const source = new EventSourcePolyfill(process.argv[2]);" + LISTEN,
    "reconnecting-eventsource": """
// A browser's EventSource closes itself at some errors, and this package then makes another one.
class Once extends EventSource {
  constructor(...given) {
    super(...given);
    this.addEventListener("error", () => this.close());
    // In a browser the two are one class, and the package asks for that.
    this.addEventListener("message", (event) => (globalThis.MessageEvent = event.constructor));
  }
}
const { default: Reconnecting } = require("reconnecting-eventsource");
const source = new Reconnecting(process.argv[2], { eventSourceClass: Once, max_retry_time: 100 });
"""
    + LISTEN,
}


class Told:
    """What a script has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = process
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def data(self) -> list[Any]:
        """The data of the unnamed events."""
        return [line["data"] for line in self.lines if "data" in line and not line.get("event")]


@contextmanager
def running(package: str, script: str, url: str) -> Iterator[Told]:
    """Node with a script that uses an npm package."""
    require(shutil.which("node"), "node", "nodejs")
    require(any((folder / package).exists() for folder in MODULES), f"{package} (npm, by NODE_PATH)", "npm")
    command = ["node", "--experimental-eventsource", "--no-warnings", "-e", SAY + script, "unused", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = Told(process)
        try:
            yield told
        finally:
            process.kill()
            process.wait(PATIENCE)
            told.thread.join(PATIENCE)


def test_fetch_event_source_gets_no_event_whose_data_is_no_json() -> None:
    """It dispatches an event at each empty line; a page parses the data of each as JSON."""
    with pushing({"heartbeat": 0.05}, news={"content_type": "application/json"}) as site:
        news = site.topics["news"]
        url = f"http://127.0.0.1:{site.port}/push/news?transport=sse&last_event_id=elsewhere-1"
        with running("@microsoft/fetch-event-source", FETCH_EVENT_SOURCE, url) as told:
            wait_until(lambda: news.clients, what="the client")
            for number in range(3):
                id = news.publish({"n": number}).id
                wait_until(lambda number=number: told.data()[-1:] == [{"n": number}], what="the message")
            news.notify("failing")
            news.end()
            wait_until(lambda: {"closed": True} in told.lines, what="the end")
    assert not [line for line in told.lines if "error" in line]
    assert told.lines.count({"opened": True}) == 1
    assert [line["event"] for line in told.lines if "event" in line] == ["reset", "", "", "", "failing", "end"]
    notices = {line["event"]: line["data"] for line in told.lines if line.get("event")}
    assert notices["reset"]["last_event_id"] == f"{news.epoch}-0"
    assert notices["failing"]["last_event_id"] == notices["end"]["last_event_id"] == id


@pytest.mark.heavy
@pytest.mark.parametrize("package", RESUMING)
def test_a_client_that_names_its_last_id_in_the_query_misses_nothing(package: str) -> None:
    with pushing({"retry": 0.05}) as site, relay(site.port) as between:
        news = site.topics["news"]
        url = f"http://127.0.0.1:{between.port}/push/news?transport=sse"
        with running(package, RESUMING[package], url) as told:
            news.publish("0")
            wait_until(lambda: told.data() == ["0"], what="the first message")
            for number in range(1, 6, 2):
                connections = between.connections
                with between.cut():
                    wait_until(lambda: not news.clients, what="the end of the connection")
                    news.publish(str(number))
                wait_until(lambda before=connections: between.connections > before, what="the next connection")
                news.publish(str(number + 1))
                wait_until(lambda last=number + 1: told.data()[-1:] == [str(last)], what="the messages")
            assert told.data() == [str(number) for number in range(7)]
            assert not [line for line in told.lines if line.get("event") == "reset"]


@pytest.mark.parametrize("transport", ["sse", "jsonlines", "longpoll"])
def test_requests_reads_text_as_utf_8(transport: str) -> None:
    with pushing() as site:
        site.topics["news"].publish("né ✅")
        url = f"http://127.0.0.1:{site.port}/push/news?transport={transport}"
        with requests.get(url, stream=True, timeout=PATIENCE) as response:
            assert response.encoding == "utf-8"
            wanted = "né ✅" if transport == "sse" else json.dumps("né ✅")
            lines = response.iter_lines(chunk_size=1, decode_unicode=True)
            assert wanted in next(line for line in lines if "content" in line or "data:" in line)
