"""mpire's `WorkerPool`."""

# mypy: disable-error-code="import-not-found, import-untyped"
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpire import WorkerPool

NAME = "mpire"
PACKAGE = "mpire"


def _singly(source: Iterable[Any]) -> Iterator[tuple[Any]]:
    """Items that are tuples would be taken for several arguments."""
    return ((item,) for item in source)


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    how = {"start_method": "spawn", "use_dill": True} if spawn else {}
    with WorkerPool(workers, **how) as pool:
        yield from pool.imap_unordered(fn, _singly(source), chunk_size=1, max_tasks_active=buffer)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    options = {"chunk_size": 1, "max_tasks_active": 10, "task_timeout": seconds}
    with WorkerPool(2) as pool:
        yield from pool.imap_unordered(fn, _singly(source), **options)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    with WorkerPool(2) as pool:
        yield from pool.imap(fn, _singly(source), chunk_size=1, max_tasks_active=10)
