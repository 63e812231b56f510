"""How many items a frame carries: enough to be worth a hand-over, never more than its share."""

from __future__ import annotations

import pytest

from mpipe.policy.batching import (
    FRAME_BYTES,
    FRAME_NS,
    MOST_PAUSE_S,
    fair_share,
    frame_items,
    pause_s,
)
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


@pytest.mark.parametrize("service_ns", [300, 1_000, 99_000, 1_000_000, 6_000_000])
def test_a_frame_is_the_largest_power_of_two_that_takes_its_consumer_no_longer(
    service_ns: int,
) -> None:
    items = frame_items(service_ns, 10**6, 8)
    assert items & (items - 1) == 0
    assert items * service_ns <= FRAME_NS < 2 * items * service_ns


def test_an_expensive_item_travels_alone() -> None:
    assert frame_items(FRAME_NS * 50, 100, 8) == 1


def test_a_frame_takes_no_more_than_its_share() -> None:
    assert frame_items(10, 8, 8) == 8
    assert frame_items(10, 7, 8) == 4


def test_large_items_travel_in_small_frames() -> None:
    assert frame_items(10, 10**6, FRAME_BYTES / 4) == 4
    assert frame_items(10, 10**6, FRAME_BYTES * 4) == 1


def test_items_of_unknown_size_are_limited_by_time_and_share_only() -> None:
    assert frame_items(FRAME_NS / 64, 100, 0) == 64
    assert frame_items(FRAME_NS / 64, 32, 0) == 32


def test_a_source_rests_only_while_a_buffer_that_is_nearly_full_is_work_for_a_while() -> None:
    millisecond = 1_000_000
    assert pause_s(749, 1000, millisecond, 1) == 0
    assert pause_s(750, 1000, millisecond, 1) == MOST_PAUSE_S
    assert pause_s(100, 100, millisecond, 2) == pytest.approx(0.1 / 2 / 4)
    assert pause_s(10, 10, millisecond, 1) == 0, "too little work to rest"
    assert pause_s(1000, 1000, 100, 1) == 0, "quick consumers"


@pytest.mark.parametrize(("attempt", "seconds"), [(2, 0.5), (3, 1.0), (4, 2.0), (7, 16.0)])
def test_the_delay_before_a_retry_doubles_each_time(attempt: int, seconds: float) -> None:
    assert delay_before(attempt, 0.5) == seconds


def test_no_delay_stays_no_delay() -> None:
    assert delay_before(9, 0.0) == 0.0
