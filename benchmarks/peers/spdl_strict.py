"""SPDL told to fail at the first failure, where its default is to log it and go on."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import spdl

NAME = "SPDL"
SETTING = "process pools, max_failures=0"
PACKAGE = spdl.PACKAGE


def stream(fn: Callable[[Any], Any], source: Iterable[Any]) -> Iterator[Any]:
    return spdl.run(spdl.two_workers(fn), source, max_failures=0)


def limited(fn: Callable[[Any], Any], source: Iterable[Any], seconds: float) -> Iterator[Any]:
    return spdl.run(spdl.two_workers(fn), source, timeout=seconds, max_failures=0)
