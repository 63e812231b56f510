"""The gate between a worker and its stage's breaker, step by step in one process."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_breaker import trips_at
from test_kernel import Recorder, kernel_of

from mpipe import CircuitBreaker
from mpipe.engines.gate import InlineGate
from mpipe.policy.breaker import Breaker, State
from mpipe.runtime.breakers import Keeper
from mpipe.runtime.gate import WorkerGate
from mpipe.runtime.kernel import Kernel
from mpipe.runtime.stopping import Stopped
from mpipe.schema import make_spec
from mpipe.transport import counters, memory
from mpipe.transport.counters import Board, SeatCounters
from mpipe.transport.gate import SharedGate, create_gate

DOWN = ConnectionError("down")


@dataclass
class Outlet:
    """What a gate needs of one."""

    waited_ns: int = 0


class Blocked(Exception):
    """A worker waits at the gate."""


class Stage:
    """A stage's breaker, its gate and its workers, whose rings are heard at once, or by nobody."""

    def __init__(self, workers: int = 1, deaf: bool = False, **breaker: Any) -> None:
        self.log: list[str] = []
        self.fds = create_gate(workers)
        board = memory.create_file(counters.board_bytes(workers, 1))
        self.board = Board(board, range(workers), 1)
        self.breaker = Breaker(CircuitBreaker(**breaker), workers, random.random)
        self.keeper = Keeper("s", self.breaker, self.fds, self.log.append)
        self.shared = SharedGate(self.fds)
        self.outlet = Outlet()
        self.deaf = deaf
        self.gates = [self.start(index) for index in range(workers)]
        os.close(board)

    def start(self, index: int) -> WorkerGate:
        def report(error: str) -> None:
            if not self.deaf:
                self.keeper.hear(index, error)

        seat = SeatCounters(self.board, index)
        return WorkerGate(self.shared, index, seat, self.outlet, report, can_give_up=True)

    def close(self) -> None:
        for fd in self.fds.all():
            os.close(fd)

    def call(self, worker: int = 0, error: Exception | None = None) -> None:
        pass_through(self.gates[worker])
        self.gates[worker].leave(error)

    def trip(self) -> None:
        while self.breaker.state is State.CLOSED:
            self.call(error=DOWN)

    def half_open(self) -> None:
        """Pass the time of the pause."""
        if self.breaker.state is State.CLOSED:
            self.trip()
        while self.breaker.state is State.OPEN:
            self.keeper.tick(self.breaker.until)


def pass_through(gate: WorkerGate) -> None:
    if not gate.enter():
        gate.wait()


@pytest.fixture
def make() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []
    default = {"window": 4, "min_calls": 1, "open_for": 1000, "max_open_for": 10**6}

    def make(*args: Any, **options: Any) -> Stage:
        made.append(Stage(*args, **{**default, **options}))
        return made[-1]

    yield make
    while made:
        made.pop().close()


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long workers slept; one that is paused does not sleep but raises `Blocked`."""
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if seconds == 0.01:
            raise Blocked

    monkeypatch.setattr("mpipe.runtime.gate.time.sleep", sleep)
    return asked


def is_blocked(gate: WorkerGate) -> bool:
    try:
        pass_through(gate)
    except Blocked:
        return True
    return False


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.sampled_from([0.0, 0.2, 0.29, 0.5]), st.data())
def test_one_worker_makes_exactly_the_calls_up_to_the_one_that_trips(
    outcomes: list[bool], threshold: float, data: st.DataObject
) -> None:
    window = data.draw(st.integers(1, 20))
    min_calls = data.draw(st.integers(1, window))
    stage = Stage(threshold=threshold, window=window, min_calls=min_calls)
    made = 0
    with suppress(Blocked):
        for failed in outcomes:
            stage.call(error=DOWN if failed else None)
            made += 1
    expected = trips_at(outcomes, threshold, window, min_calls)
    assert made == (len(outcomes) if expected is None else expected)
    assert stage.breaker.trips == (expected is not None)
    stage.close()


def test_the_coordinator_is_woken_for_errors_only_while_no_success_can_trip(
    make: Callable[..., Stage],
) -> None:
    stage = make(window=10, min_calls=5)
    rings = stage.shared.rung
    for _ in range(50):
        stage.call()
    assert rings(0) == 0
    stage.call(error=DOWN)
    assert rings(0) == 1
    assert stage.breaker._window.calls == 10, "the successes before it were counted"


def test_a_call_begun_before_the_trip_and_ended_after_it_changes_nothing(
    make: Callable[..., Stage],
) -> None:
    stage = make(2)
    first, second = stage.gates
    pass_through(first)
    pass_through(second)
    first.leave(DOWN)
    assert stage.breaker.state is State.OPEN
    stage.half_open()
    second.leave(DOWN)
    assert stage.breaker.state is State.HALF_OPEN
    assert stage.breaker._probed.calls == 0


def test_a_coordinator_that_does_not_answer_is_waited_for_once_and_not_long(
    make: Callable[..., Stage], naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make(deaf=True)
    stage.call(error=DOWN)
    slept = len(naps)
    assert slept > 0
    for _ in range(100):
        stage.call(error=DOWN)
    assert len(naps) == slept
    stage.deaf = False
    stage.call(error=DOWN)
    assert stage.breaker.state is State.OPEN
    assert stage.breaker._window.calls == 1, "a change begins with the first error that trips"


def test_half_open_exactly_as_many_calls_as_there_are_probes_are_let_through(
    make: Callable[..., Stage],
) -> None:
    stage = make(4, probes=3)
    stage.half_open()
    assert [is_blocked(gate) for gate in stage.gates] == [False, False, False, True]
    for gate in stage.gates[:3]:
        gate.leave(None)
    assert stage.breaker.state is State.CLOSED
    assert not is_blocked(stage.gates[3])
    assert [line.split("breaker ")[1][:6] for line in stage.log] == ["opens:", "is hal", "closes"]


def test_permits_of_an_earlier_trial_let_nobody_through(make: Callable[..., Stage]) -> None:
    stage = make(probes=3)
    stage.half_open()
    old = stage.breaker.generation
    stage.call(error=DOWN)
    assert stage.breaker.state is State.OPEN
    assert is_blocked(stage.gates[0])
    stage.half_open()
    stage.shared.withdraw_permits()
    stage.shared.put_permits(old, 2)  # as if they had been overlooked
    stage.shared.put_permits(stage.breaker.generation, 1)
    assert not is_blocked(stage.gates[0])
    stage.gates[0].leave(None)
    assert is_blocked(stage.gates[0])


def test_permits_that_nobody_took_are_withdrawn(make: Callable[..., Stage]) -> None:
    stage = make(probes=500)
    for _ in range(20):  # more than a pipe holds
        stage.half_open()
        stage.call(error=DOWN)
        assert stage.shared._permits.waiting() == 0


def test_after_a_trial_outcomes_are_counted_from_the_start(make: Callable[..., Stage]) -> None:
    stage = make(probes=2, window=10, threshold=0.5)
    stage.half_open()
    stage.call()
    stage.call()
    assert stage.breaker.state is State.CLOSED
    stage.call()
    stage.call()
    stage.call(error=DOWN)
    assert (stage.breaker._window.calls, stage.breaker._window.errors) == (3, 1)


def test_a_worker_that_dies_with_a_permit_in_hand_is_a_failed_probe(
    make: Callable[..., Stage],
) -> None:
    stage = make(probes=3)
    stage.half_open()
    generation = stage.breaker.generation
    pass_through(stage.gates[0])
    assert stage.shared.holds_permit(0, generation)
    stage.keeper.record_death(0, "killed by SIGKILL")
    assert stage.breaker.state is State.OPEN
    assert stage.breaker.reason == "1 of 1 probes failed"
    assert stage.log[-1].endswith("last error: killed by SIGKILL")
    stage.start(0)
    assert not stage.shared.holds_permit(0, generation)


def test_a_worker_that_dies_while_it_is_paused_is_no_outcome(make: Callable[..., Stage]) -> None:
    stage = make(probes=3)
    stage.half_open()
    stage.keeper.record_death(0, "killed by SIGKILL")
    assert stage.breaker.state is State.HALF_OPEN
    assert stage.breaker._probed.calls == 0


def test_a_trial_whose_probe_never_ends_is_over_at_its_deadline(make: Callable[..., Stage]) -> None:
    stage = make(2, probes=2)
    stage.half_open()
    pass_through(stage.gates[0])
    stage.call(1)
    stage.keeper.tick(stage.breaker.until)
    assert stage.breaker.state is State.OPEN
    assert "no verdict" in stage.breaker.reason
    stage.half_open()
    stage.gates[0].leave(None)
    assert stage.breaker._probed.calls == 0, "it came late"


def test_an_outcome_whose_ring_was_lost_is_found_at_the_deadline(
    make: Callable[..., Stage],
) -> None:
    stage = make(probes=3)
    stage.half_open()
    stage.deaf = True
    stage.call()
    stage.call()
    stage.deaf = False
    stage.keeper.tick(stage.breaker.until)
    assert stage.breaker.state is State.CLOSED
    assert stage.breaker.reason == "2 of 2 probes came through"


def test_after_a_failed_probe_a_worker_lets_others_try_first(make: Callable[..., Stage]) -> None:
    stage = make(2, probes=10)
    stage.half_open()
    stage.call(0, DOWN)
    assert stage.gates[0].forgives(0)
    assert is_blocked(stage.gates[0])
    stage.call(1)
    assert not is_blocked(stage.gates[0]), "the stage works: it may be the item's fault"
    stage.gates[0].leave(DOWN)
    assert not stage.gates[0].forgives(1)


def test_only_the_failures_of_probes_are_forgiven(make: Callable[..., Stage]) -> None:
    stage = make(window=4, min_calls=4)
    stage.call(error=DOWN)
    assert not stage.gates[0].forgives(0)
    stage.half_open()
    stage.call(error=DOWN)
    assert stage.gates[0].forgives(0)


def test_the_time_at_the_gate_is_told_apart(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make(probes=1)
    stage.trip()
    assert is_blocked(stage.gates[0])
    assert counters.STATES[stage.board.get(0, counters.STATE)] == "paused"
    monkeypatch.setattr("mpipe.runtime.gate.time.sleep", lambda _: stage.half_open())
    pass_through(stage.gates[0])
    assert counters.STATES[stage.board.get(0, counters.STATE)] == "busy"
    assert stage.gates[0].take_paused_ns() == stage.outlet.waited_ns > 0
    assert stage.gates[0].take_paused_ns() == 0


class Clock:
    """A time that passes while somebody sleeps."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def perf_counter_ns(self) -> int:
        return int(self.now_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_wait_of_an_inline_run_is_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("mpipe.engines.gate.time", clock)
    outlet, spec = Outlet(), make_spec("s", abs, "map", {"on_error": "skip"})
    settings, looks = CircuitBreaker(window=1, min_calls=1, open_for=3.0), itertools.count()
    gate = InlineGate(spec, settings, lambda: next(looks), outlet)
    assert gate.enter()
    gate.leave(DOWN)
    assert not gate.enter()
    gate.wait()
    assert outlet.waited_ns == clock.perf_counter_ns()
    assert next(looks) > 0, "whether the run is to stop"
    assert gate.stats().state == "half-open"


def test_when_the_pauses_add_up_to_the_limit_the_run_fails_and_is_told_what_to_do(
    make: Callable[..., Stage],
) -> None:
    stage = make(give_up_after=1500)
    stage.trip()
    assert stage.keeper.tick(stage.breaker.until - 2) is None
    stage.half_open()
    stage.call(error=DOWN)
    due = stage.breaker.due
    assert due is not None
    assert due < stage.breaker.until
    failure = stage.keeper.tick(due)
    assert failure is not None
    assert str(failure).startswith(
        "stage 's' gives up: its circuit breaker was open for 1500 s without closing in between "
        "(give_up_after): 1 of 1 probes failed; last error: ConnectionError: down. See to what"
    )
    assert (failure.stage, failure.worker) == ("s", 0)


# How a kernel passes it.


class Noting:
    """A gate and a watch that note what they are told; forgives the first failures."""

    def __init__(self, forgiven: int = 0, is_closed: bool = True) -> None:
        self.notes: list[str] = []
        self._forgiven = forgiven
        self._is_closed = is_closed

    def enter(self, index: int | None = None) -> bool:
        if index is None:
            self.notes.append("enter")
        return self._is_closed

    def wait(self) -> None:
        self.notes.append("wait")

    def pause(self) -> None:
        self.notes.append("pause")

    def resume(self) -> None:
        self.notes.append("resume")

    def leave(self, error: BaseException | None) -> None:
        self.notes.append(type(error).__name__)

    def forgives(self, times: int) -> bool:
        return times < self._forgiven


def run(
    fn: Any, items: list[Any], gate: Noting, outlet: Recorder | None = None, **options: Any
) -> Kernel:
    kernel = kernel_of(fn, outlet or Recorder(), gate=gate, **options)
    kernel.run(items)
    return kernel


def fails(times: int) -> Callable[[Any], list[Any]]:
    left = [times]

    def fn(item: Any) -> list[Any]:
        left[0] -= 1
        if left[0] >= 0:
            raise DOWN
        return [item]

    return fn


def test_every_attempt_passes_the_gate_and_has_an_outcome() -> None:
    gate = Noting()
    run(fails(2), [1, 2], gate, retries=2)
    failed, passed = ["enter", "ConnectionError"], ["enter", "NoneType"]
    assert gate.notes == [*failed, *failed, *passed, *passed]


def test_forgiven_failures_spend_no_retries_but_count_as_attempts() -> None:
    gate = Noting(forgiven=5)
    assert run(fails(6), [1], gate, retries=1).tally.retried == 6
    outlet = Recorder()
    run(fails(9), [1], Noting(forgiven=5), outlet, retries=1, on_error="dead_letter")
    assert [letter.attempts for letter in outlet.letters] == [7]


def test_a_call_whose_output_cannot_travel_came_through() -> None:
    gate = Noting(forgiven=9)
    outlet = Recorder(flush_items=1, unsendable=(1,))
    run(lambda n: (m for m in [n] * 3), [1], gate, outlet, on_error="skip")
    assert gate.notes == ["enter", "NoneType"]
    assert outlet.messages == [
        "stage 's' (worker 0) failed on item 0: mpipe.errors.ItemError: 1 cannot travel"
    ]


def test_a_call_cut_off_by_the_end_of_the_run_has_no_outcome() -> None:
    def stopped(item: Any) -> None:
        raise Stopped

    gate = Noting()
    with pytest.raises(Stopped):
        run(stopped, [1], gate)
    assert gate.notes == ["enter"]


def test_before_a_wait_what_is_done_is_handed_on_unless_it_cannot_travel() -> None:
    gate, outlet = Noting(is_closed=False), Recorder(flush_items=100, unsendable=(3,))
    kernel = run(lambda n: [n, -n], [1, 2, 3, 4], gate, outlet, on_error="skip")
    assert [batch for batch in outlet.batches if batch] == [[1, -1], [2, -2], [4, -4]]
    assert (kernel.tally.emitted, kernel.tally.processed, kernel.tally.failed) == (6, 3, 1)


def test_a_wait_does_not_use_up_the_time_that_an_item_has() -> None:
    gate = Noting(is_closed=False)
    kernel_of(abs, Recorder(), "map", gate).run([1], gate)
    assert gate.notes[:5] == ["enter", "pause", "wait", "resume", "NoneType"]
