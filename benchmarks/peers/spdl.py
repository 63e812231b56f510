"""SPDL's pipeline, each stage on a process pool of its own."""

# mypy: disable-error-code="import-not-found, import-untyped"
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from spdl.pipeline import PipelineBuilder, TaskPerfStats, TaskStatsHook
from workloads import Stage

NAME = "SPDL"
SETTING = "process pools"
PACKAGE = "spdl"
FUSES = False  # see spdl_region.py


def run(
    stages: Sequence[Stage],
    source: Iterable[Any],
    spawn: bool = False,
    output_order: str = "completion",
    timeout: float | None = None,
    **options: Any,
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn" if spawn else None)
    builder = PipelineBuilder().add_source(source)
    with ExitStack() as pools:
        for stage in stages:
            pool = pools.enter_context(ProcessPoolExecutor(stage.workers, mp_context=context))
            how = {"concurrency": stage.workers, "executor": pool, "output_order": output_order}
            builder.pipe(stage.fn, **how)
            if stage.many:
                builder.disaggregate()
        pipeline = builder.add_sink(10).build(num_threads=2, **options)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=timeout)


def two_workers(fn: Callable[[Any], Any]) -> tuple[Stage]:
    return (Stage("map", fn, workers=2),)


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    return run([Stage("map", fn, workers)], source, spawn)


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    return run(stages, source)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    """The limit is for the next result, whichever item it is of."""
    return run(two_workers(fn), source, timeout=seconds)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return run(two_workers(fn), source, output_order="input")


def two_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], source: Iterable[Any]
) -> Iterator[Any]:
    return run(two_workers(first) + two_workers(second), source)


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    return run(two_workers(fn), source)


def percentiles(fn: Callable[[Any], Any], source: Iterable[Any]) -> dict[str, float]:
    seen: list[TaskPerfStats] = []

    class Hook(TaskStatsHook):  # type: ignore[misc, unused-ignore]
        async def interval_stats_callback(self, stats: TaskPerfStats) -> None:
            seen.append(stats)

    stages = two_workers(fn)
    list(run(stages, source, task_hook_factory=lambda info: [Hook(info, interval=1.0)]))
    return {"p90": seen[-1].p90_time, "p99": seen[-1].p99_time}
