"""mpipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from workloads import Stage

from mpipe import Outputs, Pipeline, imap

NAME = "mpipe"
PACKAGE = "mpipe"
TRIES = False


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Outputs:
    sizes: dict[str, Any] = {} if buffer is None else {"buffer_size": buffer}
    pipeline = Pipeline().add_map("map", fn, workers=workers, **sizes)
    return pipeline.run(source, start_method="spawn" if spawn else "fork")


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Outputs:
    return pipeline(stages, {stage.name: stage.workers for stage in stages}).run(source)


def pipeline(stages: Sequence[Stage], workers: dict[str, int]) -> Pipeline:
    """The stages in a row; where no workers are given, mpipe decides."""
    made = Pipeline()
    for stage in stages:
        add = made.add_stage if stage.many else made.add_map
        add(stage.name, stage.fn, workers=workers.get(stage.name))
    for first, second in pairwise(stages):
        made.connect(first.name, second.name)
    return made


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return imap(fn, source, workers=2)


def two_stages(
    first: Callable[[Any], Any], second: Callable[[Any], Any], source: Iterable[Any]
) -> Iterator[Any]:
    pipeline = Pipeline()
    pipeline.add_map("first", first, workers=2, buffer_size=10)
    pipeline.add_map("second", second, workers=2, buffer_size=10)
    return pipeline.connect("first", "second").run(source)


def expand(fn: Callable[[Any], Iterator[Any]], source: Iterable[Any]) -> Iterator[Any]:
    return Pipeline().add_stage("expand", fn, workers=2).run(source)


def skipping(fn: Callable[[Any], Any], source: Iterable[Any]) -> Outputs:
    """`dead_letters()` of the iterator tells which items failed, and how."""
    pipeline = Pipeline().add_map("map", fn, workers=2, buffer_size=10, on_error="dead_letter")
    return pipeline.run(source)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Outputs:
    pipeline = Pipeline()
    pipeline.add_map("map", fn, workers=2, buffer_size=10, on_error="dead_letter", timeout=seconds)
    return pipeline.run(source)


def large(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    pipeline = Pipeline().add_map("map", fn, workers=2, buffer_size=10)
    return pipeline.run(source, max_item_bytes=4 << 30)


def percentiles(fn: Callable[[Any], Any], source: Iterable[Any]) -> dict[str, float]:
    outputs = imap(fn, source, workers=2)
    list(outputs)
    latency = outputs.stats().stages["map"].latency
    return {"p90": latency.p90, "p99": latency.p99}
