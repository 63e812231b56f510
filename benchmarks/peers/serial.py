"""No tool: the plain loop."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

NAME = "serial loop"
PACKAGE = None


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 1,
    buffer: int | None = None,
) -> Iterator[Any]:
    return map(fn, source)
