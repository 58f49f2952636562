"""The wire formats of the streams, written out by hand: what push.js reads is not what pushdemo's own code made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

BOUNDARY = "3f9a0c"


@dataclass(frozen=True)
class Sent:
    """A message as the test means it."""

    id: str
    content: Any
    topic: str = ""
    event: str = ""

    @property
    def body(self) -> bytes:
        return (self.content if isinstance(self.content, str) else json.dumps(self.content)).encode()

    @property
    def item(self) -> dict[str, Any]:
        named = {"topic": self.topic, "event": self.event}
        return {"id": self.id, "content": self.content} | {key: name for key, name in named.items() if name}


class Multipart:
    accept = "multipart/x-mixed-replace"
    content_type = f"multipart/x-mixed-replace;boundary={BOUNDARY}"
    opening = f"--{BOUNDARY}\r\n".encode()
    heartbeat = b"X-Heartbeat: 1\r\n"
    reset = b"X-Reset: 1\r\n"
    failing = b"X-Failing: 1\r\n"
    working = b"X-Failing: 0\r\n"
    end = f"\r\n--{BOUNDARY}--\r\n".encode()

    def message(self, sent: Sent) -> bytes:
        content_type = "application/xml" if isinstance(sent.content, str) else "application/json"
        head = f"Content-Type: {content_type}\r\nContent-Length: {len(sent.body)}\r\nX-Message-Id: {sent.id}\r\n"
        topic = f"X-Topic: {sent.topic}\r\n" if sent.topic else ""
        topic += f"X-Event: {sent.event}\r\n" if sent.event else ""
        return f"{head}{topic}\r\n".encode() + sent.body + f"\r\n--{BOUNDARY}\r\n".encode()

    def begin(self, ids: str) -> bytes:
        return f"X-Last-Event-Id: {ids}\r\n".encode()

    def reset_to(self, id: str) -> bytes:
        return f"X-Last-Event-Id: {id}\r\n".encode() + self.reset

    def retry(self, ms: int) -> bytes:
        return f"X-Retry: {ms}\r\n".encode()


class Events:
    accept = "text/event-stream"
    content_type = "text/event-stream;charset=utf-8"
    opening = b"retry: 3000\n"
    heartbeat = b": heartbeat\n"
    reset = b'event: reset\ndata: {"last_event_id": null}\n\n'
    failing = b'event: failing\ndata: {"last_event_id": null}\n\n'
    working = b'event: working\ndata: {"last_event_id": null}\n\n'
    end = b'event: end\ndata: {"last_event_id": null}\n\n'

    def message(self, sent: Sent) -> bytes:
        event = f"event: {sent.event}\n" if sent.event else ""
        event += f"topic: {sent.topic}\n" if sent.topic else ""
        data = "".join(f"data: {line}\n" for line in sent.body.decode().split("\n"))
        return f"id: {sent.id}\n{event}{data}\n".encode()

    def begin(self, ids: str) -> bytes:
        return f'id: {ids}\nevent: begin\ndata: {{"last_event_id": "{ids}"}}\n\n'.encode()

    def reset_to(self, id: str) -> bytes:
        return f"id: {id}\n".encode() + self.reset

    def retry(self, ms: int) -> bytes:
        return f"retry: {ms}\n".encode()


class Lines:
    accept = "application/x-ndjson"
    content_type = "application/x-ndjson;charset=utf-8"
    opening = b'{"state": "heartbeat"}\n'
    heartbeat = b'{"state": "heartbeat"}\n'
    reset = b'{"state": "reset"}\n'
    failing = b'{"state": "failing"}\n'
    working = b'{"state": "working"}\n'
    end = b'{"state": "done"}\n'

    def message(self, sent: Sent) -> bytes:
        return json.dumps(sent.item, ensure_ascii=False).encode() + b"\n"

    def begin(self, ids: str) -> bytes:
        return json.dumps({"state": "begin", "last_event_id": ids}).encode() + b"\n"

    def reset_to(self, id: str) -> bytes:
        return json.dumps({"state": "reset", "last_event_id": id}).encode() + b"\n"

    def retry(self, ms: int) -> bytes:
        return json.dumps({"state": "waiting", "retry": ms}).encode() + b"\n"


STREAMS: dict[str, Any] = {"multipart": Multipart(), "sse": Events(), "jsonlines": Lines()}


def poll(state: str, *sent: Sent, **more: Any) -> bytes:
    """A long poll's answer."""
    last = sent[-1].id if sent else None
    answer = {"state": state, "messages": [message.item for message in sent], "last_event_id": last} | more
    return json.dumps(answer).encode()
