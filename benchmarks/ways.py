"""The ways in which a tool can run a workload: its own stages, stages chained by hand, or fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import machine
import peers
from workloads import Each, Fused, Stage, Workload

MODES = {
    "map": "",
    "stages": "",
    "missing": "",
    "by hand": "a pool per stage",
    "fused": "stages fused",
}
"""What a mode is called beside the tool's name."""


@dataclass(frozen=True)
class Way:
    """A tool, how it runs the stages, and on how many workers if not on those of the stages."""

    peer: str
    mode: str
    workers: int | None = None

    @property
    def key(self) -> str:
        return f"{self.peer} {self.mode}" + (f" x {self.workers}" if self.workers else "")

    @property
    def title(self) -> str:
        how = "" if self.peer in LIMITS else MODES[self.mode]
        return peers.title(self.peer) + (f", {how}" if how else "")


def ways(workload: Workload, chosen: Iterable[str]) -> Iterator[Way]:
    """All ways of the tools `chosen` in which the workload makes sense."""
    for name in chosen:
        for mode in modes(workload, name):
            for workers in workload.workers if name != "serial" and workload.workers else (None,):
                yield Way(name, mode, workers)


def modes(workload: Workload, name: str) -> list[str]:
    if not peers.is_installed(name):
        return ["missing"]
    if name in LIMITS:
        return ["map" if len(workload.stages) == 1 else "fused"] if LIMITS[name](workload) else []
    peer = peers.load(name)
    if workload.batches == (1,) and not peer.SINGLES:
        return []
    if len(workload.stages) == 1:
        return ["map"] if peer.MAPS else []
    own = ["stages"] if hasattr(peer, "chain") else []
    fused = ["fused"] if peer.FUSES or not own else []
    if workload.measure == "rate":
        return own + fused
    if workload.measure == "latency" and not peer.LIVE:
        return []
    return own or (["by hand"] if peer.NESTS else fused)


LIMITS: dict[str, Callable[[Workload], bool]] = {
    "serial": lambda workload: workload.measure != "memory",
    "ideal": lambda workload: workload.measure == "rate",
}
"""What the tools are measured against, and where that makes sense."""


def width(way: Way, workload: Workload) -> int:
    """Processes that compute, where a way does not give each stage its own."""
    return way.workers or (
        workload.stages[0].workers if len(workload.stages) == 1 else machine.cores()
    )


def run(way: Way, workload: Workload, source: Iterable[Any], batch: int) -> Iterable[Any]:
    """The outputs of the workload, as they come; items travel in lists of `batch`, if not 1."""
    stages = workload.stages
    if way.workers:
        stages = tuple(Stage(s.name, s.fn, way.workers, s.many) for s in stages)
    if way.mode == "fused":
        stages = (Stage("fused", Fused(stages), width(way, workload), many=True),)
    if batch == 1:
        return composed(way.peer, stages, source)
    stages = tuple(Stage(s.name, Each(s.fn, s.many), s.workers) for s in stages)
    return chain.from_iterable(composed(way.peer, stages, lists(source, batch)))


def composed(tool: str, stages: tuple[Stage, ...], source: Iterable[Any]) -> Iterable[Any]:
    peer = peers.load(tool)
    if hasattr(peer, "chain"):
        outputs: Iterable[Any] = peer.chain(stages, source)
        return outputs
    for stage in stages:
        source = peer.stream(stage.fn, source, workers=stage.workers, buffer=None)
        if stage.many:
            source = chain.from_iterable(source)
    return source


def lists(source: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(source)
    while batch := list(islice(items, size)):
        yield batch
