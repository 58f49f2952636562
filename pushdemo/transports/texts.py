"""What the transports that carry text share: which types are text, and a message as a JSON object."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pushdemo.topics.message import Message

_TEXT = re.compile(r"text/|application/(?:xml|json|javascript)\b|(?!image/)[^/]+/[^;]+\+(?:xml|json)\b", re.IGNORECASE)
_JSON = re.compile(r"[^/]+/(?:[^;]+\+)?json\b", re.IGNORECASE)


def is_text(content_type: str) -> bool:
    """Whether a body of this type reads as text. A picture does not, though SVG is XML: nobody reads it as such."""
    return _TEXT.match(content_type) is not None


def is_json(content_type: str) -> bool:
    """Whether a body of this type is a JSON value (RFC 8259; RFC 6839 section 3.1 for `+json`)."""
    return _JSON.match(content_type) is not None


def json_object(message: Message) -> str:
    """`{"id": ..., "content": ...}`: a JSON body as the value that it is, any other as a string."""
    text = message.body.decode()
    content = text if is_json(message.content_type) else json.dumps(text)
    topic = f', "topic": {json.dumps(message.topic)}' if message.topic else ""
    return f'{{"id": {json.dumps(message.id)}, "content": {content}{topic}}}'
