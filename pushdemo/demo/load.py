"""The page `/load`: this machine's load as figures and as a picture, which chart.py draws. Any thread."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
from pyramid.request import Request
from pyramid.response import Response
from pyramid.view import view_config

INTERVAL = 2.0  # seconds from one sample to the next
WINDOW = 120.0  # seconds for which samples are kept
GAP = 3 * INTERVAL  # seconds; two samples that are further apart have a pause between them
_FIRST = 0.25  # seconds over which the first one is taken
_EARLY = 0.75  # of an interval: the age at which a sample is replaced, so that sources that wake apart share one

# The size of the picture in user units, which are pixels where it is not scaled.
WIDE, NARROW = 960, 430
HEIGHT = 620


class Sample(NamedTuple):
    """The load between two readings: `cores` in percent, memory in bytes, the network in bytes a second."""

    time: float
    cores: tuple[float, ...]
    memory: int
    memory_total: int
    received: float
    sent: float


class _Reading(NamedTuple):
    """The system's counters at `time`: seconds of each core, and bytes of all network interfaces."""

    time: float
    total: tuple[float, ...]
    idle: tuple[float, ...]
    received: int
    sent: int


class Load:
    """The samples of the last WINDOW seconds. `clock` and `sleep` count in seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()  # guards the two below; held while a sample is taken: all callers share it
        self._samples: deque[Sample] = deque()
        self._reading: _Reading | None = None

    def samples(self) -> list[Sample]:
        """Return the samples, oldest first; the last one is less than an interval old.

        After a pause without a call this one takes a quarter of a second; samples of the window from before are kept.
        """
        with self._lock:
            now = self._clock()
            if self._reading is None or now - self._reading.time > GAP:
                self._reading = self._read()
                self._sleep(_FIRST)
                self._take()
            elif now - self._reading.time >= _EARLY * INTERVAL:
                self._take()
            return list(self._samples)

    def line(self) -> str:
        """Return the newest sample as a line: `CPU: 12 %; core 0: 20 %; ...`."""
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
                max(0, now.received - before.received) / seconds,  # the count of an interface that goes away is lost
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
    """Return the figures of a sample with their units, keyed by name."""
    cores = {f"core {number}": f"{percent:.0f} %" for number, percent in enumerate(sample.cores)}
    return {
        "CPU": f"{sum(sample.cores) / max(1, len(sample.cores)):.0f} %",
        **cores,
        "memory": f"{sample.memory / 2**30:.1f} of {sample.memory_total / 2**30:.1f} GiB",
        "received": f"{sample.received / 1000:,.1f} kB/s",
        "sent": f"{sample.sent / 1000:,.1f} kB/s",
    }


@view_config(route_name="load", request_method="GET", renderer="pushdemo.demo:templates/load.jinja2")
def load_page(request: Request) -> dict[str, Any]:
    """Return what the template shows. `version` makes the picture's URL unique.

    Firefox lets a request wait for another one with the same URL.
    """
    return {
        "interval": INTERVAL,
        "minutes": WINDOW / 60,
        "heartbeat": request.registry["pushdemo.settings"].heartbeat,
        "version": secrets.token_hex(4),
        "height": HEIGHT,
        "wide": WIDE,
        "narrow": NARROW,
    }


@view_config(route_name="load_figures")
def load_figures(request: Request) -> Response:
    """Stream the topic `load`: a line of text in XML."""
    return request.push("load")


@view_config(route_name="load_chart")
def load_chart(request: Request) -> Response:
    """Stream the pictures for an `<img>`; `?width=narrow` is drawn for a phone."""
    return request.push("load.chart.narrow" if request.GET.get("width") == "narrow" else "load.chart")
