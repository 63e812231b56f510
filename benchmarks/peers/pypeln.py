"""pypeln's stages of processes."""

# mypy: disable-error-code="import-not-found, import-untyped"
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pypeln import process
from workloads import Stage

NAME = "pypeln"
SETTING = "processes, bounded"
PACKAGE = "pypeln"
LENGTH = 100
SIZES = {"workers": 2, "maxsize": 10}


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    if spawn:
        multiprocessing.set_start_method("spawn", force=True)
    yield from process.map(fn, source, workers=workers, maxsize=buffer or LENGTH)


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    for stage in stages:
        add = process.flat_map if stage.many else process.map
        source = add(stage.fn, source, workers=stage.workers, maxsize=LENGTH)
    yield from source


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    yield from process.map(fn, source, timeout=seconds, **SIZES)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    yield from process.ordered(process.map(fn, source, **SIZES))


def two_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], source: Iterable[Any]
) -> Iterator[Any]:
    yield from process.map(second, process.map(first, source, **SIZES), **SIZES)


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    yield from process.flat_map(fn, source, **SIZES)
