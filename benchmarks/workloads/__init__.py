"""One module per workload: what goes in, what is done to it, and how much of it.

Each defines `WORKLOAD`. Functions stand at the top of a module, so that every tool can send them
to its processes; data is made from fixed seeds, so that every run has the same results.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal


@dataclass(frozen=True)
class Stage:
    """A step: `fn(item)` gives one output, or a list of outputs where it says `many`."""

    name: str
    fn: Callable[[Any], Any]
    workers: int = 1
    many: bool = False


def same(output: Any) -> Any:
    return output


@dataclass(frozen=True)
class Workload:
    """Items, the stages they pass, and what the caller keeps of the outputs."""

    title: str
    says: str
    """What is done, for the reader of the tables."""
    stages: tuple[Stage, ...]
    source: Callable[[int, int], Iterable[Any]]
    """`source(items, scale)`: so many items, made as they are pulled."""
    items: int
    batches: tuple[int, ...] = (1,)
    """Lengths of lists that are tried with each tool that leaves this to its user; 1: no lists."""
    scale: Callable[[], int] = lambda: 1
    """Measures this machine, once for all runs that are compared."""
    keep: Callable[[Any], Any] = same
    """What the caller keeps of an output; comparable, so that results can be sorted."""
    measure: Literal["rate", "latency", "memory"] = "rate"
    """The figure that is wanted: items/s, the delays that are kept, or what piles up."""
    workers: tuple[int, ...] = ()
    """Numbers of workers to run it on, where it is to be run on several."""
    turns: int = 3
    """How often all tools run it, unless told otherwise."""
    equal: bool = True
    """Equal numbers of items are equal work, so that an ideal run can share them out before."""


def load(name: str) -> Workload:
    workload = importlib.import_module(f"workloads.{name}").WORKLOAD
    assert isinstance(workload, Workload)
    return workload


@dataclass(frozen=True)
class Fused:
    """All stages as one function of an item that gives a list of outputs."""

    stages: tuple[Stage, ...]

    def __call__(self, item: Any) -> list[Any]:
        outputs: Iterable[Any] = (item,)
        for stage in self.stages:
            outputs = map(stage.fn, outputs)
            if stage.many:
                outputs = chain.from_iterable(outputs)
        return list(outputs)


@dataclass(frozen=True)
class Each:
    """A function of one item made one of a batch; outputs of `many` are put in a row."""

    fn: Callable[[Any], Any]
    many: bool

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        outputs = map(self.fn, batch)
        return list(chain.from_iterable(outputs) if self.many else outputs)


def serial(stages: tuple[Stage, ...], source: Iterable[Any]) -> Iterator[Any]:
    """The plain loop that all others are measured against."""
    if len(stages) == 1 and not stages[0].many:
        return map(stages[0].fn, source)
    return chain.from_iterable(map(Fused(stages), source))


def digest(kept: list[Any]) -> str:
    """Equal for equal results in whatever order, and only for those."""
    return hashlib.sha256(repr(sorted(kept)).encode()).hexdigest()
