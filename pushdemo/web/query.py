"""The parameters of a request's query (WHATWG URL section 5.1). Runs in the request's thread.

WebOb's `request.GET` is a table that can be changed, and is made anew where it was; a poll asks for nothing else.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from pyramid.request import Request

_PARSED = "pushdemo.query"  # in the environ: the query's text, and what it has


class Query(dict[str, str]):
    """The parameters by name; of one that is given several times, the last. `pairs` are all of them, in order."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def all(self, name: str) -> list[str]:
        """What is given for `name`, in order."""
        return [value for each, value in self.pairs if each == name]


def query_of(request: Request) -> Query:
    """The query's parameters, as text. Raises UnicodeDecodeError where it is not percent-encoded UTF-8."""
    text: str = request.environ.get("QUERY_STRING", "")
    known: tuple[str, Query] | None = request.environ.get(_PARSED)
    if known and known[0] == text:
        return known[1]
    query = Query(parse_qsl(text.encode("latin-1").decode(), keep_blank_values=True, errors="strict"))
    request.environ[_PARSED] = text, query
    return query
