"""How many items a frame carries: enough to be worth a hand-over, never more than its share."""

from __future__ import annotations

import pytest

from mpipe.policy.batching import FRAME_BYTES, FRAME_NS, fair_share, frame_items
from mpipe.policy.retry import delay_before


@pytest.mark.parametrize("buffer_items", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("consumers", [1, 2, 3, 16])
def test_each_consumer_can_hold_one_frame_and_have_one_waiting(
    buffer_items: int, consumers: int
) -> None:
    share = fair_share(buffer_items, consumers)
    assert share >= 1
    assert share == 1 or share * 2 * consumers <= buffer_items
    assert (share + 1) * 2 * consumers > buffer_items


def test_an_unknown_service_time_gives_single_items() -> None:
    assert frame_items(0, 100, 8) == 1


def test_a_full_frame_takes_its_consumer_a_few_milliseconds() -> None:
    assert frame_items(1_000, 10**6, 8) == FRAME_NS // 1_000
    assert frame_items(FRAME_NS / 10, 10**6, 8) == 10


def test_an_expensive_item_travels_alone() -> None:
    assert frame_items(FRAME_NS * 50, 100, 8) == 1


def test_a_frame_takes_no_more_than_its_share() -> None:
    assert frame_items(10, 7, 8) == 7


def test_large_items_travel_in_small_frames() -> None:
    assert frame_items(10, 10**6, FRAME_BYTES / 4) == 4
    assert frame_items(10, 10**6, FRAME_BYTES * 4) == 1


def test_items_of_unknown_size_are_limited_by_time_and_share_only() -> None:
    assert frame_items(FRAME_NS / 50, 100, 0) == 50


@pytest.mark.parametrize(("attempt", "seconds"), [(2, 0.5), (3, 1.0), (4, 2.0), (7, 16.0)])
def test_the_delay_before_a_retry_doubles_each_time(attempt: int, seconds: float) -> None:
    assert delay_before(attempt, 0.5) == seconds


def test_no_delay_stays_no_delay() -> None:
    assert delay_before(9, 0.0) == 0.0
