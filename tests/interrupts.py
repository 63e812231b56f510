"""Interrupts a call at its n-th line in mpipe, as a signal does that comes just then."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mpipe

_ENGINE = str(Path(mpipe.__file__).parent)


class Interrupt(BaseException):
    """What the handler of a signal raises."""


def raise_interrupt() -> None:
    raise Interrupt


def _is_in_no_block(frame: FrameType) -> bool:
    """Python looks for signals after calls: never on the way into a block, or out of one."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)
    return line.strip().startswith(("with ", "try:"))


@contextmanager
def at_line(
    number: int, handler: Callable[[], object] = raise_interrupt, distinct: bool = False
) -> Iterator[list[int]]:
    """Call `handler` before line `number` (from 1) that this thread runs in mpipe in here.

    With `distinct`, each line of the source counts once. Gives a list whose only element counts.
    """
    lines = [0]
    seen: set[tuple[object, int]] = set()

    def on_line(frame: FrameType, event: str, arg: Any) -> Any:
        line = (frame.f_code, frame.f_lineno)
        if event == "line" and not _is_in_no_block(frame) and not (distinct and line in seen):
            seen.add(line)
            lines[0] += 1
            if lines[0] == number:
                sys.settrace(None)
                handler()
        return on_line

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(_ENGINE) else None

    sys.settrace(on_call)
    try:
        yield lines
    finally:
        sys.settrace(None)


def each_line(call: Callable[[int], bool], start: int = 1, step: int = 1) -> int:
    """Call `call(n)` for each n until it says that there is no such line; returns that n."""
    number = start
    while call(number):
        number += step
    return number
