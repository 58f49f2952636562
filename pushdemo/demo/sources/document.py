"""A large text that every Python brings along, line by line. Pure; runs in the thread that pulls."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Generator
from pathlib import Path


def document() -> Path:
    """The Python licence, where this Python was installed with it, else the texts of Python's `help()`.

    Raises FileNotFoundError where the standard library has no files, as inside a zip.
    """
    library = Path(sysconfig.get_path("stdlib"))
    places = [
        library / "LICENSE.txt",
        Path(sys.base_prefix) / "LICENSE.txt",
        library / "pydoc_data" / "topics/topic.py",
    ]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"none of {', '.join(map(str, places))} is there")


def lines(path: Path) -> Generator[str, None, None]:
    """The lines of a UTF-8 text without their ends, read no further than they are asked for."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")
