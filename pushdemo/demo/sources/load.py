"""The source of `/load`: what this machine is doing, by psutil. Any thread; a sample is taken once for whoever asks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import psutil

INTERVAL = 2.0  # seconds from one sample to the next
WINDOW = 120.0  # seconds for which samples are kept
_FIRST = 0.25  # seconds over which the first one is taken
_EARLY = 0.75  # of an interval, after which a sample is old: sources that wake apart share one, and none has it twice


class Sample(NamedTuple):
    """The load between two readings: `cores` in percent of each, memory in bytes, the network in bytes a second."""

    time: float
    cores: tuple[float, ...]
    memory: int
    memory_total: int
    received: float
    sent: float


class _Reading(NamedTuple):
    """What the system has counted up to `time`: seconds of each core, and bytes of all network interfaces."""

    time: float
    total: tuple[float, ...]
    idle: tuple[float, ...]
    received: int
    sent: int


class Load:
    """The machine's load over the last WINDOW seconds. `clock` and `sleep` count seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()  # guards the two below; held while a sample is taken, so that it is taken once
        self._samples: deque[Sample] = deque()
        self._reading: _Reading | None = None

    def samples(self) -> list[Sample]:
        """The samples, oldest first; the last is new, or less than an interval old.

        After a pause in which nobody asked they begin anew, and this takes a quarter of a second.
        """
        with self._lock:
            now = self._clock()
            if self._reading is None or now - self._reading.time > 3 * INTERVAL:
                self._samples.clear()
                self._reading = self._read()
                self._sleep(_FIRST)
                self._take()
            elif now - self._reading.time >= _EARLY * INTERVAL:
                self._take()
            return list(self._samples)

    def line(self) -> str:
        """The newest sample as a line: `CPU: 12 %; core 0: 20 %; ...`."""
        return "; ".join(f"{name}: {value}" for name, value in described(self.samples()[-1]).items())

    def _take(self) -> None:
        before, now = self._reading, self._read()
        assert before is not None
        seconds = max(now.time - before.time, 1e-3)
        memory = psutil.virtual_memory()
        self._samples.append(
            Sample(
                now.time,
                _busy(before, now),
                memory.total - memory.available,
                memory.total,
                max(0, now.received - before.received) / seconds,  # an interface that goes takes its count along
                max(0, now.sent - before.sent) / seconds,
            )
        )
        self._reading = now
        while self._samples[0].time < now.time - WINDOW:
            self._samples.popleft()

    def _read(self) -> _Reading:
        cores = psutil.cpu_times(percpu=True)
        network = psutil.net_io_counters()
        received, sent = (network.bytes_recv, network.bytes_sent) if network else (0, 0)  # None: no interface
        return _Reading(self._clock(), tuple(map(_all, cores)), tuple(map(_idle, cores)), received, sent)


def _all(core: tuple[float, ...]) -> float:
    # Linux counts a guest's time within user and nice also.
    return sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0)


def _idle(core: object) -> float:
    return float(getattr(core, "idle", 0.0)) + float(getattr(core, "iowait", 0.0))


def _busy(before: _Reading, now: _Reading) -> tuple[float, ...]:
    pairs = zip(before.total, now.total, before.idle, now.idle, strict=False)  # a core may come or go
    return tuple(_percent(after - first, idle - was_idle) for first, after, was_idle, idle in pairs)


def _percent(total: float, idle: float) -> float:
    return min(100.0, max(0.0, 100 * (1 - idle / total))) if total > 0 else 0.0


def described(sample: Sample) -> dict[str, str]:
    """The figures of a sample with their units, by their names."""
    cores = {f"core {number}": f"{percent:.0f} %" for number, percent in enumerate(sample.cores)}
    return {
        "CPU": f"{sum(sample.cores) / max(1, len(sample.cores)):.0f} %",
        **cores,
        "memory": f"{sample.memory / 2**30:.1f} of {sample.memory_total / 2**30:.1f} GiB",
        "received": f"{sample.received / 1000:,.1f} kB/s",
        "sent": f"{sample.sent / 1000:,.1f} kB/s",
    }
