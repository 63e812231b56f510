"""Calling a stage's function: what it returns becomes outputs, as the kind of stage says.

`one` handles an item, `many` all that an iterator gives. Both add to `outputs`; `many` also notes
in `ends` how many there are after each item. When the function raises, what came before stays, and
the iterator tells by what it has left which item it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any

from ..stage import Kind

Fn = Callable[[Any], Any]
Take = Callable[[Any, int], None]
One = Callable[[Any, int], None]
Many = Callable[[Iterator[Any]], None]


def appliers(
    kind: Kind, fn: Fn, outputs: list[Any], ends: list[int], take: Take
) -> tuple[One, Many]:
    """`one` and `many` for a stage.

    `take(result, skip)` adds what is not a plain list or tuple, less the first `skip` of it.
    """
    make = {"flat": _flat, "map": _map, "filter": _filter}[kind]
    return make(fn, outputs, ends, take)


def _flat(fn: Fn, outputs: list[Any], ends: list[int], take: Take) -> tuple[One, Many]:
    extend, end = outputs.extend, ends.append

    def one(item: Any, skip: int) -> None:
        result = fn(item)
        kind = type(result)
        if kind is list or kind is tuple:
            extend(result[skip:] if skip else result)
        elif result is not None:
            take(result, skip)

    def many(items: Iterator[Any]) -> None:
        for item in items:
            result = fn(item)
            kind = type(result)
            if kind is list or kind is tuple:
                extend(result)
            elif result is not None:
                take(result, 0)
            end(len(outputs))

    return one, many


def _map(fn: Fn, outputs: list[Any], ends: list[int], take: Take) -> tuple[One, Many]:
    append, extend = outputs.append, outputs.extend
    numbers: list[int] = []  # from 1 on; made once, for that takes as long as to pickle them

    def one(item: Any, skip: int) -> None:
        append(fn(item))

    def many(items: Iterator[Any]) -> None:
        before, count = len(outputs), length_hint(items)
        try:
            extend(map(fn, items))
        finally:
            numbers.extend(range(len(numbers) + 1, len(outputs) + 1))
            ends.extend(numbers[before : len(outputs)])
        if len(outputs) - before < count:  # `extend` takes it for the end
            raise StopIteration

    return one, many


def _filter(fn: Fn, outputs: list[Any], ends: list[int], take: Take) -> tuple[One, Many]:
    append, end = outputs.append, ends.append

    def one(item: Any, skip: int) -> None:
        if fn(item):
            append(item)

    def many(items: Iterator[Any]) -> None:
        for item in items:
            if fn(item):
                append(item)
            end(len(outputs))

    return one, many


def check_result(result: Any) -> None:
    """Raise `TypeError`, with what to return instead, unless `result` is outputs or None."""
    if result is None or isinstance(result, (list, Iterator)):
        return
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return
    raise TypeError(
        f"a stage must return a list, tuple, generator or iterator of outputs, or None, not "
        f"{type(result).__name__}; return [result] for one output, or use add_map"
    )
