"""`config.include("pushdemo.operations")`: what an operator asks a node. See `pushdemo.web.operations`."""

from __future__ import annotations

from pushdemo.web.operations import includeme

__all__ = ["includeme"]
