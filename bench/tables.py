"""The bench's figures as Markdown: medians over the rounds, ratios, what must be reached, how far to trust it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from statistics import median

Sample = dict[str, float]
Samples = dict[str, list[Sample | str]]  # server: a sample a round, or why there is none
Cell = Callable[[Sample], str]

BASE, OURS, NCHAN = "send loop", "pushdemo", "Nchan"
MISSING = "-"
QUIET = 0.15  # cores that the rest of the machine may use before a figure is in doubt


def versions(known: dict[str, tuple[str, str]], peers_python: str) -> str:
    """The head: the machine, and each server's versions or what to install for it."""
    asked = subprocess.run([peers_python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    ours = sys.version.split()[0]
    machine = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores; Python {ours}, the peers' {asked}"
    rows = [[name, found or f"not installed: {needed}"] for name, (found, needed) in known.items()]
    return f"{machine}\n\n{markdown(['server', 'versions'], rows)}"


def table(mode: str, title: str, samples: Samples, judged: bool) -> str:
    """One mode's table, a row a server, then (where `judged`) our bars, and what else used the machine."""
    rows = {name: medians([sample for sample in each if not isinstance(sample, str)]) for name, each in samples.items()}
    columns = COLUMNS[mode](rows)
    lines = [[name, *(attempt(cell, row) for cell in columns.values())] for name, row in rows.items()]
    failures = [f"- {name}: {each}" for name, all_ in samples.items() for each in all_ if isinstance(each, str)]
    parts = [
        f"\n## {title}\n",
        markdown(["server", *columns], lines),
        *failures,
        bars(mode, rows) if judged else "",
        trust(samples),
    ]
    return "\n".join(part for part in parts if part)


def medians(samples: list[Sample]) -> Sample:
    """Median of each figure that every round has; `cpu_low` and `cpu_high` are the extremes, counts are sums."""
    if not samples:
        return {}
    common = set.intersection(*(set(sample) for sample in samples))
    row = {key: median(sample[key] for sample in samples) for key in common}
    row |= {key: sum(sample[key] for sample in samples) for key in common & {"delivered", "expected", "errors", "lost"}}
    costs = [sample["cpu_us"] for sample in samples]
    return row | {"cpu_low": min(costs), "cpu_high": max(costs), "rounds": len(samples)}


def attempt(cell: Cell, row: Sample) -> str:
    try:
        return cell(row)
    except KeyError:
        return MISSING


def fanout_columns(rows: dict[str, Sample]) -> dict[str, Cell]:
    return {
        "held": held,
        "CPU µs a message": cost,
        f"x {BASE}": lambda row: f"{row['cpu_us'] / rows[BASE]['cpu_us']:.2f}",
        f"x {NCHAN}": lambda row: f"{row['cpu_us'] / rows[NCHAN]['cpu_us']:.2f}",
        "cores used": lambda row: f"{row['cpu']:.2f}",
        **memory_columns(),
        "spread p50 / p99 ms": lambda row: f"{row['spread_p50']:.0f} / {row['spread_p99']:.0f}",
        "last client p50 / p99 ms": lambda row: f"{row['last_p50']:.0f} / {row['last_p99']:.0f}",
        "published / s": lambda row: f"{row['rate']:.1f}",
        "delivered of expected": delivered,
        "page p50 / p99 ms": lambda row: f"{row['page_p50']:.1f} / {row['page_p99']:.1f}",
    }


def hold_columns(rows: dict[str, Sample]) -> dict[str, Cell]:
    return {
        "held": held,
        **memory_columns(),
        "first 1,000 s": lambda row: f"{row['first_1000']:.2f}",
        "last 1,000 s": lambda row: f"{row['last_1000']:.2f}",
        "last / first": lambda row: f"{row['last_1000'] / row['first_1000']:.2f}",
        "delivered of expected": delivered,
        "gone after SIGTERM s": lambda row: f"{row['stop']:.1f}",
    }


def polls_columns(rows: dict[str, Sample]) -> dict[str, Cell]:
    return {
        "held": held,
        "CPU µs an answer": cost,
        "threads": lambda row: f"{row['threads']:.0f}",
        "spread p50 / p99 ms": lambda row: f"{row['spread_p50']:.0f} / {row['spread_p99']:.0f}",
        "last client p50 / p99 ms": lambda row: f"{row['last_p50']:.0f} / {row['last_p99']:.0f}",
        "delivered of expected": delivered,
        "clients with every message": lambda row: f"{row['complete']:,.0f}",
        "errors": lambda row: f"{row['errors'] + row['lost']:.0f}",
    }


def memory_columns() -> dict[str, Cell]:
    return {
        "memory added MB": lambda row: f"{row['added'] / 1e6:.1f}",
        "KB a client": lambda row: f"{row['added'] / 1e3 / row['held']:.1f}",
        "threads": lambda row: f"{row['threads']:.0f}",
    }


COLUMNS = {"fanout": fanout_columns, "hold": hold_columns, "polls": polls_columns}


def held(row: Sample) -> str:
    """The clients held, and how many of them, in all rounds, did not stay to the end."""
    return f"{row['held']:,.0f}" + (f" ({row['lost']:.0f} lost)" if row["lost"] else "")


def cost(row: Sample) -> str:
    return f"{row['cpu_us']:.2f} ({row['cpu_low']:.2f}-{row['cpu_high']:.2f})"


def delivered(row: Sample) -> str:
    return f"{row['delivered']:,.0f} / {row['expected']:,.0f}"


def bars(mode: str, rows: dict[str, Sample]) -> str:
    """What pushdemo must reach, and whether it does; nothing where it was not measured."""
    ours = rows.get(OURS)
    if not ours:
        return ""
    wanted: dict[str, list[tuple[str, Callable[[], float], float]]] = {
        "fanout": [
            ("CPU a message / send loop", lambda: ours["cpu_us"] / rows[BASE]["cpu_us"], 1.15),
            ("CPU a message / Nchan", lambda: ours["cpu_us"] / rows[NCHAN]["cpu_us"], 0.65),
            ("page p50, ms", lambda: ours["page_p50"], 20),
        ],
        "hold": [
            ("memory added, MB", lambda: ours["added"] / 1e6, 10),
            ("threads", lambda: ours["threads"], 8),  # the main one, waitress's 4, at most 3 more
            ("last 1,000 / first 1,000", lambda: ours["last_1000"] / ours["first_1000"], 1.5),
        ],
        "polls": [
            ("errors", lambda: ours["errors"] + ours["lost"], 0),
            ("clients without every message", lambda: ours["held"] - ours["complete"], 0),
            ("threads", lambda: ours["threads"], 8),
        ],
    }
    return "\n".join(bar(*each) for each in wanted[mode])


def bar(name: str, figure: Callable[[], float], most: float) -> str:
    try:
        reached = figure()
    except KeyError:
        return f"- {name}: not measured (at most {most:g})"
    return f"- {name}: {reached:.2f}, at most {most:g}: {'reached' if reached <= most else 'NOT REACHED'}"


def trust(samples: Samples) -> str:
    """How much of the machine went to the load and to whatever else ran: where the latter is much, measure again."""
    good = [sample for each in samples.values() for sample in each if not isinstance(sample, str)]
    if not good:
        return ""
    loads, others = sorted(each["load"] for each in good), sorted(each["others"] for each in good)
    noisy = sum(each >= QUIET for each in others)
    return (
        f"\nMedians of {max(map(len, samples.values()))}. Cores used by the load: {loads[0]:.2f} to {loads[-1]:.2f};"
        f" by anything else on the machine: {others[0]:.2f} to {others[-1]:.2f}"
        f" (in {noisy} of {len(others)} runs {QUIET:g} or more, which puts them in doubt)."
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
