"""waitress with responses that wait without a thread. Imports delivery, and alone imports waitress."""

from __future__ import annotations

from pushdemo.server.server import Server, main

__all__ = ["Server", "main"]
