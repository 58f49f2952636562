"""The wheel and the source distribution: what they hold, and the add-on in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import PATIENCE, ROOT, Client, require, wait_until, write_ini

pytestmark = pytest.mark.heavy

BOUND = 120  # seconds for one of the tools
DEMO = ("jinja2", "prometheus_client", "psutil", "pygal", "pyramid_jinja2")

APP = """
from pyramid.config import Configurator
from pushdemo import json_yield, memorize

@memorize(15)
def price():
    return {"price": 42}

@json_yield
def steps(request):
    yield "first"

def main(global_config, **settings):
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.add_topic("prices", price, content_type="application/json")
        config.add_static_view("static", "pushdemo:static")
        for name, view in {"prices": lambda request: request.push("prices"), "steps": steps}.items():
            config.add_route(name, "/" + name)
            config.add_view(view, route_name=name)
        return config.make_wsgi_app()
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it must succeed."""
    ended = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=BOUND, check=False, env=plain()
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def plain() -> dict[str, str]:
    """The environment without what would lead Python to this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what version control knows or would take, as a repository of its own: a build leaves things behind."""
    require(shutil.which("git"), "git", "git")
    if not (ROOT / ".git").exists():
        pytest.skip("what a release must hold is known to a checkout alone: run this test in one")
    copy = tmp_path_factory.mktemp("source")
    for name in run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", "--all", cwd=copy)
    return copy


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def needed(dist: Distribution) -> dict[str, Distribution]:
    """By name, the distributions without which this one does not run, as they are installed here; extras are not."""
    found: dict[str, Distribution] = {}
    for line in dist.requires or ():
        requirement = Requirement(line)
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            dependency = distribution(requirement.name)
            found |= {requirement.name: dependency} | needed(dependency)
    return found


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and what its metadata asks for, taken from here and no network."""
    env = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", env, cwd=env)
    (packages,) = env.glob("lib/python*/site-packages")
    (metadata,) = (folder for folder in zipfile.Path(wheel).iterdir() if folder.name.endswith(".dist-info"))
    for dependency in needed(PathDistribution(metadata)).values():
        for file in dependency.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), packages / file)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", env / "bin" / "python", "install")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=env)
    return env / "bin"


def test_the_wheel_holds_the_whole_package(source: Path, wheel: Path) -> None:
    files = {str(path.relative_to(source)) for path in (source / "pushdemo").rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {"pushdemo/py.typed", "pushdemo/demo/templates/layout.jinja2", "pushdemo/static/push.js"} <= files
    assert files <= held
    assert {name for name in held if not re.match(r"pushdemo(-[^/]+\.dist-info)?/", name)} == set()
    assert any(name.endswith("LICENSE") for name in held)


def test_the_source_distribution_holds_all_that_is_under_version_control(source: Path, dist: Path) -> None:
    run(sys.executable, "-m", "check_manifest", "--no-build-isolation", source, cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGES.md", "README.md", "development.ini", "tests/support.py"} <= names


def test_an_index_would_take_and_show_them(dist: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)


@contextmanager
def served(folder: Path, bin: Path) -> Iterator[int]:
    """The port of a `pserve` of that environment, with the application in `folder`/app.py."""
    ini = write_ini(folder, {"use": "call:app:main"})
    logfile = ini.with_suffix(".log")
    with logfile.open("wb") as log:
        command = [bin / "python", "-m", "pyramid.scripts.pserve", ini]  # -m: the application is found in its folder
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=plain())
    with process:
        try:
            yield int(wait_until(lambda: re.search(r"Serving on http://[\d.]+:(\d+)", logfile.read_text()))[1])
        finally:
            process.terminate()


def test_an_application_runs_on_the_add_on_alone(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with served(tmp_path, empty) as port:
        with Client(port) as client:
            status, _ = client.get("/prices?transport=jsonlines").head()
            assert status == 200
            entries = [json.loads(line) for line in (client.chunk() + client.chunk()).splitlines()]
            assert {"price": 42} in [entry.get("content") for entry in entries]
        with Client(port) as client:
            assert b'"content": "first"' in client.get("/steps?key=k").response()[2]
            status, _, script = client.get("/static/push.js").response()
            assert (status, b"export function subscribe" in script) == (200, True)
        said = run(empty / "pushdemo-check", "--seconds", "1", f"http://127.0.0.1:{port}/prices", cwd=tmp_path)
        assert "Nothing" in said


def test_the_demo_without_its_extra_says_how_to_get_it(empty: Path, tmp_path: Path) -> None:
    script = "import pushdemo.demo; pushdemo.demo.main()"
    ended = subprocess.run(
        [empty / "python", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=plain(),
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert re.search(r'the demo application needs \w+: pip install "pushdemo\[demo\]"', last)


def test_the_add_on_imports_nothing_of_the_demos() -> None:
    script = (
        "import sys; from pyramid.config import Configurator; config = Configurator(); config.include('pushdemo'); "
        f"config.make_wsgi_app(); print(*sys.modules.keys() & {set(DEMO)!r})"
    )
    assert run(sys.executable, "-c", script, cwd=ROOT).split() == []
    for name in DEMO:
        try:
            distribution(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is not installed, so that this test could not fail")
