"""pypeln's stages of processes with queues without a bound, its default."""

# mypy: disable-error-code="import-not-found, import-untyped"
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pypeln import process

NAME = "pypeln"
SETTING = "processes, unbounded"
PACKAGE = "pypeln"


def stream(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    yield from process.map(fn, source, workers=2)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    yield from process.map(fn, source, workers=2, timeout=seconds)
