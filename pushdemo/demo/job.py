"""The page `/job`, and `/job/run`, long work that reports its progress: it hashes Python's standard library.

Each request runs one slice of the work, in the thread that serves the request.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from pyramid.request import Request
from pyramid.view import view_config

from pushdemo.web.json_yield import json_yield

SLICE = 0.05  # seconds of work for one item: polls are answered soon, and a cancelled job stops soon
CHUNK = 64 * 1024  # bytes read at once: a few ms of hashing, so that a slice ends on time in large files too

# Algorithms whose digest has a fixed length; every Python has them.
ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))

# Directories with other packages, and those that Python may write to while this runs.
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def standard_library() -> Path:
    """Return the directory of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def hash_files(
    root: Path, *, slice_seconds: float = SLICE, clock: Callable[[], float] = time.perf_counter
) -> Generator[dict[str, Any], None, None]:
    """Hash all files below `root` by each of ALGORITHMS, and yield the progress after each slice of the work.

    An item has `files` and `bytes` done, `total_files` and `total_bytes`, `seconds` of work (pauses between two items
    do not count), `bytes_per_second` and `seconds_left` (None in the first item), and `digests` (None in all but the
    last item). `digests` maps each algorithm to the hex digest of a listing: one line "digest  path" for each file, as
    `sha256sum` prints it, sorted by the path's bytes; paths are relative to `root`. Raise OSError for a file that
    cannot be read.
    """
    files = sorted((_name(path, root), path) for path in _files(root))
    progress = Progress(len(files), sum(path.stat().st_size for _, path in files))
    yield progress.item()
    began = clock()
    listings = _hashes()
    for name, path in files:
        hashes = _hashes()
        for chunk in _chunks(path):
            for each in hashes.values():
                each.update(chunk)
            progress.bytes += len(chunk)
            if clock() - began >= slice_seconds:
                progress.seconds += clock() - began
                yield progress.item()
                began = clock()
        progress.files += 1
        for algorithm, listing in listings.items():
            listing.update(b"%s  %s\n" % (hashes[algorithm].hexdigest().encode(), name))
    progress.seconds += clock() - began
    yield progress.item({algorithm: listing.hexdigest() for algorithm, listing in listings.items()})


class Progress:
    """The progress of one job. Only its generator uses it."""

    def __init__(self, total_files: int, total_bytes: int) -> None:
        self.total_files = total_files
        self.total_bytes = total_bytes
        self.files = 0
        self.bytes = 0
        self.seconds = 0.0

    def item(self, digests: dict[str, str] | None = None) -> dict[str, Any]:
        rate = self.bytes / self.seconds if self.bytes and self.seconds else None
        left = (self.total_bytes - self.bytes) / rate if rate else None
        return {**vars(self), "bytes_per_second": rate, "seconds_left": left, "digests": digests}


def _hashes() -> dict[str, Any]:
    return {name: hashlib.new(name, usedforsecurity=False) for name in ALGORITHMS}


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_THE_LIBRARY]
        yield from (path for path in (Path(directory, file) for file in files) if path.is_file())


def _name(path: Path, root: Path) -> bytes:
    return os.fsencode(path.relative_to(root).as_posix())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


@view_config(route_name="job", request_method="GET", renderer="pushdemo.demo:templates/job.jinja2")
def job_page(request: Request) -> dict[str, Any]:
    """Return how many seconds an idle job is kept."""
    return {"timeout": request.registry["pushdemo.generators"].timeout}


@view_config(route_name="run")
@json_yield
def job_run(request: Request) -> Generator[dict[str, Any], None, None]:
    """Run the next slice, and answer with the progress."""
    yield from hash_files(standard_library())
