"""`timeout`: what counts as an item's time, and that a kill which comes too late harms nobody."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from helpers import wait_until

import mpipe
from mpipe.graph import Graph
from mpipe.plan import make_plan
from mpipe.policy.limits import is_overdue, next_look
from mpipe.runtime.lastwords import ASK
from mpipe.runtime.limits import Limits, at_work_on
from mpipe.runtime.noting import Noting
from mpipe.schema import make_spec
from mpipe.transport import counters, memory
from mpipe.transport.counters import Board, SeatCounters


def restarts(outputs: mpipe.Outputs) -> int:
    return sum(stage.restarts for stage in outputs.stats().stages.values())


def test_an_item_is_overdue_from_the_end_of_its_allowance_on_and_never_without_one() -> None:
    assert [is_overdue(100, now) for now in (99, 100, 101)] == [False, True, True]
    assert not is_overdue(0, 10**18)


def test_the_next_look_is_when_something_can_be_overdue() -> None:
    assert next_look(due=150, now=100, allowed=1000) == 150
    assert next_look(due=0, now=100, allowed=1000) == 1100
    assert next_look(due=90, now=100, allowed=1000) == 1100  # being killed


def test_waiting_for_room_downstream_is_not_the_items_time(tmp_path: Path) -> None:
    opened = tmp_path / "open"

    def expand(x: int) -> Iterator[int]:
        yield from range(20)

    def wait(x: int) -> int:
        while not opened.exists():
            time.sleep(0.01)
        return x

    pipeline = mpipe.Pipeline().add_stage("expand", expand, workers=1, timeout=0.5)
    pipeline.add_map("wait", wait, workers=1, buffer_size=1).connect("expand", "wait")
    with pipeline.start(results=True) as run:
        run.push(0)
        wait_until(lambda: run.stats().stages["expand"].workers[0].state == "blocked")
        time.sleep(1.0)
        opened.touch()
        run.close()
        assert list(run.results()) == list(range(20))
        assert run.drain().stages["expand"].restarts == 0


def test_a_wait_before_a_retry_is_not_the_items_time_and_each_attempt_has_all_of_it() -> None:
    tries: list[int] = []

    def third_time_lucky(x: int) -> int:
        tries.append(x)
        time.sleep(0.6)
        if len(tries) < 3:
            raise OSError
        return x

    outputs = mpipe.imap(third_time_lucky, [7], workers=1, timeout=1.2, retries=2, retry_delay=0.7)
    assert list(outputs) == [7]
    assert restarts(outputs) == 0


def test_a_generator_is_timed_as_a_whole_and_keeps_what_it_gave() -> None:
    def trickle(x: int) -> Iterator[int]:
        while True:
            time.sleep(0.01)
            yield x

    pipeline = mpipe.Pipeline().add_stage(
        "trickle", trickle, workers=1, timeout=0.3, max_crashes=1, on_error="dead_letter"
    )
    outputs = pipeline.run([5])
    assert set(outputs) == {5}
    (letter,) = outputs.dead_letters()
    assert "killed at its timeout of 0.3 s" in letter.error
    assert restarts(outputs) == 1


def test_setup_and_finish_have_all_the_time_they_need() -> None:
    class Slow(mpipe.Stage):
        def setup(self) -> None:
            time.sleep(0.5)

        def process(self, x: int) -> list[int]:
            return [x]

        def finish(self) -> list[int]:
            time.sleep(0.5)
            return [-1]

    outputs = mpipe.Pipeline().add_stage("slow", Slow, workers=1, timeout=0.2).run([1])
    assert list(outputs) == [1, -1]


def test_a_worker_that_got_on_between_the_look_and_the_kill_is_recognised() -> None:
    fd = memory.create_file(counters.board_bytes(seats=2, stages=1))
    board = Board(fd, range(2), 1)
    os.close(fd)
    spec = make_spec("work", abs, "map", {"workers": 2, "timeout": 1e-9})
    limits = Limits(make_plan(Graph("p", (spec,), ()), cores=2), board)
    notings = [Noting(SeatCounters(board, seat), 1e-9) for seat in (0, 1)]
    for seat, noting in enumerate(notings):
        board.put(seat, counters.PID, 1)
        noting.enter(seat)
    assert [kill.signal for kill in limits.look()] == [ASK, ASK]
    for noting in notings:  # outputs are sent on: still the same attempt
        noting.pause()
        noting.resume()
    wait_until(lambda: limits.wait_s() == 0)
    kills = limits.look()
    assert [(kill.seat, kill.signal, kill.item) for kill in kills] == [
        (0, signal.SIGKILL, 0),
        (1, signal.SIGKILL, 1),
    ]
    notings[1].enter(1)  # again, or the next one, before it gets the signal
    assert [kill.words == at_work_on(board, kill.seat) for kill in kills] == [True, False]


def test_without_limits_there_is_nothing_to_look_at() -> None:
    fd = memory.create_file(counters.board_bytes(seats=1, stages=1))
    board = Board(fd, range(1), 1)
    os.close(fd)

    def wait_s(**options: float) -> float | None:
        spec = make_spec("work", abs, "map", {"workers": 1, **options})
        limits = Limits(make_plan(Graph("p", (spec,), ()), cores=1), board)
        assert list(limits.look()) == []
        return limits.wait_s()

    assert wait_s() is None
    assert 90 < (wait_s(timeout=100) or 0) <= 100
