"""Real long work: the digest of every file of a directory, such as Python's standard library.

Pure; runs in the thread that pulls, a slice of the work at each pull.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

SLICE = 0.05  # seconds of work in one pull: a poll is answered soon, and a cancelled job stops soon
CHUNK = 64 * 1024  # bytes read at once: a few ms of hashing, so that a slice ends on time in large files too

# Those with a digest of fixed length, on whichever Python.
ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))

# What others install among the library's files, and what Python may write there while this runs.
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def standard_library() -> Path:
    """The directory of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def hash_files(
    root: Path, *, slice_seconds: float = SLICE, clock: Callable[[], float] = time.perf_counter
) -> Generator[dict[str, Any], None, None]:
    """Hash all files below `root` by all of ALGORITHMS, and tell after each slice of the work how far it is.

    An item has `files` and `bytes` done, `total_files` and `total_bytes`, `seconds` of work (the time between two pulls
    is none), `bytes_per_second` and `seconds_left` (None in the first item), and `digests`, None but in the last item.
    Those are, in hex and by the algorithm's name, the digests of what `sha256sum` and its like print for the files in
    the order of their paths in bytes: a line "digest  path" each, the path relative to `root`, with slashes. Raises
    OSError for a file that cannot be read.
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
    """How far the job is; belongs to its generator."""

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
