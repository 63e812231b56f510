"""How many items a frame carries: enough to be worth a hand-over, never more than its share."""

from __future__ import annotations

import pytest

from mpipe.policy.batching import (
    FRAME_BYTES,
    FRAME_NS,
    LEAST_FRAME_NS,
    MOST_PAUSE_S,
    credits_for,
    fair_share,
    frame_items,
    items_for,
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


def test_a_frame_costs_credits_for_its_items_or_for_its_bytes_whichever_are_more() -> None:
    assert credits_for(10, 5, unit=1, credit_bytes=100) == 10
    assert credits_for(10, 5, unit=3, credit_bytes=100) == 4
    assert credits_for(1, 1001, unit=1, credit_bytes=100) == 11


@pytest.mark.parametrize("size", [0, 10, 950, 5000])
@pytest.mark.parametrize("unit", [1, 3])
def test_credits_pay_for_all_items_from_their_price_on_and_never_for_more_bytes(
    size: int, unit: int
) -> None:
    items, credit_bytes = 12, 100
    price = credits_for(items, size, unit, credit_bytes)
    for held in range(price + 2):
        paid = items_for(held, items, size, unit, credit_bytes)
        assert paid <= held * unit
        assert paid * size <= held * credit_bytes * items
        assert (paid == items) == (held >= price)


def test_an_unknown_service_time_gives_single_items() -> None:
    assert frame_items(0, 100, 100, 8) == 1


@pytest.mark.parametrize("service_ns", [300, 1_000, 99_000, 1_000_000, 6_000_000])
def test_a_frame_is_the_largest_power_of_two_that_takes_its_consumer_no_longer(
    service_ns: int,
) -> None:
    items = frame_items(service_ns, 10**6, 10**6, 0)
    assert items & (items - 1) == 0
    assert items * service_ns <= FRAME_NS < 2 * items * service_ns


def test_an_expensive_item_travels_alone() -> None:
    assert frame_items(FRAME_NS * 50, 100, 100, 8) == 1


def test_a_frame_takes_no_more_than_its_share() -> None:
    assert frame_items(LEAST_FRAME_NS, 8, 100, 8) == 8
    assert frame_items(LEAST_FRAME_NS, 7, 100, 8) == 4


def test_a_frame_of_cheap_items_takes_more_than_its_share_but_leaves_room_for_another() -> None:
    assert frame_items(LEAST_FRAME_NS / 64, 8, 100, 8) == 64
    assert frame_items(LEAST_FRAME_NS / 1000, 8, 100, 8) == 64
    assert frame_items(LEAST_FRAME_NS / 4, 8, 100, 8) == 8


def test_large_items_travel_in_small_frames() -> None:
    assert frame_items(10, 10**6, 10**6, FRAME_BYTES / 4) == 4
    assert frame_items(10, 10**6, 10**6, FRAME_BYTES * 4) == 1
    assert frame_items(10, 10**6, 10**6, 1000, frame_bytes=5000) == 4


def test_items_of_unknown_size_are_limited_by_time_and_share_only() -> None:
    assert frame_items(FRAME_NS / 64, 100, 100, 0) == 64
    assert frame_items(FRAME_NS / 64, 32, 100, 0) == 32


def test_a_source_rests_only_while_a_buffer_that_is_nearly_full_is_work_for_a_while() -> None:
    millisecond = 1_000_000
    assert pause_s(0.749, 749, millisecond, 1) == 0
    assert pause_s(0.75, 750, millisecond, 1) == MOST_PAUSE_S
    assert pause_s(1.0, 100, millisecond, 2) == pytest.approx(0.1 / 2 / 4)
    assert pause_s(1.0, 10, millisecond, 1) == 0, "too little work to rest"
    assert pause_s(1.0, 1000, 100, 1) == 0, "quick consumers"


@pytest.mark.parametrize(("attempt", "seconds"), [(2, 0.5), (3, 1.0), (4, 2.0), (7, 16.0)])
def test_the_delay_before_a_retry_doubles_each_time(attempt: int, seconds: float) -> None:
    assert delay_before(attempt, 0.5) == seconds


def test_no_delay_stays_no_delay() -> None:
    assert delay_before(9, 0.0) == 0.0
