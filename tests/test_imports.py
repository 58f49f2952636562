"""Who may import whom: down the list demo application -> adapters -> core, and one third party an adapter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = "pushdemo"

# The one third party that each adapter knows. What is not an adapter or of the demo is core.
ADAPTERS = {
    "addon": {"pyramid"},
    "itemstream": {"pyramid"},
    "responses": {"pyramid"},
    "server": {"waitress"},
    "settings": set(),
    "yielding": set(),
}
ADAPTERS |= {path.stem: {"redis"} for path in (ROOT / PACKAGE).glob("redis_*.py")}
DEMO = {
    "": {"pyramid"},
    "routes": {"pyramid"},
    "sources": {"psutil", "pygal"},
    "views": {"prometheus_client", "pyramid"},
}
CORE = {"cachetools"}

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


def floor(module: str) -> int:
    return 2 if room(module) in DEMO else 1 if room(module) in ADAPTERS else 0


def own(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if name.partition(".")[0] == PACKAGE}


def third_parties(module: str) -> set[str]:
    tops = {name.partition(".")[0] for name in IMPORTS[module]}
    return tops - sys.stdlib_module_names - {PACKAGE}


def test_the_rule_is_held_against_the_whole_package() -> None:
    assert {"pushdemo", "pushdemo.server", "pushdemo.topics", "pushdemo.transports.sse"} <= FILES.keys()
    assert "pushdemo.messages" in own("pushdemo.transports.sse")
    assert third_parties("pushdemo.server") == {"waitress"}


@pytest.mark.parametrize("module", FILES)
def test_each_module_knows_only_its_own_third_party(module: str) -> None:
    allowed = DEMO.get(room(module), ADAPTERS.get(room(module), CORE))
    assert third_parties(module) <= allowed, f"{module} may import {', '.join(allowed) or 'no third party'}"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    upwards = {name for name in own(module) if floor(name) > floor(module)}
    assert not upwards, f"{module} imports what stands on it"


def test_there_is_no_circle() -> None:
    TopologicalSorter({module: own(module) for module in FILES}).prepare()


def test_server_and_responses_meet_at_the_environ_alone() -> None:
    assert "pushdemo.responses" not in own("pushdemo.server")
    assert "pushdemo.server" not in own("pushdemo.responses")


def test_only_what_is_configured_is_imported() -> None:
    script = "import sys, pushdemo; pushdemo.main(); print(*{'redis', 'waitress'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []
