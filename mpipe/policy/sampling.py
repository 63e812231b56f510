"""How many items to time together: reading the clock for each would cost more than a cheap item.

Items are timed singly from `SINGLE_NS` on. Cheaper ones are timed in runs of about that long, and
each of a run counts with the run's mean: sums and counts stay exact, and a percentile is off by
what the items of a run differ. One that takes far longer than those before shows as a run of items
that took somewhat longer.
"""

from __future__ import annotations

SINGLE_NS = 20_000
"""Service time from which on each item is timed, in nanoseconds."""

MOST_ITEMS = 256
"""Most items timed together."""


def run_items(mean_ns: float) -> int:
    """Items to time together when they take `mean_ns` each; 1 while that is unknown (0)."""
    if not 0 < mean_ns < SINGLE_NS / 2:
        return 1
    return min(MOST_ITEMS, int(SINGLE_NS / mean_ns))
