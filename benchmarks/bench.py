"""mpipe beside what people use today: every workload with every tool, one after the other in turns.

    scripts/bench [--quick] [--only json,frames] [--peers mpipe,pool] [--repeats R] [--page]

Names may be cut short: `--only cpu` are all workloads that begin so. The serial loop and the ideal
are always measured. Each run is a program of its own (bench_case.py) in a cell (cells.py): it
starts from nothing, its results are compared with those of the serial loop, and whatever it leaves
is ended. Where a tool leaves it to its user to send items in lists, the best length of a few is
found first. What is measured goes to results/bench/, one file a workload, beside what was measured
of other tools before; with --page, docs/benchmarks.md and its plots are made of these files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_page
import machine
import peers
import tables
import workloads
from bench_case import Case
from bench_run import MEASURES, Expected, Failed, once, prepared
from cells import end_politely
from measure import RESULTS, save
from rich.console import Console
from ways import LIMITS, Way, ways
from workloads import Workload

WORKLOADS = (
    *("cpu_1ms", "cpu_100us", "cpu_10us", "tiny_ints", "skewed", "json_records", "frames"),
    *("stdlib_files", "trickle", "slow_sink", "scaling"),
)
PEERS = (
    *LIMITS,
    *("mpipe", "mpipe_auto", "pool", "executor", "joblib", "mpire", "pypeln", "spdl"),
    *("spdl_region", "streamable", "queues", "queues_batched", "faster_fifo"),
    *("ray_data", "dask_distributed"),
)
BUSY = 0.5
"""A load above which a machine is too busy to measure."""
QUICK = 10
"""A quick run has so many times fewer items."""

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Entry:
    """A way of a tool, what it is to run, and what came of it."""

    way: Way
    case: Case
    runs: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    def told(self, known: dict[str, Any]) -> dict[str, Any]:
        """An entry of the report, with what is `known` of where it was measured."""
        told = {"title": self.way.title, "case": asdict(self.case), "runs": self.runs}
        return {**told, "failed": self.failed, "machine": known}


def bench(name: str, chosen: Iterable[str], repeats: int | None, quick: bool) -> list[Entry]:
    """Run a workload with all tools in turns."""
    workload = workloads.load(name)
    items = workload.items // (QUICK if quick and workload.measure == "rate" else 1)
    loop = Case(name, "serial", "fused", None, items, workload.scale(), 1)
    entries = []
    for way in ways(workload, chosen):
        case = replace(loop, peer=way.peer, mode=way.mode, workers=way.workers)
        entries.append(ready(Entry(way, case), workload, quick))
    expected = digests(loop)
    for turn in range(1 if quick else repeats or workload.turns):
        take_turn(turn, entries, workload, expected)
    return entries


def ready(entry: Entry, workload: Workload, quick: bool) -> Entry:
    try:
        entry.case = prepared(entry.case, workload, quick)
    except Failed as failure:
        entry.failed = str(failure)
        console.print(f"       {bench_page.line(entry)}", markup=False)
    return entry


def digests(loop: Case) -> Expected:
    """Of the results of the serial loop, for any number of items."""
    known: dict[int, str] = {}

    def expected(case: Case) -> str:
        if case.items not in known:
            known[case.items] = once(replace(loop, items=case.items))["digest"]
        return known[case.items]

    return expected


def take_turn(turn: int, entries: list[Entry], workload: Workload, expected: Expected) -> None:
    base: dict[str, Any] = {}
    for entry in entries:
        if entry.failed or (turn and peers.load(entry.way.peer).ONCE):
            continue
        try:
            run = MEASURES[workload.measure](entry.case, expected)
        except Failed as failure:
            if entry.way.peer == "serial":
                raise
            entry.failed = str(failure)
        else:
            base = run if entry.way.peer == "serial" else base
            entry.runs.append({**run, **beside(run, base)})
        console.print(f"    {turn + 1}  {bench_page.line(entry)}", markup=False)


def beside(run: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """How a run did beside the serial loop of the same turn."""
    if "wall" not in run:
        return {}
    each = run["items"] / base["items"]
    return {
        "speed_up": each * base["wall"] / run["wall"],
        "cpu_ratio": run["cpu"] / (each * base["cpu"]),
    }


# The command.


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="a tenth of the items, once")
    form.add_argument("--page", action="store_true", help="write docs/benchmarks.md")
    for option, known in (("--only", WORKLOADS), ("--peers", PEERS)):
        some_of = f"some of: {', '.join(known)}"
        parser.add_argument(option, type=partial(names, known), default=known, help=some_of)
    parser.add_argument("--repeats", type=int, help="turns of each workload (1 to 5, as it says)")
    return parser.parse_args()


def names(known: Sequence[str], given: str) -> list[str]:
    """Those of `known` that are given, or begin with what is given, in their own order."""
    chosen: set[str] = set()
    for word in given.split(","):
        found = {word} & {*known} or {name for name in known if name.startswith(word)}
        if not found:
            raise argparse.ArgumentTypeError(f"no {word!r}; there are: {', '.join(known)}")
        chosen |= found
    return [name for name in known if name in chosen]


def main() -> None:
    end_politely()
    given = options()
    folder = RESULTS / ("bench-quick" if given.quick else "bench")
    known = machine.facts()
    console.print(machine.one_line(known))
    if known["load"] > BUSY:
        console.print(f"This machine is busy (load {known['load']:.1f}): figures will be off.")
    chosen = [*LIMITS, *(name for name in given.peers if name not in LIMITS)]
    for name in given.only:
        start = time.monotonic()
        console.print(f"[bold]{workloads.load(name).title}[/]")
        entries = bench(name, chosen, given.repeats, given.quick)
        measured = {entry.way.key: entry.told(known) for entry in entries}
        keep(folder / f"{name}.json", measured, all_of_them=set(PEERS) <= {*chosen})
        print(bench_page.section(name, measured))
        console.print(f"    took {time.monotonic() - start:.0f} s")
    if given.page:
        publish(bench_page.saved(folder, WORKLOADS))


def keep(file: Path, measured: dict[str, Any], all_of_them: bool) -> None:
    """Write what was measured; what is known of other tools stays, unless these are all."""
    known = json.loads(file.read_text()) if file.exists() and not all_of_them else {}
    save({**known, **measured}, file)


def publish(report: dict[str, Any]) -> None:
    import plots  # its matplotlib is there where the tools are, and not for tests

    tables.put(bench_page.PAGE, "benchmarks", bench_page.text(report))
    plots.draw(report, bench_page.PAGE.parent / "plots")


if __name__ == "__main__":
    main()
