"""One run of bench.py, in a cell: python bench_case.py '{"workload": ...}' prints what it took.

The clock runs from the call of the tool until the last output is there and, where the tool ends its
processes by itself, until they have ended. Only clusters (Ray, Dask) are started before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ideal
import peers
import psutil
import workloads
from counted import Counted
from records import note
from ways import Way, run, width
from workloads import Workload


@dataclass(frozen=True)
class Case:
    """What to run."""

    workload: str
    peer: str
    mode: str
    workers: int | None
    items: int
    scale: int
    batch: int


@dataclass(frozen=True)
class Took:
    """Seconds by the clock and of CPU in all processes; and what was computed."""

    wall: float
    cpu: float
    digest: str
    kept: list[Any] | None = None
    """The values themselves, where they are the figures: the delays of a trickle, by number."""


def tree_cpu() -> float:
    """CPU seconds of this process, its living descendants, and all that any of them reaped."""
    me = psutil.Process()
    seconds = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            seconds += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # reaped just now, and counted with its parent in the next look
    return seconds


def measured(case: Case, workload: Workload) -> Took:
    way = Way(case.peer, case.mode, case.workers)
    source = workload.source(case.items, case.scale)
    cpu, start = tree_cpu(), time.perf_counter()
    kept = [workload.keep(output) for output in run(way, workload, source, case.batch)]
    wall = time.perf_counter() - start
    cpu = tree_cpu() - cpu
    if workload.measure == "latency":
        return Took(wall, cpu, "", kept)
    return Took(wall, cpu, workloads.digest(kept))


def limit(case: Case, workload: Workload) -> Took:
    """The same with nothing sent."""
    source = workload.source(case.items, case.scale)
    workers = width(Way(case.peer, case.mode, case.workers), workload)
    took = ideal.shares(partial(_serially, workload), source, workers, workload.equal)
    return Took(took.wall, took.cpu, workloads.digest(took.outputs))


def _serially(workload: Workload, share: Iterable[Any]) -> list[Any]:
    return [workload.keep(output) for output in workloads.serial(workload.stages, share)]


def flood(case: Case, workload: Workload) -> None:
    """Run until stopped from outside, noting how far the source is ahead of the outputs."""
    source = Counted(workload.source(case.items, case.scale))
    way = Way(case.peer, case.mode, case.workers)
    for read, output in enumerate(run(way, workload, source, case.batch), 1):
        note("ahead", [source.pulled - read, output])


def main(given: str) -> None:
    case = Case(**json.loads(given))
    workload = workloads.load(case.workload)
    if case.peer == "ideal":
        print(json.dumps(asdict(limit(case, workload))), flush=True)
        os._exit(0)
    with getattr(peers.load(case.peer), "session", nullcontext)():
        if workload.measure == "memory":
            flood(case, workload)
        else:
            print(json.dumps(asdict(measured(case, workload))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
