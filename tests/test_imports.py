"""Who may import whom: each folder of the package names the folders and the third parties that it may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT

PACKAGE = "pushdemo"


class Rule(NamedTuple):
    """What the modules of one folder, or one module of the package's own, may import."""

    rooms: set[str]
    third_parties: Collection[str] = ()


# From the bottom to the top: a room imports only what stands above its line here.
RULES = {
    "forking": Rule(set()),
    "abandoned": Rule(set()),
    "topics": Rule(set()),
    "transports": Rule({"topics"}),
    "delivery": Rule({"topics", "transports"}),
    "cache": Rule(set(), {"cachetools"}),
    "redis": Rule({"topics", "cache"}, {"redis"}),
    "web": Rule({"topics", "transports", "delivery", "cache", "redis"}, {"pyramid", "prometheus_client", "sqlalchemy"}),
    "server": Rule({"delivery"}, {"waitress"}),
    "check": Rule(set()),
    "operations": Rule({"web"}),
    "testing": Rule({"topics", "delivery", "web"}, {"pyramid"}),
    "publisher": Rule({"topics", "redis", "web"}),
    "": Rule({"topics", "cache", "web", "publisher"}),
    "demo": Rule({"topics", "cache", "web"}, {"pyramid", "psutil", "pygal", "prometheus_client"}),
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def imported(module: str, path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it: at the top, in functions, for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            assert node.module
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            yield from submodules or {node.module}


IMPORTS = {module: set(imported(module, path)) - {"__future__"} for module, path in FILES.items()}


def room(module: str) -> str:
    """The first name below the package: "" for the package itself."""
    return module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def own(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if name.partition(".")[0] == PACKAGE}


def third_parties(module: str) -> set[str]:
    tops = {name.partition(".")[0] for name in IMPORTS[module]}
    return tops - sys.stdlib_module_names - {PACKAGE}


def test_the_rule_is_held_against_the_whole_package() -> None:
    assert {room(module) for module in FILES} == RULES.keys()
    assert "pushdemo.topics.message" in own("pushdemo.transports.sse")
    assert third_parties("pushdemo.server.server") == {"waitress"}


@pytest.mark.parametrize("module", FILES)
def test_each_module_knows_only_the_third_parties_of_its_folder(module: str) -> None:
    allowed = RULES[room(module)].third_parties
    assert third_parties(module) <= set(allowed), f"{module} may import {', '.join(allowed) or 'no third party'}"


@pytest.mark.parametrize("module", FILES)
def test_each_module_imports_only_the_folders_below_it(module: str) -> None:
    allowed = RULES[room(module)].rooms | {room(module), "forking", "abandoned"}
    assert {room(name) for name in own(module)} <= allowed


def test_there_is_no_circle() -> None:
    TopologicalSorter({module: own(module) for module in FILES}).prepare()


def test_only_what_is_configured_is_imported() -> None:
    script = "import sys, pushdemo.demo; pushdemo.demo.main(); print(*{'redis', 'waitress'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []
