"""What mpipe costs before the first item: import, start, first result, drain.

    python benchmarks/startup.py [--repeats R] [--workers W]

Imports, and programs with one run, are timed in fresh interpreters, against one that does nothing.
Starting is timed in a process that has done it before, for a pipeline of two stages, alone and as
one of many in a row, against a `multiprocessing.Pool` of as many processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import machine
from measure import RESULTS, Sample, Samples, interleave, save, spread
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import mpipe

IN_A_ROW = 20
EACH = f", each of {IN_A_ROW} in a row"


MPIPE_PROGRAM = "import mpipe; assert list(mpipe.imap(abs, [1], workers={})) == [1]"
POOL_PROGRAM = "import multiprocessing as m; assert m.Pool({}).map(abs, [1]) == [1]"


def interpreter(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


def identity(item: int) -> int:
    return item


def two_stages(workers: int) -> mpipe.Pipeline:
    pipeline = mpipe.Pipeline("startup")
    pipeline.add_map("first", identity, workers=workers)
    pipeline.add_map("second", identity, workers=workers)
    return pipeline.connect("first", "second")


def start_and_drain(pipeline: mpipe.Pipeline) -> None:
    with pipeline.start():
        pass


def one_result(pipeline: mpipe.Pipeline) -> None:
    """From nothing to the first result and back to nothing."""
    with pipeline.start(results=True) as run:
        run.push(1)
        assert next(run.results()) == 1


def in_a_row(case: Callable[[], None]) -> None:
    for _ in range(IN_A_ROW):
        case()


def pool_one_result(processes: int) -> None:
    with multiprocessing.Pool(processes) as pool:
        assert pool.apply(identity, (1,)) == 1
        pool.close()
        pool.join()


def make_cases(workers: int) -> dict[str, Callable[[], None]]:
    pipeline = two_stages(workers)
    ours = partial(one_result, pipeline)
    pool = partial(pool_one_result, 2 * workers)
    return {
        "python -c pass": partial(interpreter, "pass"),
        "python -c 'import mpipe'": partial(interpreter, "import mpipe"),
        "a program with one imap": partial(interpreter, MPIPE_PROGRAM.format(workers)),
        "a program with one Pool": partial(interpreter, POOL_PROGRAM.format(workers)),
        "mpipe: start, drain": partial(start_and_drain, pipeline),
        "mpipe: start, one result, drain": ours,
        f"mpipe{EACH}": partial(in_a_row, ours),
        "Pool: start, one result, close": pool,
        f"Pool{EACH}": partial(in_a_row, pool),
    }


def show(console: Console, samples: Samples) -> None:
    table = Table("", title="milliseconds, median (min..max)", title_justify="left", box=SIMPLE)
    table.add_column("by the clock", justify="right")
    table.add_column("CPU, all processes", justify="right")
    for name, taken in samples.items():
        wall = spread(1e3 * s.wall for s in taken)
        cpu = spread(1e3 * s.cpu for s in taken)
        table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="per stage (2)")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each case (20)")
    parser.add_argument("--json", type=Path, default=RESULTS / "startup.json", help="the report")
    given = parser.parse_args()
    console = Console(highlight=False)
    known = machine.facts("numpy", "cloudpickle")
    console.print(machine.one_line(known), soft_wrap=True)
    samples = interleave(make_cases(given.workers), given.repeats)
    for name in filter(lambda name: name.endswith(EACH), samples):
        samples[name] = [Sample(s.wall / IN_A_ROW, s.cpu / IN_A_ROW) for s in samples[name]]
    show(console, samples)
    save({"benchmark": "startup", "machine": known, "samples": samples}, given.json)


if __name__ == "__main__":
    main()
