"""Memory of all processes while a fast source feeds a slow sink: does it stay bounded?

    python benchmarks/memory.py [--items N] [--work W] [--workers W]

The figure is PSS (each shared page counted once), summed over the caller, the coordinator and
the workers, as the most that was seen above an idle run of the same pipeline. How far the source
is ahead is what it has handed out less what the sink has handled, as `stats()` tells.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import processes
from measure import RESULTS, save
from rich.console import Console

import mpipe

MIB = 1 << 20
IDLE_S = 3.0


def pss() -> int:
    """Bytes of memory that this process and its descendants use, shared pages counted once."""
    return processes.pss(processes.own_tree())


@dataclass
class Source:
    """Counts up to `items`, and remembers how far it was pulled."""

    items: int
    pulled: int = 0

    def __iter__(self) -> Iterator[int]:
        for item in range(self.items):
            self.pulled += 1
            yield item


@dataclass
class Peak:
    """The largest value a measure took."""

    value: int = 0

    def see(self, value: int) -> None:
        self.value = max(self.value, value)


def every(interval: float, act: Callable[[], None]) -> Callable[[], None]:
    """Call `act` from a thread every `interval` seconds; returns what ends that."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(interval):
            act()

    thread = threading.Thread(target=loop, name="sampler")
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


def make_pipeline(work: int, workers: int) -> mpipe.Pipeline:
    def slow(item: int) -> None:
        for _ in range(work):
            pass

    pipeline = mpipe.Pipeline("memory")
    pipeline.add_map("parse", lambda item: item, workers=1)
    pipeline.add_stage("sink", slow, workers=workers)
    return pipeline.connect("parse", "sink")


def idle(pipeline: mpipe.Pipeline) -> int:
    """The most memory a run without items takes."""
    most = Peak()
    with pipeline.start():
        end = time.monotonic() + IDLE_S
        while time.monotonic() < end:
            most.see(pss())
            time.sleep(0.1)
    return most.value


@dataclass(frozen=True)
class Flood:
    """What was seen while a source ran into a slow sink."""

    seconds: float
    memory: int
    """The most, in bytes."""
    ahead: int
    """The most items handed out by the source and not yet handled by the sink."""
    samples: int


def flood(pipeline: mpipe.Pipeline, items: int, interval: float) -> Flood:
    source, memory, ahead, samples = Source(items), Peak(), Peak(), Peak()
    outputs = pipeline.run(source)

    def look() -> None:
        handled = outputs.stats().stages["sink"].processed
        ahead.see(source.pulled - handled)
        memory.see(pss())
        samples.value += 1

    start = time.monotonic()
    stop = every(interval, look)
    try:
        for _ in outputs:
            raise SystemExit("a sink has no outputs")
    finally:
        stop()
    handled = outputs.stats().stages["sink"].processed
    if handled != items:
        raise SystemExit(f"the sink handled {handled:,} of {items:,} items")
    return Flood(time.monotonic() - start, memory.value, ahead.value, samples.value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000_000, help="small ones (10 million)")
    parser.add_argument("--work", type=int, default=200, help="empty loops per item (200)")
    parser.add_argument("--workers", type=int, default=1, help="of the sink (1)")
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json", help="the report")
    given = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    known = machine.facts("numpy", "cloudpickle")
    console.print(machine.one_line(known))
    pipeline = make_pipeline(given.work, given.workers)
    quiet = idle(pipeline)
    seen = flood(pipeline, given.items, 0.25)
    console.print(f"idle: {quiet / MIB:.1f} MiB")
    console.print(
        f"{given.items:,} items in {seen.seconds:.1f} s: at most {seen.memory / MIB:.1f} MiB "
        f"({(seen.memory - quiet) / MIB:+.1f}), {seen.samples} samples; "
        f"the source was at most {seen.ahead:,} items ahead of the sink"
    )
    save({"benchmark": "memory", "machine": known, "idle": quiet, "flood": seen}, given.json)


if __name__ == "__main__":
    main()
