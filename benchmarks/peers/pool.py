"""`multiprocessing.Pool` of the standard library."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PACKAGE = None


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn" if spawn else None)
    with context.Pool(2) as pool:
        yield from pool.imap_unordered(fn, source)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    with multiprocessing.Pool(2) as pool:
        yield from pool.imap(fn, source)
