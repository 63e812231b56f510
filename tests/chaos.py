"""Random pipelines whose workers die all the time: nothing is lost, nothing comes twice, every
count is exact, nothing leaks, no run hangs. `scripts/chaos --help` says how to go on for long.

A run follows from its seed: its graph, functions, options, items, and when workers die. They die
before any instruction or in any microsecond (see `crashpoints`), and are killed and stopped from
outside at any time. Which of them is where by then does not follow, so a fault may need some tries.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from itertools import count, repeat
from multiprocessing import get_context
from typing import Any

import psutil
from chaos_cases import Case, make_case
from crashpoints import crashing
from leaks import leaks, mark_children, resources
from reference import assert_conserved, in_order, interpret

import mpipe
from mpipe.transport import counters

HANG_S = 300.0
"""A run that takes longer hangs, in seconds."""

MANY_TIMES = 200
"""After so many kills and stops from outside they come half as often."""

SOURCE_S = 4.0
"""How long a source gives items, in seconds, if it does not end before."""

REPORT_S = 10.0
"""How often to print how it goes, in seconds."""

SEEDS = 10**6
"""From the first seed of a job to that of the next."""


@dataclass
class Tally:
    """What has happened so far."""

    graphs: int = 0
    items: int = 0
    kills: int = 0
    from_outside: int = 0
    results: int = 0
    lost: int = 0
    doubled: int = 0
    leaks: int = 0
    hangs: int = 0
    others: int = 0
    """Runs that went wrong in another way."""
    failed_seeds: list[int] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.graphs:,} graphs, {self.items:,} items, {self.results:,} results, "
            f"{self.kills:,} kills ({self.from_outside:,} from outside), {self.lost} lost, "
            f"{self.doubled} doubled, {self.leaks} leaks, {self.hangs} hangs, "
            f"{self.others} other faults"
        )


def run_case(seed: int, tally: Tally) -> None:
    """Make a run and add to the tally what came of it; prints what went wrong."""
    case, before = make_case(seed), resources()
    items: list[int] = []
    with crashing(case.mode, case.shortest, seed):
        outputs = case.pipeline.run(
            _source(case, seed, items),
            deadline=HANG_S,
            ordered=case.ordered,
            start_method=case.start_method,
        )
        try:
            with _disturbing(outputs, case.calm_s, seed, tally):
                results = list(outputs)
            letters = [letter.item for letter in outputs.dead_letters()]
            wrong = _check(case, items, results, letters, outputs.stats(), tally)
        except mpipe.Cancelled:
            tally.hangs += 1
            wrong = "it hangs"
        except Exception:
            tally.others += 1
            wrong = traceback.format_exc()
        finally:
            outputs.close()
    stats = outputs.stats()
    tally.graphs += 1
    tally.items += len(items)
    tally.kills += sum(stage.restarts for stage in stats.stages.values())
    if left := leaks(before):
        tally.leaks += len(left)
        wrong = "\n".join([wrong, *left])
    if wrong:
        tally.failed_seeds.append(seed)
        print(f"seed {seed}: {wrong}\n{case}\n{stats}\nitems: {items}", flush=True)


def _source(case: Case, seed: int, given: list[int]) -> Iterator[int]:
    """Items, until there were enough or time is over; adds them to `given`."""
    chance, last = random.Random(seed), time.monotonic() + SOURCE_S
    while len(given) < case.most_items and time.monotonic() < last:
        given.append(chance.randrange(10_000))
        yield case.kind(given[-1])
        time.sleep(case.rest_s)


def _check(
    case: Case,
    items: list[int],
    results: list[int],
    letters: list[int],
    stats: mpipe.Stats,
    tally: Tally,
) -> str:
    """Count what is lost and doubled; returns what is wrong, or nothing."""
    failures: Counter[int] = Counter()
    got, pushed = Counter(results), dict.fromkeys(case.simple.graph.sources, items)
    expected = interpret(case.simple, pushed, failures)
    lost = 0 if case.drops else (expected - got).total()
    doubled = (got - expected).total()
    tally.results += len(results)
    tally.lost += lost
    tally.doubled += doubled
    wrong = [f"{lost} lost, {doubled} doubled"] if lost or doubled else []
    if not case.drops:
        failed = sum(stage.failed for stage in stats.stages.values())
        lettered = sum(stage.dead_lettered for stage in stats.stages.values())
        if failed != failures.total() or lettered != len(letters):
            wrong.append(
                f"{failed} failed of {failures.total()}, {len(letters)} letters of {lettered}"
            )
        if case.keeps_order and results != in_order(case.simple, items):
            wrong.append("not in order")
    if Counter(letters) - failures:
        wrong.append("letters of items that do not fail")
    try:
        assert_conserved(stats, case.pipeline)
        assert stats.state == "drained"
        assert not any(stage.in_flight or stage.queued for stage in stats.stages.values())
    except AssertionError:
        wrong.append(f"wrong counts: {traceback.format_exc()}")
    tally.others += bool(wrong) and not (lost or doubled)
    return "; ".join(wrong)


# Kills and stops from outside.


@contextmanager
def _disturbing(outputs: mpipe.Outputs, calm_s: float, seed: int, tally: Tally) -> Iterator[None]:
    """Kill workers, or stop them for a while, less and less often, as long as the block runs."""
    stop, chance = threading.Event(), random.Random(seed)

    def disturb() -> None:
        for times in count():
            if stop.wait(chance.expovariate(1 / calm_s) * (1 + times / MANY_TIMES)):
                break
            for fd in _some_worker(outputs, chance):
                with suppress(ProcessLookupError):
                    if chance.random() < 0.8:
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                        tally.from_outside += 1
                    else:
                        signal.pidfd_send_signal(fd, signal.SIGSTOP)
                        stop.wait(chance.expovariate(1 / 0.03))
                        signal.pidfd_send_signal(fd, signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _some_worker(outputs: mpipe.Outputs, chance: random.Random) -> Iterator[int]:
    """A descriptor of a worker, if one is there; surely one of this run's, whatever has ended."""
    engine: Any = outputs._engine
    try:
        seat = chance.choice(engine._plan.leaders)
        if engine._board.get(seat, counters.STATE) == counters.STARTING and chance.random() < 0.8:
            return  # on a busy machine none would ever get on
        pid = engine._board.get(seat, counters.PID)
        fd = os.pidfd_open(pid) if pid else -1
    except (ValueError, ProcessLookupError):  # the run has ended, or the worker
        return
    if fd >= 0:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).ppid() == engine._link.coordinator_pid:
                yield fd
        os.close(fd)


# All runs.


def run_cases(first_seed: int, seconds: float, graphs: int, report_s: float) -> Tally:
    """Runs with seeds in a row until time, or their number, is over; prints how it goes."""
    tally, began = Tally(), time.monotonic()
    reported = began
    while tally.graphs < graphs and time.monotonic() - began < seconds:
        run_case(first_seed + tally.graphs, tally)
        now = time.monotonic()
        if now - reported >= report_s:
            reported = now
            print(f"{now - began:.0f} s, to seed {first_seed + tally.graphs - 1}: {tally}")
            sys.stdout.flush()
    print(f"{time.monotonic() - began:.0f} s: {tally}")
    return tally


def prepare() -> None:
    """To be called once in each process that makes runs."""
    logging.disable()  # of skipped items
    mark_children()


def run_jobs(jobs: int, seed: int, seconds: float, graphs: int) -> Tally:
    """As many processes at once, each with seeds of its own; prints what they did together."""
    seeds = range(seed, seed + jobs * SEEDS, SEEDS)
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare) as pool:
        fixed = map(repeat, (seconds, graphs, REPORT_S * jobs))
        tally = sum(pool.map(run_cases, seeds, *fixed), Tally())
    print(f"together: {tally}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="of the first run (default random)")
    parser.add_argument("--graphs", type=int, default=sys.maxsize, help="at most so many, each job")
    parser.add_argument("--jobs", type=int, default=1, help="processes that make runs (default 1)")
    given = parser.parse_args()
    seed = random.randrange(SEEDS) if given.seed is None else given.seed
    print(f"seeds from {seed} on", flush=True)
    seconds = given.minutes * 60
    if given.jobs > 1:
        tally = run_jobs(given.jobs, seed, seconds, given.graphs)
    else:
        prepare()
        tally = run_cases(seed, seconds, given.graphs, REPORT_S)
    if tally.failed_seeds:
        print("failed:", *(f"scripts/chaos --graphs 1 --seed {n};" for n in tally.failed_seeds))
    sys.exit(bool(tally.failed_seeds))


if __name__ == "__main__":
    main()
