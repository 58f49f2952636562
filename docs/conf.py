"""Sphinx: sphinx-build -W -b html docs build/docs. Pages are Markdown; the reference is made from the docstrings."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import Any

project = "pushdemo"
author = "pushdemo contributors"
copyright = author
release = version = installed("pushdemo")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = "pushdemo"
default_role = "code"  # docstrings have code in single backticks
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
suppress_warnings = ["myst.xref_missing", "myst.header"]  # links to files outside of docs, which the repository has


def _plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: a star or a trailing underscore means nothing else."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_\b(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain)
