"""memorize: a value is computed once for everyone. Knows cachetools alone."""

from __future__ import annotations

from pushdemo.cache.functions import Caches, UnknownFunctionError
from pushdemo.cache.memorize import Memorized
from pushdemo.cache.single_flight import Info, RecursiveCallError

__all__ = ["Caches", "Info", "Memorized", "RecursiveCallError", "UnknownFunctionError"]
