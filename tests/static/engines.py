"""What runs push.js and poll.js for a test: node, or Chromium.

Both are told what to do, and say what happened, through drive.mjs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOUND = 20.0  # seconds that a test waits for what must come

HERE = Path(__file__).parent


class Watch:
    """One subscription: what it has told so far, in order, and by kind."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self.told: list[dict[str, Any]] = []

    @property
    def ids(self) -> list[str]:
        return [message["id"] for message in self.messages]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [event["message"] for event in self.told if "message" in event]

    @property
    def states(self) -> list[dict[str, Any]]:
        return [event["state"] for event in self.told if "state" in event]

    @property
    def resets(self) -> int:
        return sum("reset" in event for event in self.told)

    def first(self, kind: str) -> Any:
        """The first event of this kind, once it has come."""
        self.until(lambda watch: any(kind in event for event in watch.told))
        return next(event[kind] for event in self.told if kind in event)

    def of(self, kind: str) -> list[Any]:
        """All events of this kind so far."""
        return [event[kind] for event in self.told if kind in event]

    def until(self, condition: Callable[[Watch], Any]) -> Watch:
        """Reads on until the condition holds; fails with what was told where it does not within the bound."""
        deadline = time.monotonic() + BOUND
        while not condition(self):
            left = deadline - time.monotonic()
            assert left > 0, f"not within {BOUND} s; the last was {self.told[-9:]}"
            self._engine.read(self.name, self.told, left)
        return self

    def state(self, name: str) -> dict[str, Any]:
        """The state of this name that comes next, or has come last."""
        self.until(lambda watch: any(state["state"] == name for state in watch.states))
        return [state for state in self.states if state["state"] == name][-1]

    def close(self) -> None:
        self._engine.tell({"do": "close", "name": self.name})
        self.until(lambda watch: any("closed" in event for event in watch.told))


class Engine:
    """What both have in common: events by the name of their subscription."""

    names = map(str, itertools.count())

    def __init__(self) -> None:
        self.uncaught = Watch(self, "uncaught")  # what the page's own code threw and nobody caught

    def subscribe(self, url: str, **options: Any) -> Watch:
        return self.do("subscribe", url=url, options=options)

    def do(self, what: str, **parameters: Any) -> Watch:
        """Gives a command of drive.mjs; the Watch sees what comes of it."""
        name = next(self.names)
        self.tell({"do": what, "name": name, **parameters})
        return Watch(self, name)

    def mistakes(self) -> list[str]:
        """What nobody has caught since the last call."""
        self.read("uncaught", self.uncaught.told, 0)
        errors = self.uncaught.of("error")
        self.uncaught.told.clear()
        return errors

    def tell(self, command: dict[str, Any]) -> None:
        raise NotImplementedError

    def read(self, name: str, told: list[dict[str, Any]], limit: float) -> None:
        """Appends to `told` what the subscription has said since, waiting for it at most `limit` seconds."""
        raise NotImplementedError


class Node(Engine):
    def __init__(self, program: str, folder: Path) -> None:
        super().__init__()
        command = [program, str(HERE / "node.mjs"), folder.as_uri() + "/"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._events: dict[str, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()  # over the table of queues: the reader's thread adds to it too
        self._reader = threading.Thread(target=self._read_all)
        self._reader.start()

    def tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin
        print(json.dumps(command), file=self._process.stdin, flush=True)

    def read(self, name: str, told: list[dict[str, Any]], limit: float) -> None:
        with contextlib.suppress(queue.Empty):
            told.append(self._queue(name).get(timeout=limit))

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        assert self._process.wait(BOUND) == 0
        self._reader.join()
        self._process.stdout.close()

    def _queue(self, name: str) -> queue.SimpleQueue[dict[str, Any]]:
        with self._lock:
            return self._events.setdefault(name, queue.SimpleQueue())

    def _read_all(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            event = json.loads(line)
            self._queue(event["name"]).put(event)


class Browser(Engine):
    def __init__(self, driver: Any, page: str) -> None:
        super().__init__()
        self.driver = driver
        self._events: dict[str, list[dict[str, Any]]] = {}
        driver.set_script_timeout(BOUND)
        driver.get(page)

    def tell(self, command: dict[str, Any]) -> None:
        self.driver.execute_script("act(arguments[0])", command)

    def read(self, name: str, told: list[dict[str, Any]], limit: float) -> None:
        if not self._events.get(name):
            script = "const [limit, done] = arguments; take(limit).then(done)"
            for event in self.driver.execute_async_script(script, min(limit, BOUND / 2) * 1000):
                self._events.setdefault(event["name"], []).append(event)
        told += self._events.pop(name, [])
