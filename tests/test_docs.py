"""The documents: what they refer to is there, and what must be in them is; the README's few lines run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

import pushdemo
from tests.support import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a) [^>]*(?:src|href)=\"([^\"]+)\"")


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """What a document's headings are called in an address."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    (document, link)
    for document in DOCUMENTS
    for found in LINK.findall(prose(document))
    for link in found
    if link and not re.match(r"[a-z]+:", link)
]


def test_there_are_documents_with_links() -> None:
    assert {"README.md", "CHANGES.md", "tutorial.md", "inside.md"} <= {document.name for document in DOCUMENTS}
    assert len(LINKS) >= 4


@pytest.mark.parametrize(("document", "link"), LINKS, ids=[f"{document.name}-{link}" for document, link in LINKS])
def test_what_a_link_leads_to_is_there(document: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    assert target.is_relative_to(ROOT)
    assert target.exists(), f"{document.name} links to {link}"
    if anchor:
        assert anchor in anchors(target), f"{document.name} links to {link}; there are {sorted(anchors(target))}"


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readmes_lines_for_an_application_do_what_they_say() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"current_prices": lambda: {"apples": 100}}
    exec(re.search(r"^```python\n(def includeme.*?)^```$", readme, re.MULTILINE | re.DOTALL)[1], names)  # type: ignore[index]
    (served,) = re.findall(r'`config\.add_static_view\("(\w+)", "([\w:]+)"\)`', readme)
    (module,) = re.findall(r'^import \{subscribe\} from "(.+)";$', readme, re.MULTILINE)
    with Configurator() as config:
        names["includeme"](config)
        config.add_static_view(*served)
        app = TestApp(config.make_wsgi_app())
    try:
        (message,) = app.get("/prices?transport=longpoll").json["messages"]
        assert message["content"] == {"apples": 100}
        assert "export function subscribe" in app.get(module).text
    finally:
        app.app.registry["pushdemo.topics"].close()


def test_the_tree_has_every_folder_and_the_way_of_a_message_names_modules_that_there_are() -> None:
    inside = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")
    package = ROOT / "pushdemo"
    told = set(re.findall(r"^  ([\w.]+/?) +\w", inside, re.MULTILINE))
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {path.name for path in package.glob("*.py")} - {"__init__.py"} == told
    named = set(re.findall(r"\b([a-z_]+/[a-z_]+\.py)\b", inside))
    assert len(named) > 10
    assert {name for name in named if not (package / name).exists()} == {"tests/test_imports.py"}


@pytest.mark.heavy
def test_the_reference_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in pushdemo.__all__:
        assert f'id="pushdemo.{name}"' in page, f"docs/api.rst does not tell of pushdemo.{name}"
