"""The types of push.js and poll.js: made from their JSDoc, and read by a strict compiler as a bundler finds them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.static.conftest import STATIC, absent
from tests.static.engines import HERE
from tests.support import ROOT


@pytest.fixture(scope="module")
def tsc() -> list[str]:
    """The TypeScript compiler's command."""
    folders = [ROOT / "node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))]
    found = next(
        (folder / "typescript" / "bin" / "tsc" for folder in folders if (folder / "typescript").exists()), None
    )
    node = shutil.which("node")
    if node is None or found is None:
        absent("TypeScript", "npm install --no-save typescript@5")
    return [node, str(found), "--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]


def run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.heavy
def test_the_types_are_those_of_the_comments(tsc: list[str], tmp_path: Path) -> None:
    """They are made by this command; `push.d.ts` and `poll.d.ts` are then copied to pushdemo/static."""
    source = shutil.copytree(STATIC, tmp_path / "source", ignore=shutil.ignore_patterns("*.d.ts"))
    flags = ["--allowJs", "--declaration", "--emitDeclarationOnly", "--module", "nodenext", "--outDir", "../types"]
    run([*tsc, *flags, "push.js", "poll.js"], source)
    for name in ("push.d.ts", "poll.d.ts"):
        assert (STATIC / name).read_text() == (tmp_path / "types" / name).read_text(), name


@pytest.mark.heavy
@pytest.mark.parametrize(("module", "resolution"), [("nodenext", "nodenext"), ("esnext", "bundler")])
def test_a_strict_page_compiles_and_its_mistakes_do_not(
    tsc: list[str], tmp_path: Path, module: str, resolution: str
) -> None:
    shutil.copytree(STATIC, tmp_path / "node_modules" / "pushdemo")
    shutil.copy(HERE / "types.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run([*tsc, "--noEmit", "--module", module, "--moduleResolution", resolution, "types.ts"], tmp_path)


def test_the_package_is_this_ones_and_exports_what_exists() -> None:
    package = json.loads((STATIC / "package.json").read_text())
    assert (package["name"], package["version"]) == ("pushdemo", version("pushdemo"))
    exported = [
        path for entry in package["exports"].values() for path in (entry.values() if dict is type(entry) else [entry])
    ]
    assert all((STATIC / path).is_file() for path in exported)


def test_the_document_names_each_code() -> None:
    types = (STATIC / "push.d.ts").read_text()
    names = {
        name
        for line in re.findall(r"export type (?:StateName|Code) = (.*);", types)
        for name in re.findall(r'"([^"]+)"', line)
    }
    table = (ROOT / "docs" / "page.md").read_text().partition("| `code` | when |")[2].partition("\n\n")[0]
    documented = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    assert documented == names - {"waiting", "failed"}, "these two always have another reason"
