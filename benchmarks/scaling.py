"""CPU-bound items on 1 to N processes: the serial loop, the standard library's pools, mpipe.

    python benchmarks/scaling.py [--workers N...] [--seconds S] [--item-us US] [--repeats R]

The work grows with the workers: each has S seconds of it, so that starting them weighs the same.
Pool is `multiprocessing.Pool.imap_unordered`, Executor is `ProcessPoolExecutor.map`, mpipe.imap is
`mpipe.imap(..., ordered=False)`, mpipe.run is `Pipeline.run` of one stage; ideal is as many forked
processes that have their share already and send nothing (ideal.py). All start from nothing
and have ended their processes when their time is taken. The pools run with the chunk size that
was fastest of those tried; mpipe has no such setting. An item is a number of iterations, calibrated
once at the start, so all ways do the very same work.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ideal
import machine
from measure import RESULTS, Samples, interleave, sample, save, spread
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from workloads.cpu import about_equal, iterations, work

import mpipe

CHUNKS = (1, 4, 16, 64, 256)
SERIAL = "serial loop"
_TIMES = " x "

Way = Callable[[list[int], int], list[int]]


def serial(items: Iterable[int]) -> list[int]:
    return [work(item) for item in items]


def pool(items: list[int], workers: int, chunk: int) -> list[int]:
    with multiprocessing.Pool(workers) as processes:
        results = list(processes.imap_unordered(work, items, chunk))
        processes.close()
        processes.join()  # reap the workers, so that their CPU time is counted
    return results


def executor(items: list[int], workers: int, chunk: int) -> list[int]:
    with ProcessPoolExecutor(workers) as processes:
        return list(processes.map(work, items, chunksize=chunk))


def mpipe_imap(items: list[int], workers: int) -> list[int]:
    return list(mpipe.imap(work, items, workers=workers, ordered=False))


def mpipe_pipeline(items: list[int], workers: int) -> list[int]:
    return list(mpipe.Pipeline("scaling").add_map("work", work, workers=workers).run(items))


def shares(items: list[int], workers: int) -> list[int]:
    return ideal.shares(serial, items, workers).outputs


def checked(way: Callable[[], list[int]], expected: list[int]) -> Callable[[], None]:
    """`way`, made to fail unless its results are exactly those of the serial loop."""

    def case() -> None:
        results = way()
        if sorted(results) != expected:
            raise SystemExit(f"wrong results: {len(results)} of {len(expected)}, or others")

    return case


def best_chunk(way: Callable[[list[int], int, int], list[int]], items: list[int], n: int) -> int:
    """The chunk size of `CHUNKS` with which `way` is fastest on `n` workers."""
    return min(CHUNKS, key=lambda chunk: sample(lambda: way(items, n, chunk)).wall)


def make_cases(
    items: list[int], workers: list[int], chunks: dict[str, int]
) -> dict[str, Callable[[], None]]:
    """All ways on so many workers with as many times `items`, and the serial loop, by name."""
    ways: dict[str, Way] = {
        "Pool": partial(pool, chunk=chunks["Pool"]),
        "Executor": partial(executor, chunk=chunks["Executor"]),
        "ideal": shares,
        "mpipe.imap": mpipe_imap,
        "mpipe.run": mpipe_pipeline,
    }
    expected = sorted(serial(items))
    cases = {SERIAL: checked(partial(serial, items), expected)}
    for n in workers:
        for name, way in ways.items():
            case = checked(partial(way, items * n, n), sorted(expected * n))
            cases[f"{name}{_TIMES}{n}"] = case
    return cases


def summary(samples: Samples, count: int) -> list[dict[str, Any]]:
    """Per case: rate, speed-up and CPU time against the serial loop of the same round."""
    rows = []
    for name, taken in samples.items():
        n = int(name.partition(_TIMES)[2] or 1)
        pairs = list(zip(samples[SERIAL], taken, strict=True))
        rows.append(
            {
                "case": name,
                "items_per_s": spread(n * count / s.wall for s in taken),
                "speed_up": spread(n * b.wall / s.wall for b, s in pairs),
                "cpu_per_item": spread(s.cpu / (n * b.cpu) for b, s in pairs),
                "samples": taken,
            }
        )
    return rows


def show(console: Console, rows: list[dict[str, Any]], title: str) -> None:
    table = Table("", title=title, title_justify="left", box=SIMPLE, padding=0)
    for head in ("items/s", "speed-up", "CPU per item"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['items_per_s']:,.0f}",
            f"{row['speed_up']:.2f}",
            f"{row['cpu_per_item']:.2f}",
        )
    console.print(table)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(range(1, machine.cores() + 1))
    parser.add_argument("--workers", type=int, nargs="+", default=every, help="(1 to cores)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of work for each worker (3)")
    parser.add_argument("--item-us", type=float, default=1000.0, help="of work per item (1000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (5)")
    parser.add_argument("--json", type=Path, default=RESULTS / "scaling.json", help="the report")
    return parser.parse_args()


def run_all(cases: dict[str, Callable[[], None]], repeats: int, console: Console) -> Samples:
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=len(cases) * repeats)
        return interleave(cases, repeats, lambda: progress.update(task, advance=1, refresh=True))


def main() -> None:
    given = options()
    console = Console(highlight=False)
    known = machine.facts("numpy", "cloudpickle")
    console.print(machine.one_line(known), soft_wrap=True)
    scale = iterations(given.item_us)
    items = list(about_equal(max(1, round(given.seconds * 1e6 / given.item_us)), scale))
    chunks = {
        "Pool": best_chunk(pool, items, max(given.workers)),
        "Executor": best_chunk(executor, items, max(given.workers)),
    }
    what = f"{scale:,} iterations (about {given.item_us:g} us)"
    console.print(f"{len(items):,} items for each worker, of {what}")
    console.print(f"best chunk sizes of {CHUNKS}: {chunks}")
    samples = run_all(make_cases(items, given.workers, chunks), given.repeats, console)
    rows = summary(samples, len(items))
    show(console, rows, f"median (min..max) of {given.repeats} interleaved runs, serial = 1")
    report = {
        "benchmark": "scaling",
        "machine": known,
        "item_us": given.item_us,
        "iterations": scale,
        "items": len(items),
        "repeats": given.repeats,
        "chunk_sizes": chunks,
        "cases": rows,
    }
    save(report, given.json)
    console.print(f"written to {given.json}")


if __name__ == "__main__":
    main()
