"""Pure functions made of small numbers, to build random graphs of; and poison.

In a module that imports next to nothing, because every worker imports it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpipe import Stage


@dataclass(frozen=True)
class Work:
    """A pure function with 0 to 4 outputs per item, as a list, tuple, generator or None."""

    salt: int
    shape: str
    most: int

    def __call__(self, item: int) -> Any:
        count = (item * 31 + self.salt) % (self.most + 1)
        outputs = [(item * 7 + self.salt * 13 + i) % 10_007 for i in range(count)]
        if self.shape == "generator":
            return self._one_by_one(outputs)
        if self.shape == "tuple":
            return tuple(outputs)
        return outputs or (None if self.shape == "none" else [])

    def _one_by_one(self, outputs: list[int]) -> Iterator[int]:
        yield from outputs


@dataclass(frozen=True)
class Shift:
    """A map."""

    salt: int

    def __call__(self, item: int) -> int:
        return (item + self.salt) % 10_007


@dataclass(frozen=True)
class Divides:
    """A filter."""

    salt: int

    def __call__(self, item: int) -> bool:
        return item % (self.salt % 4 + 1) != 0


@dataclass(frozen=True)
class Bursts:
    """None or many outputs, more than go into a frame."""

    salt: int

    def __call__(self, item: int) -> Iterator[int]:
        count = (item * 31 + self.salt) % 4 * 20
        for number in range(count):
            yield (item + self.salt * number) % 10_007


@dataclass(frozen=True)
class Fails:
    """Raises on some items, after an output."""

    salt: int

    def __call__(self, item: int) -> Iterator[int]:
        yield (item + self.salt) % 10_007
        if item % 5 == self.salt % 5:
            raise ValueError("bad item")
        yield item


class Keeps(Stage):
    """Emits what it was given at the end of input; a worker's death changes nothing."""

    def setup(self) -> None:
        self.kept: list[int] = []

    def process(self, item: int) -> None:
        self.kept.append(item)

    def finish(self) -> list[int]:
        return self.kept

    def snapshot(self) -> list[int]:
        return self.kept

    def restore(self, state: list[int]) -> None:
        self.kept = state


class Heavy(int):
    """A number that takes up to 200 KB to send; what is computed from it is like any other."""

    def __reduce__(self) -> Any:
        size = 200_000 if self % 50 == 0 else 5_000 if self % 5 == 0 else 50
        return _heavy, (int(self), bytes(size))


def _heavy(value: int, _: bytes) -> Heavy:
    return Heavy(value)


def exits(_: Any) -> None:
    """Ends its process at once."""
    os._exit(3)


def segfaults(_: Any) -> None:
    """Reads where there is no memory."""
    ctypes.string_at(0)


def hangs_deaf_to_signals(_: Any) -> None:
    """Never returns, and blocks all signals that can be blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(60)


def hangs_with_the_interpreter_locked(_: Any) -> None:
    """Never returns, and no other Python code of its process runs."""
    sum(iter(int, 1))
