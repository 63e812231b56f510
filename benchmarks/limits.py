"""What shipping itself costs: the least that a tool pays whose stages are processes of their own.

    python benchmarks/limits.py [--repeats R] [--quick]

Rates: one process does the work of all stages, and pickles and unpickles what passes each
connection, in lists of the best of some lengths; arrays are copied once. So nothing waits, wakes or
is counted, and on two cores no tool that ships the items the same way is more than twice as fast.
Latency: forked processes in a row pass eight bytes on through pipes.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import machine
import workloads
from measure import RESULTS, Samples, interleave, save, spread
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from workloads import Each, Stage, Workload

LENGTHS = {"tiny_ints": (100, 1_000, 10_000), "json_records": (8, 32, 128), "frames": (1,)}
"""How many source items there are in a list, for each workload."""

CORES = 2
ROOM_BYTES = 64 << 20


class Connection:
    """Pickles items into memory of its own and unpickles them from there."""

    def __init__(self) -> None:
        self._room = memoryview(mmap.mmap(-1, ROOM_BYTES))

    def ship(self, items: list[Any]) -> list[Any]:
        """The items as they arrive; their arrays lie there until the next ones come."""
        sent: list[pickle.PickleBuffer] = []
        data = pickle.dumps(items, 5, buffer_callback=sent.append)
        start, arrived = 0, []
        for raw in (buffer.raw() for buffer in sent):
            arrived.append(self._room[start : start + raw.nbytes])
            arrived[-1][:] = raw
            start += raw.nbytes
        return list(pickle.loads(data, buffers=arrived))


def lists(source: Iterable[Any], length: int) -> Iterator[list[Any]]:
    items = iter(source)
    return iter(lambda: list(islice(items, length)), [])


def shipping(stages: tuple[Stage, ...], source: Iterable[Any], length: int) -> Iterator[Any]:
    """All stages in this process, and all that passes between processes pickled."""
    steps = [(Each(stage.fn, stage.many), Connection()) for stage in stages]
    entry = Connection()
    for items in lists(source, length):
        outputs = entry.ship(items)
        for run, connection in steps:
            outputs = connection.ship(run(outputs))
        yield from outputs


Way = Callable[[tuple[Stage, ...], Iterable[Any]], Iterator[Any]]
"""Takes the stages and what goes in, gives what comes out."""


def run(workload: Workload, items: int, way: Way) -> None:
    for output in way(workload.stages, workload.source(items, 1)):
        workload.keep(output)


def rates(name: str, share: int) -> dict[str, Callable[[], None]]:
    """The loop, and the loop that ships in lists of each length."""
    workload = workloads.load(name)
    items = workload.items // share
    ways: dict[str, Way] = {"loop": workloads.serial}
    for length in LENGTHS[name]:
        ways[f"in lists of {length:,}"] = partial(shipping, length=length)
    return {title: partial(run, workload, items, way) for title, way in ways.items()}


def relayed(processes: int, items: int, period_s: float) -> list[float]:
    """Seconds that eight bytes take through so many processes and back, one every `period_s`."""
    pipes = [os.pipe() for _ in range(processes + 1)]
    children = []
    for (source, _), (_, target) in pairwise(pipes):
        child = os.fork()
        if not child:
            _relay(source, target, items)
        children.append(child)
    delays = []
    for _ in range(items):
        time.sleep(period_s)
        start = time.perf_counter()
        os.write(pipes[0][1], b"8 bytes.")
        os.read(pipes[-1][0], 8)
        delays.append(time.perf_counter() - start)
    for child in children:
        os.waitpid(child, 0)
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)
    return sorted(delays)


def _relay(source: int, target: int, items: int) -> None:
    try:
        for _ in range(items):
            os.write(target, os.read(source, 8))
    finally:
        os._exit(0)


def show(console: Console, title: str, samples: Samples, items: int) -> None:
    table = Table("", title=title, title_justify="left", box=SIMPLE)
    table.add_column("CPU per item, us", justify="right")
    table.add_column(f"{CORES} cores allow", justify="right")
    for way, taken in samples.items():
        cpu = spread(1e6 * s.cpu / items for s in taken)
        most = spread(CORES * a.cpu / b.cpu for a, b in zip(samples["loop"], taken, strict=True))
        table.add_row(way, f"{cpu:.2f}", f"{most:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the items")
    parser.add_argument("--json", type=Path, default=RESULTS / "limits.json", help="the report")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    console = Console(highlight=False)
    known = machine.facts("numpy")
    console.print(machine.one_line(known), soft_wrap=True)
    report: dict[str, Any] = {"benchmark": "limits", "machine": known}
    for name in LENGTHS:
        workload = workloads.load(name)
        samples = interleave(rates(name, share), given.repeats)
        show(console, workload.title, samples, workload.items // share)
        report[name] = samples
    trickle = workloads.load("trickle")
    delays = relayed(len(trickle.stages), trickle.items // share, 0.002)
    report["trickle"] = delays
    p50, p99 = (1e6 * delays[len(delays) * part // 100] for part in (50, 99))
    console.print(f"{trickle.title}, eight bytes through pipes: p50 {p50:.0f} us, p99 {p99:.0f} us")
    save(report, given.json)


if __name__ == "__main__":
    main()
