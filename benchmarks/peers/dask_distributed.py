"""Dask's distributed scheduler on this machine; the caller keeps a few futures under way."""

# mypy: disable-error-code="import-not-found, import-untyped"
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask.distributed import Client, LocalCluster, as_completed

NAME = "Dask distributed"
PACKAGE = "distributed"
WINDOW = 10


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    items = iter(source)
    one_thread = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, **one_thread) as cluster, Client(cluster) as client:
        first = [client.submit(fn, item, pure=False) for item in itertools.islice(items, WINDOW)]
        under_way = as_completed(first, with_results=True)
        for _, result in under_way:
            for item in itertools.islice(items, 1):
                under_way.add(client.submit(fn, item, pure=False))
            yield result
