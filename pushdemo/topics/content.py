"""What a message's body is: a published value as bytes, by the topic's content type. How it travels is a transport's.

Pure functions; any thread may call them.
"""

from __future__ import annotations

import json
import re
import secrets
from functools import lru_cache
from typing import Any

XML = "application/xml"

# What separates the parts of a multipart stream. Unguessable, so that no message holds it by chance or by foresight;
# `body` sees to it that none repeats it.
BOUNDARY = secrets.token_hex(16)
_BOUNDARY = BOUNDARY.encode()

_TYPES = 64  # content types that are remembered: an application has a few

# What an event source already calls its events (HTML section 9.2), and what the transports tell by one.
RESERVED_EVENTS = frozenset({"open", "message", "error", "begin", "reset", "failing", "working", "end"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_TEXT = re.compile(r"text/|application/(?:xml|json|javascript)\b|(?!image/)[^/]+/[^;]+\+(?:xml|json)\b", re.IGNORECASE)
_JSON = re.compile(r"[^/]+/(?:[^;]+\+)?json\b", re.IGNORECASE)

# What XML 1.0 (section 2.2, production Char) cannot carry in any form, not even as a character reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")
# RFC 9110 section 8.3.1: a type, a subtype, and parameters whose values are tokens or quoted strings.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = rf"[ \t]*;[ \t]*({_TOKEN})=({_TOKEN}|\"[\t \x21\x23-\x5b\x5d-\x7e]*\")"
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:{_PARAMETER})*")
_PARAMETERS = re.compile(_PARAMETER)
_COMPOSED = (dict, list, tuple, set, frozenset)  # as text they are Python's, which no client reads
_XML_TYPES = re.compile(r"(?:application|text)/xml\b", re.IGNORECASE)


def check_type(content_type: str) -> str:
    """Return `content_type` if bodies can be of this type.

    Raises ValueError if it is not a media type that a header can carry, or names a charset other than UTF-8: every
    body that is text is UTF-8.
    """
    if not _MEDIA_TYPE.fullmatch(content_type):
        raise ValueError(f"content_type={content_type!r}: must be a media type such as text/plain")
    for name, value in _PARAMETERS.findall(content_type):
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise ValueError(f"content_type={content_type!r}: the charset must be utf-8, as messages are sent in it")
    return content_type


def check_event(name: str) -> str:
    """Return `name` if an event can have it; empty is no name.

    Raises ValueError for one that the format cannot carry, or that has a meaning of its own.
    """
    if name in RESERVED_EVENTS or _CONTROL.search(name):
        raise ValueError(f"an event cannot be named {name!r}")
    return name


@lru_cache(_TYPES)
def _is_xml(content_type: str) -> bool:
    return _XML_TYPES.match(content_type) is not None


@lru_cache(_TYPES)
def is_text(content_type: str) -> bool:
    """Whether a body of this type reads as text. A picture does not, though SVG is XML: nobody reads it as such."""
    return _TEXT.match(content_type) is not None


@lru_cache(_TYPES)
def is_json(content_type: str) -> bool:
    """Whether a body of this type is a JSON value (RFC 8259; RFC 6839 section 3.1 for `+json`)."""
    return _JSON.match(content_type) is not None


def body(content_type: str, value: Any) -> bytes:
    """`value` as a body of `content_type`: bytes as they are; else XML, JSON (RFC 8259) or plain text in UTF-8.

    XML is a document with the root `<message>` and `str(value)` as its text. Line breaks in bytes of JSON become
    spaces. Raises TypeError where the value cannot be a body of that type, as a dict or a list can be JSON's alone;
    ValueError for bytes that are no UTF-8 or no JSON where the type says so, and where it holds this process's
    multipart boundary, which would forge a part.
    """
    if isinstance(value, bytes):
        made = _checked(content_type, value)
    elif isinstance(value, _COMPOSED) and not is_json(content_type):
        raise TypeError(
            f"a message of type {content_type} is text or bytes, not {type(value).__name__}: declare the topic with "
            'content_type="application/json"'
        )
    elif _is_xml(content_type):
        return xml(str(value))
    elif is_json(content_type):
        made = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    elif isinstance(value, str):
        made = value.encode()
    else:
        raise TypeError(f"a message of type {content_type} is text or bytes, not {type(value).__name__}")
    if _BOUNDARY in made:
        raise ValueError("a message cannot hold the multipart boundary of the stream that it travels by")
    return made


def _checked(content_type: str, value: bytes) -> bytes:
    """Bytes that every transport can carry which carries their type."""
    try:
        if is_text(content_type):
            value.decode()
        if is_json(content_type):
            json.loads(value.decode(), parse_constant=_refuse)  # of bytes it would take UTF-16 and a byte order mark
            return value.translate(_ONE_LINE)  # JSON has line breaks between its tokens alone
    except ValueError as error:
        raise ValueError(f"not a body of type {content_type} in UTF-8: {error}") from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def xml(text: str) -> bytes:
    """`<message>` with `text`, escaped; characters that XML forbids become U+FFFD. UTF-8, which XML takes for granted.

    CR is a character reference, since a parser turns a bare one into LF (XML 1.0 section 2.11); so is the first
    character of a look-alike of the multipart boundary.
    """
    printable = text.isprintable()  # as most are: then nothing in it is forbidden, and 0.4 us are saved
    if not printable:
        text = _FORBIDDEN.sub("\ufffd", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if not printable:
        text = text.replace("\r", "&#13;")
    if BOUNDARY in text:
        text = text.replace(BOUNDARY, f"&#{ord(BOUNDARY[0])};{BOUNDARY[1:]}")
    return f"<message>{text}</message>".encode()
