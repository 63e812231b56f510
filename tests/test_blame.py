"""What is concluded from deaths, without any process: who is blamed, and when it is enough."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mpipe.runtime.blame import (
    MAX_SETUP_DEATHS,
    MAX_UNEXPLAINED_DEATHS,
    Death,
    Record,
    Verdict,
    describe_exit,
)

FRAME = 7 << 24


def died(item: int | None = None, frame: int = FRAME, **facts: Any) -> Death:
    return Death(frame, item, in_setup=False, **facts)


def verdicts(record: Record, *deaths: Death) -> list[Verdict]:
    return [record.judge(death) for death in deaths]


def test_the_first_death_blames_nobody_and_then_counts_for_the_item_that_is_caught() -> None:
    record = Record(max_crashes=3)
    assert verdicts(record, died(), died(4, settled=4), died(4, settled=4)) == [
        Verdict.RESTART,
        Verdict.RESTART,
        Verdict.CONDEMN,
    ]
    assert list(record.caution.condemned) == [4]


def test_an_item_that_was_noted_at_the_first_death_is_blamed_for_it() -> None:
    assert Record(max_crashes=1).judge(died(0)) is Verdict.CONDEMN


def test_any_number_of_items_of_one_frame_can_be_condemned() -> None:
    record = Record(max_crashes=2)
    for item in range(500):
        assert verdicts(record, died(item), died(item)) == [Verdict.RESTART, Verdict.CONDEMN]
    assert set(record.caution.condemned) == set(range(500))
    assert record.delay == 0.0
    record.judge(died(3, frame=FRAME + 1))
    assert record.caution.condemned == {}
    assert record.caution.frame == FRAME + 1


def test_deaths_outside_of_any_item_are_enough_when_they_do_not_get_on() -> None:
    record = Record(max_crashes=3)
    *before, last = verdicts(record, *[died()] * MAX_UNEXPLAINED_DEATHS)
    assert set(before) == {Verdict.RESTART}
    assert last is Verdict.FRAME_FAILS


def test_deaths_outside_of_any_item_do_not_matter_while_items_get_settled() -> None:
    record = Record(max_crashes=3)
    deaths = [died(settled=settled) for settled in range(10) for _ in range(10)]
    assert set(verdicts(record, *deaths)) == {Verdict.RESTART}


def test_deaths_without_a_frame_or_with_one_frame_after_the_other_never_fail_the_run() -> None:
    record = Record(max_crashes=1)
    deaths = [*[died(frame=0)] * 100, *[died(frame=n << 24) for n in range(1, 100)]]
    assert set(verdicts(record, *deaths)) == {Verdict.RESTART}


def test_deaths_in_setup_are_enough_at_some_point_and_forgotten_once_it_works() -> None:
    record, setup = Record(max_crashes=3), Death(0, None, in_setup=True)
    almost = [setup] * (MAX_SETUP_DEATHS - 1)
    assert set(verdicts(record, *almost, died(), *almost)) == {Verdict.RESTART}
    assert record.judge(setup) is Verdict.SETUP_FAILS


def test_a_kill_that_came_too_late_blames_nobody() -> None:
    record = Record(max_crashes=1)
    assert verdicts(record, *[died(4, excused=True)] * 100) == [Verdict.RESTART] * 100
    assert record.caution.condemned == {}
    assert record.caution.frame == FRAME


@pytest.mark.parametrize("death", [died(1), Death(0, None, in_setup=True)], ids=["item", "setup"])
def test_restarts_wait_longer_and_longer_up_to_half_a_second(death: Death) -> None:
    record, delays = Record(max_crashes=10**9), []
    for _ in range(2000):
        record.judge(death)
        delays.append(record.delay)
    assert delays[:5] == [0.0, 0.0, 0.01, 0.02, 0.04]
    assert all(a <= b for a, b in itertools.pairwise(delays))
    assert delays[-1] == 0.5


def test_the_end_of_a_process_is_put_into_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-11) == "killed by SIGSEGV"
    assert describe_exit(-9) == "killed by SIGKILL (from outside, or because memory ran out)"
    assert describe_exit(-40) == "killed by signal 40"


def test_an_item_that_was_passed_before_is_not_blamed_but_not_tried_for_ever_either() -> None:
    record = Record(max_crashes=1)
    again = died(3, settled=3, was_passed=True)
    assert set(verdicts(record, *[again] * (MAX_UNEXPLAINED_DEATHS - 1))) == {Verdict.RESTART}
    assert not record.caution.condemned
    assert verdicts(record, again) == [Verdict.FRAME_FAILS]
