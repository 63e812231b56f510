"""How many items to time together: reading the clock for each would cost more than a cheap item.

Cheap items are timed in runs of about `RUN_NS`, and each of a run counts with the run's mean: sums
and counts stay exact, and a percentile is off by what the items of a run differ. One that takes far
longer than those before shows as a run of items that took somewhat longer. Items of which fewer
than `LEAST_ITEMS` make a run are timed singly, which costs less then.
"""

from __future__ import annotations

RUN_NS = 100_000
"""Service time of items that are timed together, in nanoseconds."""

LEAST_ITEMS, MOST_ITEMS = 4, 256
"""Fewest and most items timed together."""


def run_items(mean_ns: float) -> int:
    """Items to time together when they take `mean_ns` each; 1 while that is unknown (0)."""
    if not 0 < mean_ns <= RUN_NS / LEAST_ITEMS:
        return 1
    return min(MOST_ITEMS, int(RUN_NS / mean_ns))
