"""Dask's distributed scheduler on this machine; the caller keeps a few futures under way."""

# mypy: disable-error-code="import-not-found, import-untyped"
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from dask.distributed import Client, LocalCluster, as_completed, default_client

NAME = "Dask distributed"
PACKAGE = "distributed"
NESTS = LIVE = False


@contextmanager
def session(workers: int = 2) -> Iterator[Client]:
    one_thread = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, **one_thread) as cluster, Client(cluster) as client:
        yield client


@dataclass(frozen=True)
class Sealed:
    """An item or output sent as a whole: Dask sends a list element by element, 0.1 ms each."""

    value: Any


def sealed(fn: Callable[[Any], Any], item: Sealed) -> Sealed:
    return Sealed(fn(item.value))


def current() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    items, window = iter(source), buffer or 10 * workers
    known = current()
    with nullcontext(known) if known else session(workers) as client:

        def submit(count: int) -> list[Any]:
            some = itertools.islice(items, count)
            return [client.submit(sealed, fn, Sealed(item), pure=False) for item in some]

        under_way = as_completed(submit(window), with_results=True)
        for _, output in under_way:
            under_way.update(submit(1))
            yield output.value
