"""`concurrent.futures.ProcessPoolExecutor` of the standard library."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

NAME = "ProcessPoolExecutor"
PACKAGE = None
LIVE = sys.version_info >= (3, 14)  # before, `map` pulls the source whole


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn" if spawn else None)
    bound: dict[str, Any] = {"buffersize": buffer} if sys.version_info >= (3, 14) else {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(fn, source, **bound)


ordered = stream


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    """The limit is for the whole run: `map` has no other."""
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(fn, source, timeout=seconds)
