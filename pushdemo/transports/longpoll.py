"""`application/json`: long polling. Each answer is a whole JSON document; the client asks again for what comes next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pushdemo.topics.content import is_text
from pushdemo.topics.message import Message
from pushdemo.transports.base import json_object

name = "longpoll"
media_types = ("application/json",)
response_type = "application/json;charset=utf-8"

carries = is_text

State = Literal["ready", "waiting", "failing", "done"]


def answer(
    state: State,
    messages: Sequence[Message] = (),
    *,
    last_event_id: str = "",
    reset: bool = False,
    failing: bool | None = None,
    retry: int | None = None,
    named: bool = False,
) -> bytes:
    """One answer. "ready" brings messages; "waiting" (nothing came in time), "failing" (the source fails) and "done"
    (the topic is finished) bring none. `retry` is in milliseconds; `last_event_id` is what to ask for the next time.
    `reset`: some were missed before these messages; `failing`: whether the source fails since, where that is news.
    `named`: messages bear their topic's name.
    """
    fields = [
        f'"state": "{state}"',
        f'"messages": [{", ".join(json_object(message, named=named) for message in messages)}]',
    ]
    fields.append(f'"last_event_id": {json.dumps(last_event_id or None)}')
    if reset:
        fields.append('"reset": true')
    if failing is not None:
        fields.append(f'"failing": {json.dumps(failing)}')
    if retry is not None:
        fields.append(f'"retry": {retry:d}')
    return f"{{{', '.join(fields)}}}".encode()
