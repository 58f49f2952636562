"""Patterns: names of topics with placeholders, and the name that values make of one.

`orders.{user}` declares a topic for each value of `user`. In a name, a value is written as `~` and its percent-encoded
UTF-8, in which letters, digits, `_` and `-` alone stand for themselves. It ends with the name, or before a dot, or with
another `~`. A pattern's own text has neither `~` nor `%`, so that each name has one pattern and one set of values:
"all" in `orders.{user}` is `orders.~all`, and never `orders.all`. Pure functions and frozen values; any thread.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

# What `request.push` and `request.publish` take as options, today or soon; later ones will begin with `_`.
OPTIONS = frozenset({"event", "expires", "now", "owner", "registry", "renderer", "start", "tm"})
LONGEST_VALUE = 200  # characters

# What an event source already calls its events (HTML section 9.2), and what the transports tell by one.
_EVENTS = frozenset({"open", "message", "error", "begin", "reset", "failing", "working", "end"})

_TEXT = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class TopicValueError(TypeError, ValueError):
    """A value cannot be a part of a topic's name: its type or its text will not do. The message names the keyword."""


class Reference(NamedTuple):
    """One topic: the pattern that it was declared by, its values as text, and the name that they make."""

    pattern: str
    values: tuple[tuple[str, str], ...]
    name: str

    def __str__(self) -> str:
        return self.name


class Pattern:
    """A declared name: text of letters, digits, `_`, `.` and `-`, up to 100, and placeholders such as `{user}`.

    `placeholders` are their names, in order; `shape` is the text with the names left out, by which two patterns of the
    same topics are known. Raises ValueError for a text that will not do.
    """

    __slots__ = ("_first", "_keywords", "_rest", "_single", "placeholders", "shape", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _PLACEHOLDER.split(text)  # text, placeholder, text, placeholder, ..., text
        self.placeholders = tuple(parts[1::2])
        self.shape = "{}".join(parts[::2])
        self._first = parts[0]
        self._keywords = frozenset(self.placeholders)
        self._single = None if self.placeholders else Reference(text, (), text)  # that of a name
        ends = ["" if following[:1] == "." else "~" for following in parts[2::2]]
        if ends and not parts[-1]:
            ends[-1] = ""
        # Each placeholder with what follows its value.
        self._rest = tuple((name, end + own) for name, end, own in zip(parts[1::2], ends, parts[2::2], strict=True))
        self._check(parts)

    def _check(self, parts: list[str]) -> None:
        fixed = "".join(parts[::2])
        if not (_TEXT.fullmatch(fixed) or (self.placeholders and not fixed)):
            raise ValueError(
                "a topic's name is up to 100 letters, digits, _, . or -, and placeholders such as {user}: "
                f"not {self.text!r}"
            )
        if self.text in _EVENTS:
            raise ValueError(f"a topic cannot be named {self.text}: an event of that name has a meaning of its own")
        for name in self.placeholders:
            _check_placeholder(name, self.text)
        if len(self._keywords) < len(self.placeholders):
            raise ValueError(f"the pattern {self.text} has a placeholder twice")

    def refer(self, values: Mapping[str, object]) -> Reference:
        """The topic of these values.

        Raises TypeError where keywords are missing or too many, and TopicValueError for a value that will not do.
        """
        if values.keys() != self._keywords:
            raise TypeError(self._mismatch(values))
        if self._single:
            return self._single
        texts = tuple((keyword, _text(keyword, values[keyword])) for keyword, _ in self._rest)
        name = self._first
        for (placeholder, text), (_, following) in zip(texts, self._rest, strict=True):
            name = f"{name}~{_encoded(placeholder, text)}{following}"
        return Reference(self.text, texts, name)

    def _mismatch(self, values: Mapping[str, object]) -> str:
        wanted = ", ".join(self.placeholders) or "none"
        missing = ", ".join(name for name in self.placeholders if name not in values)
        unknown = ", ".join(name for name in values if name not in self.placeholders)
        what = " and ".join(filter(None, (missing and f"lacks {missing}", unknown and f"has no {unknown}")))
        return f"topic {self.text} {what}; its keywords: {wanted}"


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """The pattern of this text, made once."""
    return Pattern(text)


def topic(pattern: str, /, **values: str | int) -> Reference:
    """A reference to one topic of a pattern: `topic("price.{symbol}", symbol="ABC")`.

    It stands wherever a topic's name does. A value is text of 1 to 200 characters or a whole number. Raises ValueError
    for a pattern that is none, TypeError where keywords are missing or too many, and TopicValueError, which is both,
    for a value that will not do.
    """
    return parse(pattern).refer(values)


def _check_placeholder(name: str, text: str) -> None:
    if not _KEYWORD.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(
            f"the pattern {text} has a placeholder {{{name}}}: it must be a name that Python takes as a keyword "
            "argument, begins with a letter, and has no : or expression"
        )
    if name in OPTIONS:
        raise ValueError(f"the pattern {text} has a placeholder {{{name}}}, which is the name of an option")


def _text(name: str, value: object) -> str:
    """A value as text."""
    if isinstance(value, str):
        text = str.__str__(value)  # an enumeration's own __str__ may say something else
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**LONGEST_VALUE:  # Python itself refuses to write thousands of digits
            raise TopicValueError(f"{name} must have 1 to {LONGEST_VALUE} digits")
        text = int.__repr__(value)
    else:
        raise TopicValueError(f"{name} must be text or a whole number, not {value!r:.50}")
    if not 0 < len(text) <= LONGEST_VALUE:
        raise TopicValueError(f"{name} must have 1 to {LONGEST_VALUE} characters, not {len(text)}")
    return text


def _encoded(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    try:
        return quote(value, safe="").replace(".", "%2E").replace("~", "%7E")
    except UnicodeEncodeError:
        raise TopicValueError(f"{name} has half a surrogate pair, which no text in UTF-8 can have") from None
