"""A message's body: what XML, JSON and plain text make of a value, and what they refuse."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushdemo.topics import content
from pushdemo.topics.content import BOUNDARY

# The productions Char of XML 1.0 (section 2.2) as ranges: what is not in them, no document can carry.
CHAR = ((0x9, 0xA), (0xD, 0xD), (0x20, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))

ANY_TEXT = st.text(st.characters(exclude_categories=()))
AWKWARD = st.lists(
    st.one_of(ANY_TEXT, st.sampled_from(["&", "<", ">", "]]>", "<![CDATA[", "&#13;", "\r\n", "\x00", BOUNDARY, "--"]))
).map("".join)


def carried(text: str) -> str:
    """What of a text XML can carry: U+FFFD for each character that it cannot."""
    return "".join(c if any(first <= ord(c) <= last for first, last in CHAR) else "\ufffd" for c in text)


def read(body: bytes) -> str:
    root = ElementTree.fromstring(body)
    assert root.tag == "message"
    assert not list(root)
    return root.text or ""


@given(AWKWARD)
def test_any_text_comes_back_out_of_an_xml_parser(text: str) -> None:
    assert read(content.xml(text)) == carried(text)


@given(AWKWARD)
def test_no_text_puts_the_boundary_into_xml(text: str) -> None:
    assert BOUNDARY.encode() not in content.xml(text + BOUNDARY + text)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        "<b>&amp;</b> ]]> <![CDATA[ <!-- --> <?x?>",
        "Ὀδυσσεύς, Одиссей, 奥德修斯, أوديسيوس, ओडीसियस, 𝄞, 👩\u200d🚀, e\u0301",
        "tab\t line\n feed, CR\r alone, \r\n both, NEL\x85, \u2028",
        f"\r\n--{BOUNDARY}\r\nContent-Type: text/html\r\n\r\n<script>",
        f"{BOUNDARY}{BOUNDARY}--",
    ],
)
def test_text_that_xml_can_carry_is_not_changed(text: str) -> None:
    assert read(content.body(content.XML, text)) == text


def test_control_characters_become_the_replacement_character() -> None:
    assert read(content.xml("a\x00b\x0b\x1b[31mc\ud800\uffff")) == "a\ufffdb\ufffd\ufffd[31mc\ufffd\ufffd"


def test_the_parts_of_a_boundary_are_ordinary_text() -> None:
    assert BOUNDARY[1:].encode() in content.xml(BOUNDARY[1:])


@pytest.mark.parametrize(
    "content_type", [content.XML, "text/xml;charset=utf-8", "text/plain", "text/html", "image/png"]
)
@pytest.mark.parametrize("value", [{"a": 1}, {}, [1], (), {1}, frozenset()])
def test_a_dict_or_a_list_is_json_alone(content_type: str, value: Any) -> None:
    with pytest.raises(TypeError, match='content_type="application/json"'):
        content.body(content_type, value)


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (None, "None"), (1.5, "1.5")])
def test_xml_takes_any_value_as_its_text(value: Any, text: str) -> None:
    assert read(content.body("text/xml; charset=utf-8", value)) == text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.heavy
@given(JSON_VALUES)
def test_any_json_value_comes_back(value: Any) -> None:
    body = content.body("application/json", value)
    assert json.loads(body) == value
    assert b"\n" not in body, "a line of JSON lines is one line"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": -math.inf}])
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        content.body("application/json", value)


@pytest.mark.parametrize("value", [{1, 2}, object()])
def test_what_is_no_json_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="JSON"):
        content.body("application/problem+json", value)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_half_a_surrogate_pair_is_refused_where_nothing_can_stand_for_it(content_type: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        content.body(content_type, "\ud800")


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n\x00"),
        ("image/svg+xml", b"<svg>\xff</svg>"),
        ("application/xml", "<message>é\r\n</message>".encode()),
        ("text/plain", "é\r\n\x00".encode()),
        ("application/json", '{"é": [1.50, 1e400, "\\n"]}'.encode()),
    ],
)
def test_bytes_are_taken_as_they_are(content_type: str, value: bytes) -> None:
    assert content.body(content_type, value) == value


def test_json_of_several_lines_becomes_one() -> None:
    assert content.body("application/json", b'{\r\n"a":\n1}') == b'{  "a": 1}'


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ("text/plain", b"\xff"),
        ("application/xml", "<message>é</message>".encode("latin-1")),
        ("application/json", b'"\xff"'),
        ("application/json", '"é"'.encode("utf-16")),
        ("application/json", b"{"),
        ("application/json", b""),
        ("application/json", b"NaN"),
        ("application/geo+json", b"1 2"),
    ],
)
def test_bytes_that_are_not_what_the_type_says_are_refused(content_type: str, value: bytes) -> None:
    with pytest.raises(ValueError, match=f"not a body of type {re.escape(content_type)} in UTF-8"):
        content.body(content_type, value)


def test_plain_text_is_utf_8() -> None:
    assert content.body("text/plain", "Ὀδυσσεύς ]]>\r\n") == "Ὀδυσσεύς ]]>\r\n".encode()


def test_a_picture_is_not_made_of_a_number() -> None:
    with pytest.raises(TypeError, match=r"image/svg\+xml is text or bytes, not int"):
        content.body("image/svg+xml", 7)


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ("text/plain", f"a\r\n--{BOUNDARY}--"),
        ("image/png", b"\x89PNG" + BOUNDARY.encode()),
        ("application/xml", f"<message>{BOUNDARY}</message>".encode()),
        ("application/json", {"text": BOUNDARY}),
    ],
)
def test_a_body_that_would_forge_a_part_is_refused(content_type: str, value: Any) -> None:
    with pytest.raises(ValueError, match="boundary"):
        content.body(content_type, value)
