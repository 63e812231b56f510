"""How many items are timed together: pure arithmetic."""

from __future__ import annotations

import pytest

from mpipe.policy.sampling import MOST_ITEMS, RUN_NS, run_items


@pytest.mark.parametrize(
    ("mean_ns", "items"),
    [
        (0, 1),
        (1, MOST_ITEMS),
        (625, 160),
        (1000, 100),
        (24_999, 4),
        (25_001, 1),
        (1e9, 1),
    ],
)
def test_dear_items_are_timed_singly_and_cheap_ones_together(mean_ns: float, items: int) -> None:
    assert run_items(mean_ns) == items
    assert items == 1 or items * mean_ns <= RUN_NS
