"""Ray Data: rows are dicts, a row an item; concurrent tasks for each stage."""

# mypy: disable-error-code="import-not-found, import-untyped"
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import machine
from workloads import Stage

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray

NAME = "Ray Data"
PACKAGE = "ray"
TRIES = NESTS = LIVE = False  # its source is a list
FUSES = False  # it does that by itself
ONCE = True  # a run takes ten seconds, whatever there is to do
SMALL = 1 << 28

Build = Callable[[Any], Any]
"""Adds operations to a dataset."""


@contextmanager
def session(memory_bytes: int = 2 << 30) -> Iterator[None]:
    cpus = max(4, machine.cores())
    store = {"object_store_memory": memory_bytes}
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, **store)
    try:
        yield
    finally:
        ray.shutdown()


def _run(source: Iterable[Any], build: Build, memory_bytes: int = SMALL) -> Iterator[Any]:
    with nullcontext() if ray.is_initialized() else session(memory_bytes):
        items = ray.data.from_items([{"item": item} for item in source])  # takes lists only
        for row in build(items).iter_rows():
            yield row["item"]


def _mapped(fn: Callable[[Any], Any], workers: int) -> Build:
    tasks = ray.data.TaskPoolStrategy(size=workers)
    return lambda data: data.map(lambda row: {"item": fn(row["item"])}, compute=tasks)


def _expanded(fn: Callable[[Any], Any], workers: int) -> Build:
    tasks = ray.data.TaskPoolStrategy(size=workers)
    expand = lambda row: [{"item": output} for output in fn(row["item"])]  # noqa: E731
    return lambda data: data.flat_map(expand, compute=tasks)


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    return _run(source, _mapped(fn, workers))


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    def build(data: Any) -> Any:
        for stage in stages:
            data = (_expanded if stage.many else _mapped)(stage.fn, stage.workers)(data)
        return data

    return _run(source, build)


def skipping(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    ray.data.DataContext.get_current().max_errored_blocks = -1  # any number
    return stream(fn, source)


def large(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return _run(source, _mapped(fn, 2), 8 << 30)


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

    actors = ray.data.ActorPoolStrategy(size=2)
    return _run(source, lambda data: data.map(First, compute=actors).map(Second, compute=actors))


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    return _run(source, _expanded(fn, 2))
