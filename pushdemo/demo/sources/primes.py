"""The primes, one at a time, as the second post counts them: from 1 on. Pure; runs in the thread that pulls."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from math import isqrt


def primes() -> Generator[int, None, None]:
    """1, with which the post begins, and then the primes, without an end. Keeps nothing, however far a client goes."""
    yield 1
    yield 2
    for candidate in count(3, 2):
        if all(candidate % divisor for divisor in range(3, isqrt(candidate) + 1, 2)):
            yield candidate
