"""Plots of what bench.py measured: speed-up, throughput, latency, memory."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from bench_page import MIB, OURS, Entries, done, over, peer, speed_up

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

SIZE_INCHES = (8.0, 5.0)


def draw(report: Mapping[str, Entries], folder: Path) -> None:
    """Write a PNG for each plot that there are figures for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=SIZE_INCHES, layout="constrained")
        axes.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)
        if plot(axes, report):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
            figure.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close(figure)


def curve(axes: Axes, entry: Mapping[str, Any], xs: Iterable[float], ys: Iterable[float]) -> None:
    """One tool's line: mpipe's stands out, what is no tool is dashed."""
    ours, limit = peer(entry) in OURS, peer(entry) in ("serial", "ideal")
    axes.plot(
        list(xs),
        list(ys),
        label=entry["title"],
        linewidth=3 if ours else 1.2,
        linestyle="--" if limit else "-",
        color={"mpipe": "black", "ideal": "gray"}.get(peer(entry)),
        marker="." if len(list(xs)) < 20 else None,
        zorder=3 if ours else 2,
    )


def by_title(entries: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["title"], []).append(entry)
    return found


def speed_ups(axes: Axes, report: Mapping[str, Entries]) -> bool:
    entries = [e for e in done(report.get("scaling", {})) if peer(e) != "serial"]
    for runs in by_title(entries).values():
        runs.sort(key=lambda e: e["case"]["workers"])
        counts = [e["case"]["workers"] for e in runs]
        curve(axes, runs[0], counts, map(speed_up, runs))
        axes.set_xticks(counts)
    axes.set(xlabel="workers", ylabel="speed-up (serial loop = 1)", title="Items of 1 ms")
    axes.set_ylim(bottom=0)
    return bool(entries)


COSTS = ("tiny_ints", "cpu_10us", "cpu_100us", "cpu_1ms")


def throughput(axes: Axes, report: Mapping[str, Entries]) -> bool:
    measured = [done(report[name]) for name in COSTS if name in report]
    costs = {id(e): cost_us(entries) for entries in measured for e in entries}
    every = [e for entries in measured for e in entries if peer(e) != "serial"]
    for entries in by_title(every).values():
        curve(axes, entries[0], [costs[id(e)] for e in entries], map(speed_up, entries))
    axes.set(xscale="log", xlabel="cost of an item in a plain loop (us)")
    axes.set(ylabel="throughput (serial loop = 1)", title="Two workers, items of different cost")
    return bool(every)


def cost_us(entries: Iterable[dict[str, Any]]) -> float:
    serial = next(entry for entry in entries if peer(entry) == "serial")
    return 1e6 * over(serial, lambda run: run["wall"] / run["items"]).median


def latencies(axes: Axes, report: Mapping[str, Entries]) -> bool:
    entries = [e for e in done(report.get("trickle", {})) if peer(e) != "serial"]
    for entry in entries:
        runs = [run["delays_us"] for run in entry["runs"]]
        middle = [sorted(at)[len(at) // 2] for at in zip(*runs, strict=True)]
        curve(axes, entry, [q / 10 for q in range(1001)], middle)
    axes.set(xlabel="percentile", ylabel="end to end (us)", yscale="log")
    axes.set(title="One item every 2 ms through three stages")
    return bool(entries)


def memory(axes: Axes, report: Mapping[str, Entries]) -> bool:
    entries = done(report.get("slow_sink", {}))
    for entry in entries:
        pss = [(at, size) for at, size in entry["runs"][-1]["pss"] if size]  # until it was ended
        curve(axes, entry, [at for at, _ in pss], [size / MIB for _, size in pss])
    axes.set(xlabel="seconds", ylabel="memory of all processes (MiB, PSS)", yscale="log")
    axes.set(title="A fast source and a slow sink")
    return bool(entries)


PLOTS = {
    "scaling": speed_ups,
    "throughput": throughput,
    "trickle": latencies,
    "slow_sink": memory,
}
