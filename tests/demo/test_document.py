"""The document's page, and the lines that `/document/lines` yields."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from webtest import TestApp

from pushdemo.demo.document import document, lines


def test_the_document_page_names_its_text(app: TestApp) -> None:
    text = app.get("/document").html.get_text()
    assert document().name in text
    assert f"{document().stat().st_size:,} bytes" in text


def test_lines_gives_the_text_and_then_the_end(app: TestApp) -> None:
    got: list[str] = []
    while (answer := app.get(f"/document/lines?key=K&max=1000&after={len(got)}").json)["state"] == "ready":
        got += answer["content"]
    assert answer["state"] == "done"
    assert "\n".join(got) + "\n" == document().read_text(encoding="utf-8")


def test_the_document_is_a_large_text_of_this_python() -> None:
    assert document().is_relative_to(sysconfig.get_path("stdlib"))
    assert document().stat().st_size > 10_000


def test_lines_are_read_no_further_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("first\n" + "more\n" * 100_000)
    reading = lines(path)
    assert next(reading) == "first"
    file = reading.gi_frame.f_locals["file"]
    assert file.buffer.tell() < path.stat().st_size
    reading.close()
    assert file.closed
