"""mpipe."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpipe import Pipeline, imap

NAME = "mpipe"
PACKAGE = "mpipe"


def stream(fn: Callable[[Any], Any], source: Iterable[Any], spawn: bool = False) -> Iterator[Any]:
    pipeline = Pipeline().add_map("map", fn, workers=2, buffer_size=10)
    return pipeline.run(source, start_method="spawn" if spawn else "fork")


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


def skipping(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    """`dead_letters()` of the iterator tells which items failed, and how."""
    pipeline = Pipeline().add_map("map", fn, workers=2, buffer_size=10, on_error="dead_letter")
    return pipeline.run(source)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    options = {"workers": 2, "buffer_size": 10, "on_error": "dead_letter", "timeout": seconds}
    return Pipeline().add_map("map", fn, **options).run(source)


def large(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    pipeline = Pipeline().add_map("map", fn, workers=2, buffer_size=10)
    return pipeline.run(source, max_item_bytes=4 << 30)


def percentiles(fn: Callable[[Any], Any], source: Iterable[Any]) -> dict[str, float]:
    outputs = imap(fn, source, workers=2)
    list(outputs)
    latency = outputs.stats().stages["map"].latency
    return {"p90": latency.p90, "p99": latency.p99}
