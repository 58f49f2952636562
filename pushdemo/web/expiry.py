"""When a stream ends because its right to listen does: the client comes back, and the view decides anew.

Any thread may call these functions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Expires = float | timedelta | datetime | None

EARLY = 0.1  # of the time: streams that began together, after a restart say, do not all come back at one moment


def checked(expires: Expires) -> Expires:
    """Return `expires`. Raises TypeError for what is no time, ValueError for one that is none to wait for."""
    if expires is None:
        return None
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise ValueError(f"expires={expires!r}: must have a time zone, such as datetime.now(UTC)")
        return expires
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"expires={expires!r}: must be a number of seconds, a timedelta or a datetime")
    if not 0 < seconds < math.inf:
        raise ValueError(f"expires={expires!r}: must be a number of seconds above 0, such as expires=300")
    return expires


def deadline(expires: Expires, fraction: Callable[[], float] = random.random) -> float:
    """Return when a stream that begins now ends, by `time.monotonic`: never late, and up to a tenth early at random."""
    if expires is None:
        return math.inf
    if isinstance(expires, datetime):
        seconds = max(0.0, (expires - datetime.now(UTC)).total_seconds())
    else:
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
    return time.monotonic() + seconds * (1 - EARLY * fraction())
