"""pushdemo: a page shows what the server knows, as the server learns it.

`config.include("pushdemo")` adds push to a Pyramid application. The demo application is `pushdemo.demo`.
"""

from __future__ import annotations

from pushdemo.cache.memorize import memorize
from pushdemo.web.config import includeme
from pushdemo.web.json_yield import json_yield

__all__ = ["includeme", "json_yield", "memorize"]
