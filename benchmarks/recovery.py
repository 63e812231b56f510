"""What the death of a worker costs: time to its replacement, time of the others, throughput.

    python benchmarks/recovery.py [--kills N] [--repeats R] [--items N] [--workers W]

The workers of a stage with CPU-bound items are killed by SIGKILL, one at a time. Recovery is the
time from right before the kill, by the killer's clock, to when the function is first called in the
replacement; this function needs no modules that a worker would have to import first. For the
workers that live on, the longest time from one item to the next in the 100 ms after a kill is set
against that in 100 ms before it. Throughput is that of runs with one kill a second and of
undisturbed ones, in turns. All results are checked.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import machine
from measure import RESULTS, Samples, interleave, save, spread
from memory import every
from rich.console import Console

import mpipe

WINDOW_S = 0.1
CALM_S = 3 * WINDOW_S
"""How long all are at work before the next kill, at least."""

UNDISTURBED, KILLED = "undisturbed", "one kill a second"


class Done(NamedTuple):
    """An item that was handled: in which process, and when the function was called."""

    item: int
    pid: int
    began: float


class Timed(mpipe.Stage):
    """Works on each item; each process adds the time of its first one to the file `firsts`."""

    def __init__(self, loops: int, firsts: Path) -> None:
        self._loops, self._firsts = loops, str(firsts)  # no Path, for which to import a module

    def setup(self) -> None:
        self._is_first = True

    def process(self, item: int) -> list[Done]:
        began = time.monotonic()
        if self._is_first:
            self._is_first = False
            with open(self._firsts, "a") as file:
                file.write(f"{began}\n")
        for _ in range(self._loops):
            pass
        return [Done(item, os.getpid(), began)]


class Deaths(NamedTuple):
    """Times of the kills, of the replacements' first items, and of all items by process."""

    kills: Sequence[float]
    replaced: Sequence[float]
    items: Sequence[Sequence[float]]

    def recoveries(self) -> list[float]:
        """Seconds from each kill to its replacement's first item."""
        return [first - kill for kill, first in zip(self.kills, self.replaced, strict=True)]

    def longest_gaps(self, since: float) -> list[float]:
        """Of each worker that lives on, in the window that begins `since` seconds after a kill."""
        return [
            _longest_gap(times, kill + since, kill + since + WINDOW_S)
            for kill in self.kills
            for times in self.items
            if times[0] < kill - CALM_S / 2 and kill + CALM_S / 2 < times[-1]
        ]


def _longest_gap(times: Sequence[float], start: float, end: float) -> float:
    """The longest time from one item to the next that has a part in the window."""
    return max(b - a for a, b in itertools.pairwise(times) if a < end and start < b)


def make_pipeline(loops: int, firsts: Path, workers: int) -> mpipe.Pipeline:
    stage = Timed(loops, firsts)
    return mpipe.Pipeline("recovery").add_stage("work", stage, workers=workers)


def kill_some_worker(outputs: mpipe.Outputs) -> float:
    """Returns the time right before."""
    (stage,) = outputs.stats().stages.values()
    pid = random.choice([worker.pid for worker in stage.workers])
    now = time.monotonic()
    if pid:  # else the run is ending
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return now


def check(done: Iterable[Done], items: int) -> None:
    """Each item was handled once."""
    if Counter(one.item for one in done) != Counter(range(items)):
        raise SystemExit("wrong results")


def see_deaths(loops: int, workers: int, kills: int) -> Deaths:
    """Kill so many workers, each when all have been at work for a while."""
    with tempfile.TemporaryDirectory() as folder:
        firsts = Path(folder, "firsts")
        firsts.touch()
        killed: list[float] = []
        given, enough = itertools.count(), threading.Event()
        source = itertools.takewhile(lambda _: not enough.is_set(), given)
        outputs = make_pipeline(loops, firsts, workers).run(source)

        def act() -> None:
            times = _read(firsts)
            all_work = len(times) == workers + len(killed)
            if not all_work or time.monotonic() < times[-1] + CALM_S:
                return
            if len(killed) == kills:
                enough.set()
            else:
                killed.append(kill_some_worker(outputs))

        stop = every(WINDOW_S / 2, act)
        try:
            done = list(outputs)
        finally:
            stop()
        check(done, next(given) - 1)  # one was taken and not handed out
        return Deaths(killed, _read(firsts)[workers:], _by_process(done))


def _read(firsts: Path) -> list[float]:
    return sorted(map(float, firsts.read_text().split()))


def _by_process(done: Iterable[Done]) -> list[list[float]]:
    times: dict[int, list[float]] = defaultdict(list)
    for one in done:
        times[one.pid].append(one.began)
    return [sorted(began) for began in times.values()]


def throughput(loops: int, workers: int, items: int, disturbed: bool) -> None:
    outputs = make_pipeline(loops, Path(os.devnull), workers).run(range(items))

    def act() -> None:
        if disturbed:
            kill_some_worker(outputs)

    stop = every(1.0, act)
    try:
        check(outputs, items)
    finally:
        stop()


def compare(loops: int, workers: int, items: int, repeats: int) -> Samples:
    case = partial(throughput, loops, workers, items)
    return interleave({UNDISTURBED: partial(case, False), KILLED: partial(case, True)}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="to time recovery (100)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each throughput (5)")
    parser.add_argument("--items", type=int, default=20_000, help="of each such run (20,000)")
    parser.add_argument("--work", type=int, default=50_000, help="empty loops per item (50,000)")
    parser.add_argument("--workers", type=int, default=machine.cores(), help="(one per core)")
    parser.add_argument("--json", type=Path, default=RESULTS / "recovery.json", help="the report")
    given = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    known = machine.facts("numpy", "cloudpickle")
    console.print(f"{machine.one_line(known)}, load {known['load']:.2f}")
    deaths = see_deaths(given.work, given.workers, given.kills)
    shown = {
        "from the kill to the replacement's first item": deaths.recoveries(),
        "longest gap of a worker that lives on, before": deaths.longest_gaps(-2 * WINDOW_S),
        "longest gap of a worker that lives on, after": deaths.longest_gaps(0.0),
    }
    console.print(f"{given.kills} kills; milliseconds, median (min..max)")
    for name, seconds in shown.items():
        console.print(f"  {name}: {spread(1e3 * s for s in seconds):.1f}")
    samples = compare(given.work, given.workers, given.items, given.repeats)
    pairs = list(zip(samples[UNDISTURBED], samples[KILLED], strict=True))
    speed = spread(quiet.wall / killed.wall for quiet, killed in pairs)
    cpu = spread(killed.cpu / quiet.cpu for quiet, killed in pairs)
    console.print(
        f"{KILLED}: {speed:.3f} of the throughput of the {UNDISTURBED} run before, {cpu:.3f} of "
        f"its CPU time; {given.repeats} pairs of {given.items:,} items"
    )
    save({"benchmark": "recovery", "machine": known, **shown, "samples": samples}, given.json)


if __name__ == "__main__":
    main()
