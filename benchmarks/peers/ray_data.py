"""Ray Data: rows are dicts; two concurrent tasks a stage, a row a batch."""

# mypy: disable-error-code="import-not-found, import-untyped"
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray

NAME = "Ray Data"
PACKAGE = "ray"


def _dataset(source: Iterable[Any], memory_bytes: int = 1 << 28) -> Any:
    store = {"object_store_memory": memory_bytes}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, **store)
    return ray.data.from_items([{"item": item} for item in source])  # takes lists only


def _values(dataset: Any) -> Iterator[Any]:
    try:
        for row in dataset.iter_rows():
            yield row["item"]
    finally:
        ray.shutdown()


def _map(fn: Callable[[Any], Any], dataset: Any) -> Iterator[Any]:
    two = ray.data.TaskPoolStrategy(size=2)
    return _values(dataset.map(lambda row: {"item": fn(row["item"])}, compute=two))


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    return _map(fn, _dataset(source))


def skipping(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    ray.data.DataContext.get_current().max_errored_blocks = -1  # any number
    return stream(fn, source)


def large(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return _map(fn, _dataset(source, 8 << 30))


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    return stream(fn, source)


def two_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], source: Iterable[Any]
) -> Iterator[Any]:
    class First:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"item": first(row["item"])}

    class Second:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"item": second(row["item"])}

    dataset = _dataset(source)
    actors = ray.data.ActorPoolStrategy(size=2)
    return _values(dataset.map(First, compute=actors).map(Second, compute=actors))


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    return _values(_dataset(source).flat_map(lambda row: ({"item": x} for x in fn(row["item"]))))
