"""docs/benchmarks.md from what bench.py measured: a summary, and a table for each workload."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import tables
import workloads
from measure import Spread, spread

PAGE = machine.ROOT / "docs" / "benchmarks.md"
OURS = ("mpipe", "mpipe_auto")
MIB = 1 << 20

Entries = Mapping[str, dict[str, Any]]
"""What is known of each way to run a workload: see `bench.told`."""


def line(entry: Any) -> str:
    """How a run went, for whoever watches."""
    title = entry.way.title + (f" x {entry.way.workers}" if entry.way.workers else "")
    if entry.failed:
        return f"{title}: {entry.failed}"
    run = entry.runs[-1]
    if "wall" in run:
        return f"{title}: {run.get('speed_up', 1):.2f} x the serial loop, {run['wall']:.2f} s"
    if "pss" in run:
        return f"{title}: {peak(run) / MIB:.0f} MiB, {run['ahead']:,} items ahead"
    return f"{title}: p50 {run['delays_us'][500]:.0f} us, p99 {run['delays_us'][990]:.0f} us"


def peak(run: Mapping[str, Any]) -> float:
    """The most memory seen, in bytes."""
    return float(max(size for _, size in run["pss"]))


def over(entry: Mapping[str, Any], figure: Callable[[Any], float]) -> Spread:
    """A figure of all runs of an entry."""
    return spread(figure(run) for run in entry["runs"])


def speed_up(entry: Mapping[str, Any]) -> float:
    return over(entry, lambda run: run["speed_up"]).median


def cpu_us(entry: Mapping[str, Any]) -> float:
    """CPU time of all processes for an item."""
    return over(entry, lambda run: 1e6 * run["cpu"] / run["items"]).median


def name(entry: Mapping[str, Any]) -> str:
    title = tables.cell(entry["title"])
    return f"**{title}**" if peer(entry) in OURS else title


# A table for each kind of workload.


def rates(entries: Entries) -> str:
    if any(entry["case"]["workers"] for entry in done(entries)):
        return rates_by_workers(entries)
    limits = [speed_up(entry) for entry in done(entries) if peer(entry) == "ideal"]
    costs = ("CPU per item", "beside the loop's")
    head = ("", "speed-up", "of the ideal", "items/s", *costs, "items", "in lists of")
    rows = [
        [
            name(entry),
            f"{over(entry, lambda run: run['speed_up']):.2f}",
            f"{speed_up(entry) / limits[0]:.0%}" if limits else "-",
            f"{over(entry, lambda run: run['items'] / run['wall']).median:,.0f}",
            f"{cpu_us(entry):,.2f} us",
            f"{over(entry, lambda run: run['cpu_ratio']):.2f}",
            f"{entry['case']['items']:,}",
            f"{entry['case']['batch']:,}",
        ]
        for entry in sorted(done(entries), key=speed_up, reverse=True)
    ]
    return tables.markdown(head, rows)


def rates_by_workers(entries: Entries) -> str:
    """Speed-ups, a row a tool, a column for each number of workers."""
    by_title: dict[str, dict[int, str]] = {}
    for entry in done(entries):
        if entry["case"]["workers"]:
            figure = f"{over(entry, lambda run: run['speed_up']):.2f}"
            by_title.setdefault(name(entry), {})[entry["case"]["workers"]] = figure
    counts = sorted({count for figures in by_title.values() for count in figures})
    rows = [
        [title, *(figures.get(count, "-") for count in counts)]
        for title, figures in by_title.items()
    ]
    return tables.markdown(["speed-up on so many workers", *map(str, counts)], rows)


def delays(entries: Entries) -> str:
    marks = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    head = ("microseconds", *marks, "CPU per item, start included")
    rows = [
        [name(e), *(f"{delay(e, at):,.0f}" for at in marks.values()), f"{cpu_us(e):,.0f}"]
        for e in sorted(done(entries), key=lambda e: delay(e, 500).median)
    ]
    return tables.markdown(head, rows)


def delay(entry: Mapping[str, Any], at: int) -> Spread:
    """A percentile of the delays, `at` in thousandths."""
    return over(entry, lambda run: float(run["delays_us"][at]))


def sizes(entries: Entries) -> str:
    head = ("", "most memory", "source ahead by", "outputs read")
    rows = [
        [
            name(e),
            f"{over(e, peak).median / MIB:,.0f} MiB",
            f"{over(e, lambda run: run['ahead']).median:,.0f}",
            f"{over(e, lambda run: run['outputs']).median:,.0f}",
        ]
        for e in sorted(done(entries), key=lambda e: over(e, peak).median)
    ]
    return tables.markdown(head, rows)


TABLES = {"rate": rates, "latency": delays, "memory": sizes}


def peer(entry: Mapping[str, Any]) -> str:
    return str(entry["case"]["peer"])


def done(entries: Entries) -> list[dict[str, Any]]:
    return [entry for entry in entries.values() if entry["runs"] and not entry["failed"]]


PICTURES = ("scaling", "trickle", "slow_sink", "throughput")
"""Plots, by the workload that they are of; "throughput" is of several."""


def picture(of: str) -> list[str]:
    return [f"![{of.replace('_', ' ')}](plots/{of}.png)"] if of in PICTURES else []


def section(workload: str, entries: Entries) -> str:
    known = workloads.load(workload)
    parts = [f"### {known.title}", known.says, *picture(workload), TABLES[known.measure](entries)]
    parts += [
        f"{tables.cell(entry['title'])} did not do it: {tables.cell(entry['failed'], 200)}"
        for entry in entries.values()
        if entry["failed"]
    ]
    return "\n\n".join(parts)


# What matters most.


@dataclass(frozen=True)
class Figure:
    """The one figure by which tools are compared in a kind of workload."""

    of: Callable[[Mapping[str, Any]], float]
    shown: Callable[[Mapping[str, Any]], str]
    more_is_better: bool

    def beside(self, entry: Mapping[str, Any], other: Mapping[str, Any]) -> str:
        """How many times as good an entry is as another."""
        ratio = self.of(entry) / self.of(other)
        return f"{ratio if self.more_is_better else 1 / ratio:.2f}"


def median_us(entry: Mapping[str, Any]) -> float:
    return delay(entry, 500).median


def peak_mib(entry: Mapping[str, Any]) -> float:
    return over(entry, peak).median / MIB


FIGURES = {
    "rate": Figure(speed_up, lambda e: f"{speed_up(e):.2f} x, {cpu_us(e):,.2f} us", True),
    "latency": Figure(median_us, lambda e: f"{median_us(e):,.0f} us (p50)", False),
    "memory": Figure(peak_mib, lambda e: f"{peak_mib(e):,.0f} MiB", False),
}


def summary(report: Mapping[str, Entries]) -> str:
    """Speed-up and CPU time per item, or what else matters; of mpipe and the best others."""
    head = ("", "ideal", "best other tool", "mpipe", "as good as that", "as the ideal")
    rows = [
        _summed(workloads.load(name), entries)
        for name, entries in report.items()
        if not workloads.load(name).workers
    ]
    return tables.markdown(head, filter(None, rows))


def _summed(workload: workloads.Workload, entries: Entries) -> list[str]:
    """A row, or nothing where there is nothing to compare."""
    figure = FIGURES[workload.measure]
    best = max if figure.more_is_better else min
    ours = [entry for entry in done(entries) if peer(entry) in OURS]
    others = [entry for entry in done(entries) if peer(entry) not in (*OURS, "serial", "ideal")]
    limits = [entry for entry in done(entries) if peer(entry) == "ideal"]
    if not ours or not others:
        return []
    mine, other = best(ours, key=figure.of), best(others, key=figure.of)
    return [
        workload.title,
        figure.shown(limits[0]) if limits else "-",
        *(f"{figure.shown(entry)}: {tables.cell(entry['title'])}" for entry in (other, mine)),
        figure.beside(mine, other),
        figure.beside(mine, limits[0]) if limits else "-",
    ]


def conditions(report: Mapping[str, Entries]) -> str:
    """Where, when and of which versions."""
    known = [entry["machine"] for entries in report.values() for entry in entries.values()]
    days = sorted({m["date"][:10] for m in known})
    commits = sorted({machine.commit(m) for m in known})
    latest = known[-1]
    return (
        f"{latest['cpu']}, {latest['cores']} cores, {latest['kernel']}, Python {latest['python']}; "
        f"mpipe at commit {', '.join(commits)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}; "
        f"load before the start {max(m['load'] for m in known):.1f} at most."
    )


def text(report: Mapping[str, Entries]) -> str:
    parts = [conditions(report), summary(report), *picture("throughput")]
    return "\n\n".join([*parts, *(section(name, entries) for name, entries in report.items())])


def saved(folder: Path, order: tuple[str, ...]) -> dict[str, Entries]:
    """The report of each workload that was measured."""
    files = {name: folder / f"{name}.json" for name in order}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
