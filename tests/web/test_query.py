"""A request's query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.request import Request

from pushdemo.web.query import query_of


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("a", [("a", "")]),
        ("a=&=b&&", [("a", ""), ("", "b")]),
        ("a=b=c+d%2Be", [("a", "b=c d+e")]),
        ("n%C3%BC=%E2%82%AC", [("nü", "€")]),
        ("a=\xc3\xbc", [("a", "ü")]),
    ],
)
def test_parameters_are_as_webob_has_them(text: str, pairs: list[tuple[str, str]]) -> None:
    request = Request({"QUERY_STRING": text, "REQUEST_METHOD": "GET"})
    query = query_of(request)
    assert query.pairs == pairs == list(request.GET.items())
    assert dict(query) == dict(pairs), "the last of a name"
    assert query.all("a") == request.GET.getall("a")
    assert query_of(request) is query


@pytest.mark.parametrize("text", ["a=%FF", "%FF=a", "a=\xff", "a=%ED%A0%80"])
def test_what_is_no_utf_8_is_an_error(text: str) -> None:
    with pytest.raises(UnicodeDecodeError):
        query_of(Request({"QUERY_STRING": text}))


def test_a_changed_query_is_read_anew() -> None:
    request = Request({"QUERY_STRING": "transport=sse", "REQUEST_METHOD": "GET"})
    assert query_of(request)["transport"] == "sse"
    request.GET["transport"] = "jsonlines"
    assert query_of(request)["transport"] == "jsonlines"
    assert query_of(Request({})) == {}


@given(st.lists(st.tuples(st.text(), st.text())))
def test_any_text_comes_back(pairs: list[tuple[str, str]]) -> None:
    request = Request({"QUERY_STRING": "", "REQUEST_METHOD": "GET"})
    for name, value in pairs:
        try:
            (name + value).encode()
        except UnicodeEncodeError:
            return
        request.GET.add(name, value)
    assert query_of(request).pairs == pairs
