"""docs/memorize.md: its module and its test run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

CHAPTER = (ROOT / "docs" / "memorize.md").read_text(encoding="utf-8")
FILE = re.compile(r"^\*\*([\w.]+)\*\*\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.heavy
def test_the_chapter_s_test_passes(tmp_path: Path) -> None:
    files = dict(FILE.findall(CHAPTER))
    assert files.keys() == {"shop.py", "test_shop.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", str(tmp_path)]
    run = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
