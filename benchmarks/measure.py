"""Time cases side by side: interleaved, medians with their spread, CPU time of all processes.

Machines drift, so cases run in turns (A B C, A B C, ...), never one after the other in blocks;
what is compared was measured within the same minutes.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpipe.engines import standby

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sample:
    """One run of a case: seconds by the clock, and of CPU in this process and those it reaped."""

    wall: float
    cpu: float


Samples = dict[str, list[Sample]]
"""The runs of each case, by its name."""


@dataclass(frozen=True)
class Spread:
    """A figure measured several times."""

    median: float
    min: float
    max: float

    def __format__(self, spec: str) -> str:
        median, low, high = (format(x, spec) for x in (self.median, self.min, self.max))
        return f"{median} ({low}..{high})"


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest and largest of `values`."""
    known = sorted(values)
    return Spread(statistics.median(known), known[0], known[-1])


def sample(case: Callable[[], Any]) -> Sample:
    """Run `case` once. Its processes must have been reaped when it returns, to be counted.

    The one that mpipe keeps for a next run is ended, so every case begins without one.
    """
    cpu, start = cpu_time(), time.perf_counter()
    case()
    wall = time.perf_counter() - start
    standby.end()
    return Sample(wall, cpu_time() - cpu)


def cpu_time() -> float:
    """CPU seconds, user and system, of this process and of all descendants reaped so far."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def interleave(
    cases: Mapping[str, Callable[[], Any]],
    repeats: int,
    done: Callable[[], object] = lambda: None,
) -> Samples:
    """Run all cases in turn, `repeats` times; call `done` after each."""
    samples: Samples = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            samples[name].append(sample(case))
            done()
    return samples


def save(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=asdict) + "\n")
