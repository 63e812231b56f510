"""streamable, with a process pool for each stage."""

# mypy: disable-error-code="import-not-found, import-untyped"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from streamable import stream as streamed
from workloads import Stage

NAME = "streamable"
PACKAGE = "streamable"


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    with ExitStack() as pools:
        items = streamed(source)
        for stage in stages:
            pool = pools.enter_context(ProcessPoolExecutor(stage.workers))
            items = items.map(stage.fn, concurrency=pool, as_completed=True)
            if stage.many:
                items = items.flatten()
        yield from items
