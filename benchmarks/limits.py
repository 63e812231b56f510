"""What shipping itself costs tools whose stages are processes of their own.

    python benchmarks/limits.py [--repeats R]

Rates: one process does the work of all stages, and pickles and unpickles what passes each
connection, in lists of several lengths; arrays are copied once. Nothing waits, wakes or is counted.
On two cores, a tool that ships pickled lists over each connection can be expected to be twice as
fast at most, as far as functions and memory cost it the same.
Latency: processes in a row pass eight bytes on through pipes, the least for a tool that sleeps
while it waits; and the same with an item that each of them unpickles and pickles.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import machine
import workloads
from measure import RESULTS, Samples, interleave, save, spread
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from ways import lists
from workloads import Each, Stage, Workload
from workloads.trickle import PERIOD_S

LENGTHS = {
    "tiny_ints": (1_000, 10_000, 100_000),
    "json_records": (1, 2, 4, 8, 32, 128),
    "frames": (1,),
}
"""How many source items there are in a list, for each workload."""

CORES = 2
ROOM_BYTES = 64 << 20
MOST_BYTES = 4096

Loop = Callable[[tuple[Stage, ...], Iterable[Any]], Iterable[Any]]
"""Takes the stages and what goes in, gives what comes out."""


class Hop:
    """Pickles and unpickles items; their arrays are copied once, into memory of its own."""

    def __init__(self) -> None:
        self._room = memoryview(mmap.mmap(-1, ROOM_BYTES))

    def ship(self, items: list[Any]) -> list[Any]:
        """The items as they arrive; their arrays are good until the next ones come."""
        sent: list[pickle.PickleBuffer] = []
        data = pickle.dumps(items, 5, buffer_callback=sent.append)
        start, arrived = 0, []
        for raw in (buffer.raw() for buffer in sent):
            arrived.append(self._room[start : start + raw.nbytes])
            arrived[-1][:] = raw
            start += raw.nbytes
        return cast("list[Any]", pickle.loads(data, buffers=arrived))


def shipping(stages: tuple[Stage, ...], source: Iterable[Any], length: int) -> Iterable[Any]:
    """All stages in this process, and all that passes between processes pickled."""
    entry, steps = Hop(), [(Each(stage.fn, stage.many), Hop()) for stage in stages]

    def handle(items: list[Any]) -> list[Any]:
        outputs = entry.ship(items)
        for work, hop in steps:
            outputs = hop.ship(work(outputs))
        return outputs

    return chain.from_iterable(map(handle, lists(source, length)))


def loops(name: str) -> dict[str, Loop]:
    """The serial loop, and the one that ships in lists of each length."""
    made: dict[str, Loop] = {"loop": workloads.serial}
    for length in LENGTHS[name]:
        made[f"in lists of {length:,}"] = partial(shipping, length=length)
    return made


def run(workload: Workload, loop: Loop) -> None:
    for output in loop(workload.stages, workload.source(workload.items, 1)):
        workload.keep(output)


Relay = Callable[[int, int, list[int]], None]
"""Passes on what it reads from one descriptor to another; closes the rest first."""


def relayed(relay: Relay, sent: bytes, processes: int, items: int) -> list[float]:
    """Seconds that a message takes through so many processes and back, in rising order."""
    fork = multiprocessing.get_context("fork")
    pipes = [os.pipe() for _ in range(processes + 1)]
    ends = [end for pipe in pipes for end in pipe]
    started = []
    for (source, _), (_, target) in pairwise(pipes):
        rest = [end for end in ends if end not in (source, target)]
        started.append(fork.Process(target=relay, args=(source, target, rest), daemon=True))
    for process in started:
        process.start()
    entry, exit = pipes[0][1], pipes[-1][0]
    for end in ends:
        if end not in (entry, exit):
            os.close(end)
    delays = []
    for _ in range(items):
        time.sleep(PERIOD_S)
        start = time.perf_counter()
        os.write(entry, sent)
        assert os.read(exit, MOST_BYTES), "a relay has ended"
        delays.append(time.perf_counter() - start)
    os.close(entry)
    for process in started:
        process.join()
    os.close(exit)
    return sorted(delays)


def pass_bytes_on(source: int, target: int, rest: list[int]) -> None:
    for end in rest:
        os.close(end)
    while data := os.read(source, MOST_BYTES):
        os.write(target, data)


def pass_item_on(source: int, target: int, rest: list[int]) -> None:
    for end in rest:
        os.close(end)
    while data := os.read(source, MOST_BYTES):
        os.write(target, pickle.dumps(pickle.loads(data), 5))


def show(console: Console, title: str, samples: Samples, items: int) -> None:
    table = Table("", title=title, title_justify="left", box=SIMPLE)
    table.add_column("CPU per item, us", justify="right")
    table.add_column(f"speed-up that {CORES} cores allow", justify="right")
    for loop, taken in samples.items():
        cpu = spread(1e6 * s.cpu / items for s in taken)
        most = spread(CORES * a.cpu / b.cpu for a, b in zip(samples["loop"], taken, strict=True))
        table.add_row(loop, f"{cpu:.2f}", f"{most:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (5)")
    parser.add_argument("--json", type=Path, default=RESULTS / "limits.json", help="the report")
    given = parser.parse_args()
    console = Console(highlight=False)
    known = machine.facts("numpy")
    console.print(machine.one_line(known), soft_wrap=True)
    report: dict[str, Any] = {"benchmark": "limits", "machine": known}
    gc.freeze()  # what is here before is in no tool's worker
    for name in LENGTHS:
        workload = workloads.load(name)
        cases = {title: partial(run, workload, loop) for title, loop in loops(name).items()}
        report[name] = samples = interleave(cases, given.repeats)
        show(console, workload.title, samples, workload.items)
    trickle = workloads.load("trickle")
    ways: dict[str, tuple[Relay, bytes]] = {
        "eight bytes": (pass_bytes_on, b"8 bytes."),
        "a pickled item": (pass_item_on, pickle.dumps((0, time.perf_counter_ns()), 5)),
    }
    report["trickle"] = {}
    for what, way in ways.items():
        report["trickle"][what] = delays = relayed(*way, len(trickle.stages), trickle.items)
        p50, p99 = (1e6 * delays[len(delays) * part // 100] for part in (50, 99))
        console.print(f"{trickle.title}, {what} by pipes: p50 {p50:.0f} us, p99 {p99:.0f} us")
    save(report, given.json)


if __name__ == "__main__":
    main()
