"""When a breaker opens, half-opens and closes: the pure decision, on a clock moved by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpipe
from mpipe import CircuitBreaker, OptionError
from mpipe.policy.breaker import PATIENCE, Breaker, Forgiveness, State


class Clock:
    """A breaker with a clock of its own, and no jitter."""

    def __init__(self, workers: int = 1, jitter: float = 0.0, **settings: Any) -> None:
        self.now = 1000.0
        self.breaker = Breaker(CircuitBreaker(**settings), workers, lambda: jitter)

    @property
    def state(self) -> State:
        return self.breaker.state

    def calls(self, successes: int, errors: int = 0, worker: int = 0) -> None:
        """Outcomes of calls begun in the current generation."""
        self.breaker.record(self.breaker.generation, worker, successes, errors, self.now)

    def sleep(self, seconds: float, outstanding: bool = False) -> None:
        self.now += seconds
        self.breaker.tick(self.now, outstanding)

    def sleep_until_due(self, outstanding: bool = False) -> float:
        due = self.breaker.due
        assert due is not None
        slept = due - self.now
        self.sleep(slept, outstanding)
        return slept


def half_open(**settings: Any) -> Clock:
    """A breaker that has tripped and waited."""
    clock = Clock(**{"window": 4, "min_calls": 1, **settings})
    clock.calls(0, 1)
    clock.sleep_until_due()
    assert clock.state is State.HALF_OPEN
    return clock


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, "threshold must be a share, 0 or more, under 1, not 1.0"),
        ({"threshold": "0.2"}, "threshold must be a share, 0 or more, under 1, not '0.2'"),
        ({"window": 0}, "window must be a whole number of calls from 1 to 1000000, not 0"),
        (
            {"window": 2**70},
            f"window must be a whole number of calls from 1 to 1000000, not {2**70}",
        ),
        ({"window": 2.5}, "window must be a whole number of calls from 1 to 1000000, not 2.5"),
        ({"min_calls": True}, "min_calls must be a whole number of calls, 1 or more, not True"),
        ({"min_calls": 101}, "min_calls must be at most the window of 100 calls, not 101"),
        ({"open_for": 0}, "open_for must be a number of seconds above 0, not 0"),
        ({"open_for": float("nan")}, "open_for must be a number of seconds above 0, not nan"),
        ({"max_open_for": 1}, "max_open_for must be at least open_for=5, not 1"),
        ({"probes": 501}, "probes must be a whole number of calls from 1 to 500, not 501"),
        ({"give_up_after": 0}, "give_up_after must be a number of seconds above 0, or None, not 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        CircuitBreaker(**settings)
    assert str(caught.value) == f"CircuitBreaker: {message}"


def test_a_stage_takes_a_breaker_or_none() -> None:
    mpipe.Pipeline().add_map("s", abs, breaker=None)
    with pytest.raises(OptionError, match=r"stage 's': breaker must be an mpipe\.CircuitBreaker"):
        mpipe.Pipeline().add_map("s", abs, breaker=0.2)  # type: ignore[arg-type]


# Closed.


def test_it_trips_when_the_error_rate_is_strictly_above_the_threshold() -> None:
    clock = Clock(threshold=0.2, window=100, min_calls=50)
    clock.calls(80, 20)
    assert clock.state is State.CLOSED
    clock.calls(0, 1)
    assert clock.state is State.OPEN
    assert clock.breaker.reason == "21 of the last 100 calls failed"


@pytest.mark.parametrize("percent", range(100))
def test_a_rate_equal_to_the_threshold_is_not_above_it_whatever_the_rounding(percent: int) -> None:
    clock = Clock(threshold=percent / 100, window=100, min_calls=100)
    clock.calls(100 - percent, percent)
    assert clock.state is State.CLOSED
    clock = Clock(threshold=percent / 100, window=100, min_calls=100)
    clock.calls(99 - percent, percent + 1)
    assert clock.state is State.OPEN


def test_it_does_not_trip_before_min_calls_and_then_even_by_a_success() -> None:
    clock = Clock(threshold=0.2, window=100, min_calls=50)
    clock.calls(0, 49)
    assert clock.state is State.CLOSED
    clock.calls(1)
    assert clock.state is State.OPEN


def test_calls_that_left_the_window_do_not_count() -> None:
    clock = Clock(threshold=0.5, window=4, min_calls=4)
    clock.calls(0, 2)
    clock.calls(4)
    clock.calls(0, 2)
    assert clock.state is State.CLOSED
    clock.calls(0, 1)
    assert clock.state is State.OPEN


def trips_at(outcomes: list[bool], threshold: float, window: int, min_calls: int) -> int | None:
    """The call that trips, by the definition: looked at anew for each call."""
    for made in range(min_calls, len(outcomes) + 1):
        last = outcomes[:made][-window:]
        if last.count(True) / len(last) > threshold:
            return made
    return None


@given(
    st.lists(st.booleans(), max_size=60),
    st.sampled_from([0.0, 0.1, 0.2, 0.29, 1 / 3, 0.5, 0.9]),
    st.integers(1, 20),
    st.data(),
)
def test_it_trips_at_the_very_call_that_the_definition_says_however_calls_are_batched(
    outcomes: list[bool], threshold: float, window: int, data: st.DataObject
) -> None:
    min_calls = data.draw(st.integers(1, window))
    expected = trips_at(outcomes, threshold, window, min_calls)
    clock = Clock(threshold=threshold, window=window, min_calls=min_calls)
    made = 0
    while made < len(outcomes) and clock.state is State.CLOSED:
        successes = 0
        while made < len(outcomes) and not outcomes[made] and successes < 7:
            if clock.breaker.is_near:  # then each success is told at once
                break
            successes, made = successes + 1, made + 1
        if made < len(outcomes):
            failed, made = outcomes[made], made + 1
            clock.calls(successes + (not failed), int(failed))
        else:
            clock.calls(successes)
    assert (made if clock.state is State.OPEN else None) == expected


def test_a_success_can_trip_it_only_when_it_says_so_before() -> None:
    clock = Clock(threshold=0.2, window=10, min_calls=5)
    assert not clock.breaker.is_near
    clock.calls(0, 1)
    assert not clock.breaker.is_near
    clock.calls(0, 1)
    assert clock.breaker.is_near
    clock.calls(2)
    assert clock.state is State.CLOSED
    clock.calls(1)
    assert clock.state is State.OPEN


def test_more_successes_than_any_window_cost_nothing() -> None:
    clock = Clock(threshold=0.2, window=10, min_calls=5)
    clock.calls(10**15, 2)
    assert clock.state is State.CLOSED
    clock.calls(0, 1)
    assert clock.state is State.OPEN


# Open.


def test_the_pause_doubles_with_each_failed_trial_up_to_its_limit_and_starts_anew_when_closed() -> (
    None
):
    clock = Clock(window=4, min_calls=1, probes=2, open_for=5, max_open_for=30)
    clock.calls(0, 1)
    pauses = []
    for _ in range(5):
        pauses.append(clock.sleep_until_due())
        clock.calls(0, 1)
    assert pauses == [5, 10, 20, 30, 30]
    assert (clock.breaker.trips, clock.breaker.reopened) == (1, 5)
    clock.sleep_until_due()
    clock.calls(2)
    assert clock.state is State.CLOSED
    clock.calls(0, 1)
    assert clock.breaker.reason == "1 of the last 1 calls failed", "the window starts anew"
    assert clock.sleep_until_due() == 5
    assert (clock.breaker.trips, clock.breaker.reopened) == (2, 5)


def test_a_pause_is_shorter_by_up_to_a_tenth_never_longer() -> None:
    clock = Clock(window=4, min_calls=1, open_for=5, max_open_for=8, jitter=1.0)
    clock.calls(0, 1)
    assert clock.sleep_until_due() == pytest.approx(4.5)
    clock.calls(0, 1)
    assert clock.sleep_until_due() == pytest.approx(7.2)


def test_outcomes_of_an_earlier_generation_are_ignored() -> None:
    clock = Clock(window=4, min_calls=1, probes=1)
    closed = clock.breaker.generation
    clock.calls(0, 1)
    clock.breaker.record(closed, 0, 5, 5, clock.now)
    clock.calls(9, 9)
    assert clock.state is State.OPEN
    clock.sleep_until_due()
    clock.breaker.record(closed, 0, 1, 0, clock.now)
    assert clock.state is State.HALF_OPEN, "no late success closes it"
    clock.breaker.record(closed, 0, 0, 1, clock.now)
    assert clock.state is State.HALF_OPEN, "no late error opens it"
    clock.calls(1)
    assert clock.state is State.CLOSED


# Half-open.


def test_it_closes_when_all_probes_are_in_and_few_enough_failed() -> None:
    clock = half_open(threshold=0.2, probes=10)
    clock.calls(7, 2)
    assert clock.state is State.HALF_OPEN
    clock.calls(1)
    assert clock.state is State.CLOSED
    assert clock.breaker.reason == "8 of 10 probes came through"


def test_it_opens_again_as_soon_as_too_many_probes_failed() -> None:
    clock = half_open(threshold=0.2, probes=10)
    clock.calls(1, 2)
    assert clock.state is State.HALF_OPEN
    clock.calls(0, 1)
    assert clock.state is State.OPEN
    assert clock.breaker.reason == "3 of 4 probes failed"


def test_it_opens_again_when_every_worker_has_failed_a_probe_and_none_succeeded() -> None:
    clock = half_open(workers=2, threshold=0.5, probes=10)
    clock.calls(0, 1, worker=0)
    clock.calls(0, 1, worker=0)
    assert clock.state is State.HALF_OPEN
    clock.calls(0, 1, worker=1)
    assert clock.state is State.OPEN
    clock.sleep_until_due()
    clock.calls(0, 1, worker=0)
    assert clock.state is State.HALF_OPEN, "who failed before has not failed now"
    clock.calls(1, 0, worker=0)
    clock.calls(0, 1, worker=1)
    assert clock.state is State.HALF_OPEN
    assert clock.breaker.probes_succeed


def test_workers_that_are_finished_are_not_waited_for() -> None:
    clock = half_open(workers=3, threshold=0.5, probes=10)
    clock.breaker.workers -= 2
    clock.calls(0, 1, worker=2)
    assert clock.state is State.OPEN


def test_a_trial_without_a_verdict_is_over_when_it_took_as_long_as_the_pause_before_it() -> None:
    clock = half_open(probes=3, open_for=5)
    clock.calls(2)
    clock.sleep(4.9, outstanding=True)
    assert clock.state is State.HALF_OPEN
    clock.sleep(0.1, outstanding=True)
    assert clock.state is State.OPEN
    assert clock.breaker.reason == "its probes gave no verdict within 5 s"
    assert clock.sleep_until_due() == 10


def test_probes_that_come_through_slowly_close_it_however_long_all_take() -> None:
    clock = half_open(probes=10, open_for=5)
    for _ in range(9):
        clock.sleep(4, outstanding=True)
        clock.calls(1)
        assert clock.state is State.HALF_OPEN
    clock.calls(1)
    assert clock.state is State.CLOSED


def test_a_trial_with_few_items_is_judged_by_those_that_there_were() -> None:
    clock = half_open(probes=3, open_for=5)
    clock.calls(2)
    clock.sleep(5)
    assert clock.state is State.CLOSED
    clock = half_open(workers=2, probes=3, threshold=0.4, open_for=5)
    clock.calls(1, 1)
    clock.sleep(5)
    assert clock.state is State.OPEN
    assert clock.breaker.reason == "1 of 2 probes failed"


def test_a_trial_without_any_item_goes_on() -> None:
    clock = half_open(probes=1, open_for=5)
    for _ in range(9):
        clock.sleep(5)
        assert clock.state is State.HALF_OPEN
    clock.calls(1)
    assert clock.state is State.CLOSED
    assert clock.breaker.open_s == 5


# Giving up.


def test_it_gives_up_when_the_pauses_add_up_to_the_limit() -> None:
    clock = half_open(open_for=5, give_up_after=12, workers=9)
    clock.sleep(3)
    assert not clock.breaker.has_given_up(clock.now), "a trial is no pause"
    clock.calls(0, 3)
    assert clock.breaker.due == clock.now + 7
    assert not clock.breaker.has_given_up(clock.now + 6.9)
    assert clock.breaker.has_given_up(clock.now + 7)


def test_pauses_before_it_closed_do_not_count() -> None:
    clock = half_open(probes=1, open_for=5, give_up_after=12)
    for _ in range(5):
        clock.calls(1)
        assert clock.state is State.CLOSED
        clock.calls(0, 1)
        assert clock.sleep_until_due() == 5
    assert clock.breaker.open_s == 30


# At any time.


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40))
def test_it_is_never_left_without_a_way_on(steps: list[tuple[int, int, bool]]) -> None:
    clock = Clock(workers=2, window=5, min_calls=2, probes=3, open_for=1, max_open_for=4)
    breaker = clock.breaker
    for successes, errors, outstanding in steps:
        before, open_s = breaker.generation, breaker.open_s
        clock.calls(successes, errors, worker=errors % 2)
        assert breaker.generation - before <= 1, "one batch, one change"
        assert (breaker.due is None) == (breaker.state is State.CLOSED)
        assert (breaker.open_since is None) == (breaker.state is not State.OPEN)
        if breaker.due is not None:
            assert 0 < breaker.due - clock.now <= 4
            clock.sleep_until_due(outstanding)
            assert breaker.open_s >= open_s
            assert breaker.due is None or breaker.due > clock.now


# Items.


def test_an_item_is_forgiven_once_in_each_trial() -> None:
    mercy = Forgiveness(can_give_up=False)
    assert mercy.forgives(generation=3, times=0)
    assert not mercy.forgives(generation=3, times=1), "others succeeded meanwhile: it is to blame"
    assert mercy.forgives(generation=3, times=0), "that was another item"
    assert mercy.forgives(generation=5, times=1)


def test_patience_with_an_item_ends_where_it_can_be_given_up_without_the_run() -> None:
    for can_give_up in (True, False):
        mercy = Forgiveness(can_give_up)
        forgiven = [mercy.forgives(2 * trial, times=trial) for trial in range(3 * PATIENCE)]
        assert forgiven.count(True) == (PATIENCE if can_give_up else 3 * PATIENCE)
        assert all(forgiven[:PATIENCE])
