"""The limit of the machine: forked processes that have the items there already, nothing sent."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

Work = Callable[[Iterable[Any]], list[Any]]
"""Turns items into outputs."""

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ideal:
    """What `shares` took, from the first start to the last end, and what it computed."""

    wall: float
    cpu: float
    outputs: list[Any]


def shares(run: Work, source: Iterable[Any], workers: int, equal: bool = True) -> Ideal:
    """`run` every `workers`-th item of `source` in each process; results come back afterwards.

    Where items are not `equal`, each process takes the next one that none has taken.
    """
    pipes = [_fork.Pipe() for _ in range(workers)]
    taken = None if equal else _fork.Value("Q", 0)
    parts = [islice(source, i, None, workers) if equal else source for i in range(workers)]
    children = [
        _fork.Process(target=_child, args=(run, part, taken, end))
        for part, (_, end) in zip(parts, pipes, strict=True)
    ]
    for child in children:
        child.start()
    for ours, _ in pipes:
        ours.recv()  # all have their share
    for ours, _ in pipes:
        ours.send("go")
    told = [ours.recv() for ours, _ in pipes]
    for child in children:
        child.join()
    for ends in pipes:
        for end in ends:
            end.close()
    starts, stops, cpu, outputs = zip(*told, strict=True)
    return Ideal(max(stops) - min(starts), sum(cpu), [out for part in outputs for out in part])


def _child(run: Work, source: Iterable[Any], taken: Any, end: Connection) -> None:
    items = list(source)
    end.send("ready")
    end.recv()
    cpu, start = time.process_time(), time.perf_counter()
    outputs = run(items if taken is None else _untaken(taken, items))
    end.send((start, time.perf_counter(), time.process_time() - cpu, outputs))


def _untaken(taken: Any, items: list[Any]) -> Iterator[Any]:
    """The items that no other process has taken; `taken` counts them for all."""
    while True:
        with taken:
            next_one = taken.value
            taken.value += 1
        if next_one >= len(items):
            return
        yield items[next_one]
