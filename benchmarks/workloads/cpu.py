"""Items of pure Python that take about the same time each, and how they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


def work(iterations: int) -> int:
    """One item: pure Python on small integers, exact in its result."""
    total = 0
    for i in range(iterations):
        total += i * i % 7
    return total


def iterations(item_us: float) -> int:
    """Iterations of `work` that take about `item_us` on this machine now."""
    probe = 20_000
    work(probe)
    seconds = min(timed(probe) for _ in range(20))
    return max(1, round(probe * item_us * 1e-6 / seconds))


def timed(count: int) -> float:
    start = time.perf_counter()
    work(count)
    return time.perf_counter() - start


def calibrated(item_us: float) -> Callable[[], int]:
    return lambda: iterations(item_us)


def about_equal(items: int, scale: int) -> Iterator[int]:
    """Numbers of iterations, about equal but not the same, so that a mix-up shows."""
    return (scale + i % max(1, min(97, scale)) for i in range(items))
