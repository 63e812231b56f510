"""joblib, with its default backend loky: always fresh interpreters."""

# mypy: disable-error-code="import-not-found, import-untyped"
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from joblib import Parallel, delayed

NAME = "joblib"
PACKAGE = "joblib"
NESTS = LIVE = False  # its calls share one pool


def stream(
    fn: Callable[[Any], Any],
    source: Iterable[Any],
    workers: int = 2,
    buffer: int | None = 10,
    spawn: bool = False,
) -> Iterator[Any]:
    options = {"return_as": "generator_unordered", "pre_dispatch": buffer or "2 * n_jobs"}
    parallel = Parallel(workers, **options)
    yield from parallel(delayed(fn)(item) for item in source)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    parallel = Parallel(2, return_as="generator_unordered", pre_dispatch=10, timeout=seconds)
    yield from parallel(delayed(fn)(item) for item in source)


def ordered(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    yield from Parallel(2, return_as="generator")(delayed(fn)(item) for item in source)
