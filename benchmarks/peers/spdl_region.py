"""SPDL with all stages in one region of worker processes (`to`)."""

# mypy: disable-error-code="import-not-found, import-untyped"
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from spdl.pipeline import PipelineBuilder
from spdl.pipeline.defs import MAIN_PROCESS, ProcessPoolExecutorConfig

NAME = "SPDL"
SETTING = "region of processes"
PACKAGE = "spdl"
NESTS = False


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = None,
) -> Iterator[Any]:
    region = ProcessPoolExecutorConfig(max_workers=workers)
    builder = PipelineBuilder().add_source(source).to(region).pipe(fn).to(MAIN_PROCESS)
    pipeline = builder.add_sink(10).build(num_threads=2, max_failures=0)
    with pipeline.auto_stop():
        yield from pipeline
