"""`/prime`, and the numbers that it yields."""

from __future__ import annotations

from itertools import islice

from webtest import TestApp

from pushdemo.demo.primes import primes


def test_prime_gives_the_posts_series(app: TestApp) -> None:
    answers = [app.get("/prime?key=K").json for _ in range(6)]
    assert [answer["content"] for answer in answers] == [1, 2, 3, 5, 7, 11]
    assert answers[0] == {"state": "ready", "content": 1, "count": 1, "key": "K"}


def test_primes_are_one_and_the_primes() -> None:
    sieve = [number for number in range(2, 2000) if all(number % divisor for divisor in range(2, number))]
    assert list(islice(primes(), len(sieve) + 1)) == [1, *sieve]
