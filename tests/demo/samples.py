"""What the tests of the load and of its picture share: a clock that passes when told, and samples."""

from __future__ import annotations

from pushdemo.demo.load import Sample


class Clock:
    """Passes when told, and while something sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def sample(time: float, *cores: float, received: float = 0.0, sent: float = 0.0) -> Sample:
    return Sample(time, cores, 2 * 2**30, 8 * 2**30, received, sent)
