"""SPDL's pipeline, each stage on a process pool of its own."""

# mypy: disable-error-code="import-not-found, import-untyped"
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from spdl.pipeline import PipelineBuilder, TaskPerfStats, TaskStatsHook

NAME = "SPDL (process pools)"
PACKAGE = "spdl"


def run(
    stages: Sequence[Callable[[Any], Any]],
    source: Iterable[Any],
    spawn: bool = False,
    output_order: str = "completion",
    timeout: float | None = None,
    **options: Any,
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn" if spawn else None)
    builder = PipelineBuilder().add_source(source)
    with ExitStack() as pools:
        for fn in stages:
            pool = pools.enter_context(ProcessPoolExecutor(2, mp_context=context))
            builder.pipe(fn, concurrency=2, executor=pool, output_order=output_order)
        pipeline = builder.add_sink(10).build(num_threads=2, **options)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=timeout)


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    return run([fn], source, spawn)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    """The limit is for the next result, whichever item it is of."""
    return run([fn], source, timeout=seconds)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return run([fn], source, output_order="input")


def two_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], source: Iterable[Any]
) -> Iterator[Any]:
    return run([first, second], source)


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    return run([fn], source)


def percentiles(fn: Callable[[Any], Any], source: Iterable[Any]) -> dict[str, float]:
    seen: list[TaskPerfStats] = []

    class Hook(TaskStatsHook):  # type: ignore[misc, unused-ignore]
        async def interval_stats_callback(self, stats: TaskPerfStats) -> None:
            seen.append(stats)

    list(run([fn], source, task_hook_factory=lambda info: [Hook(info, interval=1.0)]))
    return {"p90": seen[-1].p90_time, "p99": seen[-1].p99_time}
