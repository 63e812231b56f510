"""`multiprocessing.Pool` of the standard library."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

NAME = "multiprocessing.Pool"
PACKAGE = None


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn" if spawn else None)
    with context.Pool(workers) as pool:
        yield from pool.imap_unordered(fn, source)
        pool.close()
        pool.join()


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    """The limit is for the next result, whichever item it is of."""
    with multiprocessing.Pool(2) as pool:
        results = pool.imap_unordered(fn, source)
        while True:
            try:
                yield results.next(seconds)
            except StopIteration:
                return


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    with multiprocessing.Pool(2) as pool:
        yield from pool.imap(fn, source)
