"""The job's page, and the work that `/job/run` does."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from pushdemo.demo.job import ALGORITHMS, hash_files, standard_library
from pushdemo.web.sessions import Sessions


def test_the_job_page_says_how_long_a_job_is_kept(app: TestApp) -> None:
    assert "within 90 seconds" in app.get("/job").html.get_text()


def test_run_tells_how_far_the_job_is_and_is_cancelled(app: TestApp, sessions: Sessions) -> None:
    first, second = (app.get(f"/job/run?key=K&after={after}").json["content"] for after in (0, 1))
    assert first["bytes"] == 0
    assert 0 < second["bytes"] <= second["total_bytes"] == first["total_bytes"]
    app.delete("/job/run?key=K")
    app.get("/job/run?key=K&after=2", status=410)


def test_the_standard_library_is_the_one_that_runs() -> None:
    assert (standard_library() / "os.py").read_bytes() == Path(__import__("os").__file__).read_bytes()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files whose order by path in bytes is not that of the directory walk, and some that are none of the library's."""
    for name in ["b/c.py", "b.py", "a/é.py", "a/empty", "B/large", "site-packages/x.py", "a/__pycache__/y.pyc"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * (100_000 if path.name == "large" else path.name != "empty"))
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(("command", "algorithm"), [("sha256sum", "sha256"), ("md5sum", "md5"), ("b2sum", "blake2b")])
def test_the_digests_are_those_of_the_commands_that_print_them(tree: Path, command: str, algorithm: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"needs the command {command} of GNU coreutils")
    (*_, last) = hash_files(tree)
    names = ["B/large", "a/empty", "a/é.py", "b.py", "b/c.py"]
    printed = subprocess.run([command, *names], cwd=tree, capture_output=True, check=True).stdout
    assert last["digests"][algorithm] == hashlib.new(algorithm, printed).hexdigest()
    assert sorted(last["digests"]) == ALGORITHMS
    assert (last["files"], last["bytes"]) == (5, last["total_bytes"])


def ticking(step: float) -> Callable[[], float]:
    """A clock that goes on by `step` seconds at every look."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock


def test_the_job_tells_after_each_slice_and_counts_its_work_alone(tree: Path) -> None:
    items: list[dict[str, Any]] = list(hash_files(tree, slice_seconds=3, clock=ticking(1)))
    assert [item["files"] for item in items] == sorted(item["files"] for item in items)
    assert len(items) > 3
    first, *middle, last = items
    assert (first["bytes"], first["bytes_per_second"], first["seconds_left"], first["digests"]) == (0, None, None, None)
    for item in middle:
        assert item["digests"] is None
        assert item["bytes_per_second"] == item["bytes"] / item["seconds"]
        assert item["seconds_left"] == pytest.approx(
            (item["total_bytes"] - item["bytes"]) * item["seconds"] / item["bytes"]
        )
    assert last["seconds_left"] == 0


def test_a_closed_job_closes_the_file_that_it_reads(tree: Path) -> None:
    job = hash_files(tree, slice_seconds=0)
    next(job)
    assert next(job)["files"] == 0
    job.close()  # an open file would be a ResourceWarning, which is an error here
