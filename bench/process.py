"""What /proc says about processes: CPU time, resident memory, threads. Linux only."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """`pid` and all its living descendants; empty when it has gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that the processes have used so far, in seconds (in steps of 1/100 s a process)."""
    return sum(int(tick) for pid in pids for tick in _stat(pid)[11:13]) / TICKS


def thread_seconds(pid: int) -> float:
    """CPU time of a process's living threads, in seconds: finer than `cpu_seconds`, where no thread has ended."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def resident_bytes(pids: list[int]) -> int:
    """The processes' resident memory together, in bytes."""
    return sum(int(_stat(pid)[21]) for pid in pids) * PAGE


def threads(pids: list[int]) -> int:
    return sum(int(_stat(pid)[17]) for pid in pids)


def machine_seconds() -> float:
    """CPU time that all cores have used so far, in seconds, whoever used it (the host's stealing included)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, _first_line("/proc/stat").split()[1:])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc_pid_stat(5)); the name before them may hold spaces."""
    return _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline()
