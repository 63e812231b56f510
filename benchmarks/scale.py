"""Does mpipe stay as cheap with many workers, many stages and many items?

    python benchmarks/scale.py [--quick] [--repeats R]

Tiny items, so that all there is to see is mpipe's own cost: 1 to 64 workers, 1 to 50 stages of one
worker each, 10^4 to 10^8 items. Cost is what a run takes beyond one without items, by the clock and
in CPU seconds of all processes; the run without items is what starting and ending takes. Memory of
an idle worker is PSS (shared pages counted once). Results are checked exactly. It takes minutes;
--quick: a fifth of the items, up to 10^6 of them, once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import machine
import processes
import tables
from measure import RESULTS, Sample, interleave, save, spread

import mpipe

ITEMS = 1_000_000
SETTLE_S = 1.0
KIB = 1 << 10


@dataclass(frozen=True)
class Shape:
    """A chain of stages with as many workers each, and how many items go through it."""

    workers: int
    stages: int
    items: int

    @property
    def hops(self) -> int:
        """Calls of stages' functions."""
        return max(1, self.items * self.stages)


Groups = dict[str, list[Shape]]


def groups(items: int, longest: int) -> Groups:
    """What is compared; `longest` is a power of ten."""
    return {
        "workers": [Shape(n, 1, items) for n in (1, 2, 4, 8, 16, 32, 64)],
        "stages": [Shape(1, n, items) for n in (1, 2, 5, 10, 20, 50)],
        "items": [Shape(2, 1, 10**power) for power in range(4, longest + 1)],
    }


def add_one(item: int) -> int:
    return item + 1


def chain(shape: Shape) -> mpipe.Pipeline:
    pipeline = mpipe.Pipeline("scale")
    names = [f"stage{i}" for i in range(shape.stages)]
    for name in names:
        pipeline.add_map(name, add_one, workers=shape.workers)
    for first, second in pairwise(names):
        pipeline.connect(first, second)
    return pipeline


def run(shape: Shape) -> None:
    """From nothing to the last result and back to nothing."""
    outputs = chain(shape).run(range(shape.items))
    total = sum(outputs)
    count = outputs.stats().stages[f"stage{shape.stages - 1}"].processed
    expected = shape.items * (shape.items - 1) // 2 + shape.items * shape.stages
    if (total, count) != (expected, shape.items):
        raise SystemExit(f"wrong results: {count:,} of {shape.items:,} items, or others")


def measured(shapes: Iterable[Shape], repeats: int) -> list[dict[str, Any]]:
    """All shapes in turns, each beside the same one without items."""
    shapes = list(shapes)
    every = {shape for full in shapes for shape in (full, replace(full, items=0))}
    samples = interleave({str(shape): partial(run, shape) for shape in every}, repeats)
    return [row(s, samples[str(s)], samples[str(replace(s, items=0))]) for s in shapes]


def row(shape: Shape, taken: list[Sample], empty: list[Sample]) -> dict[str, Any]:
    pairs = list(zip(taken, empty, strict=True))
    return {
        **asdict(shape),
        "start_s": spread(sample.wall for sample in empty),
        "start_cpu_s": spread(sample.cpu for sample in empty),
        "hop_us": spread(1e6 * (full.wall - none.wall) / shape.hops for full, none in pairs),
        "hop_cpu_us": spread(1e6 * (full.cpu - none.cpu) / shape.hops for full, none in pairs),
    }


def idle_memory(workers: int) -> int:
    """Bytes that all processes of a run without items use."""
    with chain(Shape(workers, 1, 0)).start():
        while len(processes.own_tree()) < workers + 2:  # the caller and the coordinator
            time.sleep(0.01)
        time.sleep(SETTLE_S)
        return processes.pss(processes.own_tree())


def table(rows: list[dict[str, Any]]) -> str:
    counts = ("workers", "stages", "items")
    figures = {"start_s": "start and end, s", "start_cpu_s": "CPU s of that"}
    figures |= {"hop_us": "us an item and stage", "hop_cpu_us": "CPU us of that"}
    cells = [[*(f"{r[c]:,}" for c in counts), *(f"{r[f]:.3f}" for f in figures)] for r in rows]
    return tables.markdown([*counts, *figures.values()], cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer items, once")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (3)")
    given = parser.parse_args()
    repeats = 1 if given.quick else given.repeats
    known = machine.facts("cloudpickle")
    print(machine.one_line(known))
    report: dict[str, Any] = {"benchmark": "scale", "machine": known}
    for title, shapes in groups(*((ITEMS // 5, 6) if given.quick else (ITEMS, 8))).items():
        report[title] = measured(shapes, repeats)
        print(f"\nmore {title}:\n\n{table(report[title])}", flush=True)
    few, many = 1, 64
    report["idle_worker_bytes"] = (idle_memory(many) - idle_memory(few)) / (many - few)
    print(f"\nan idle worker takes {report['idle_worker_bytes'] / KIB:,.0f} KiB")
    save(report, RESULTS / "scale.json")


if __name__ == "__main__":
    main()
