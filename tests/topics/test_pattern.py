"""Patterns: which are declared, which names their values make, and that no two have one name."""

from __future__ import annotations

import re
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import pushdemo
from pushdemo.topics.pattern import LONGEST_VALUE, OPTIONS, Pattern, TopicValueError, topic

# Text that UTF-8 can carry; all else is refused.
VALUES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20)
TEXTS = st.text("ab.-_", max_size=3)
PATTERNS = st.lists(TEXTS, min_size=2, max_size=4).map(
    lambda texts: "".join(f"{text}{{p{number}}}" for number, text in enumerate(texts[:-1])) + texts[-1]
)


def named(pattern: str, values: list[str]) -> str:
    """The name that the values make, in the order of the placeholders."""
    parsed = Pattern(pattern)
    return parsed.refer(dict(zip(parsed.placeholders, values, strict=True))).name


# -- names


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("all", "orders.~all"),
        ("Ann_O-7", "orders.~Ann_O-7"),
        ("ann@example.org", "orders.~ann%40example%2Eorg"),
        ("~", "orders.~%7E"),
        ("a:b,c", "orders.~a%3Ab%2Cc"),
        ("a/b", "orders.~a%2Fb"),
        ("%41", "orders.~%2541"),
        ("{user}", "orders.~%7Buser%7D"),
        ("\0", "orders.~%00"),
        ("\u202eabc", "orders.~%E2%80%AEabc"),
        ("é", "orders.~%C3%A9"),
        (" ", "orders.~%20"),
        (7, "orders.~7"),
        (-7, "orders.~-7"),
    ],
)
def test_a_value_is_told_from_the_patterns_own_text(value: Any, name: str) -> None:
    assert topic("orders.{user}", user=value).name == name


def test_a_name_without_placeholders_is_itself() -> None:
    assert topic("news.all") == ("news.all", (), "news.all")


def test_a_number_and_its_digits_are_one_topic() -> None:
    assert topic("room.{id}", id=5) == topic("room.{id}", id="5")


def test_values_of_enumerations_are_what_they_stand_for() -> None:
    text, number = Enum("Text", {"A": "a"}, type=str), IntEnum("Number", {"ONE": 1})
    assert topic("t.{a}.{b}", a=text.A, b=number.ONE).name == "t.~a.~1"  # type: ignore[attr-defined]


@given(PATTERNS, st.lists(VALUES, min_size=3, max_size=3), PATTERNS, st.lists(VALUES, min_size=3, max_size=3))
@example("{p0}b", ["a"], "{p0}", ["ab"])
@example("{p0}{p1}", ["1", "2"], "{p0}2", ["1"])
def test_each_name_has_one_pattern_and_one_set_of_values(
    one: str, ones_values: list[str], other: str, others_values: list[str]
) -> None:
    first = (Pattern(one).shape, ones_values[: len(Pattern(one).placeholders)])
    second = (Pattern(other).shape, others_values[: len(Pattern(other).placeholders)])
    assume(first != second)
    assert named(one, first[1]) != named(other, second[1])


@given(PATTERNS, st.lists(VALUES, min_size=3, max_size=3))
def test_every_transport_can_carry_a_name(pattern: str, values: list[str]) -> None:
    name = named(pattern, values[: len(Pattern(pattern).placeholders)])
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", name)
    assert "~" in name, "it is no name that could be declared"


# -- what will not do


@pytest.mark.parametrize("value", [None, True, 1.5, b"ann", ["ann"], object])
def test_a_value_of_another_type_is_refused_by_its_keyword(value: Any) -> None:
    for error in (TypeError, ValueError):
        with pytest.raises(error, match="user must be text or a whole number"):
            topic("orders.{user}", user=value)


@pytest.mark.parametrize(
    "value", ["", "x" * (LONGEST_VALUE + 1), "x" * 10_000, 10**LONGEST_VALUE, -(10**4000), "\ud800"]
)
def test_a_text_that_will_not_do_is_refused_by_its_keyword(value: Any) -> None:
    with pytest.raises(TopicValueError, match=r"^user "):
        topic("orders.{user}", user=value)


def test_the_longest_value_is_taken() -> None:
    assert len(topic("{user}", user="é" * LONGEST_VALUE).name) == 1 + 6 * LONGEST_VALUE


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "lacks user"),
        ({"user": "ann", "room": 1}, "has no room"),
        ({"usr": "ann"}, "lacks user and has no usr"),
    ],
)
def test_missing_and_further_keywords_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"topic orders.{{user}} {words}; its keywords: user")):
        topic("orders.{user}", **values)


@pytest.mark.parametrize(
    "text",
    [
        "a b",
        "a/{b}",
        "{b} c",
        "a{b}/c",
        "{a}b{c}d e",
        "",
        "é{x}",
        "a~{x}",
        "a%{x}",
        "{x",
        "x}",
        "{{x}}",
        "a" * 101 + "{x}",
        "message",
        "end",
    ],
)
def test_a_text_that_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Pattern(text)


@pytest.mark.parametrize("name", [r"x:\d+", "x.y", "1x", "_x", "", "x y", "class", "é", "x!r", *sorted(OPTIONS)])
def test_a_placeholder_is_a_keyword_and_no_option(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{{{name}}}")):
        Pattern(f"orders.{{{name}}}")


def test_a_placeholder_comes_once() -> None:
    with pytest.raises(ValueError, match="has a placeholder twice"):
        Pattern("{a}.{a}")


def test_pattern_and_topic_are_positional_only() -> None:
    assert topic("{pattern}", pattern="x").name == "~x"


def test_an_application_imports_it_from_the_package() -> None:
    assert pushdemo.topic is topic
