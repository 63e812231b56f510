"""mpire's `WorkerPool`."""

# mypy: disable-error-code="import-not-found, import-untyped"
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpire import WorkerPool

PACKAGE = "mpire"


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    how = {"start_method": "spawn", "use_dill": True} if spawn else {}
    with WorkerPool(2, **how) as pool:
        yield from pool.imap_unordered(fn, source, chunk_size=1, max_tasks_active=10)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    with WorkerPool(2) as pool:
        yield from pool.imap(fn, source, chunk_size=1, max_tasks_active=10)
