"""The gate before every call of a stage that has a circuit breaker, as its worker sees it.

Closed, it costs a look at a shared word and a count of the outcome. A worker whose call failed
waits until the coordinator has heard of it, so that it does not begin a call that should not be
made; but not for long, and not again while it was not heard: a coordinator that is stopped stops
nobody. Open, the worker waits here, in the middle of the frame it has in hand; so the buffer fills
up behind it and holds the source back. Half-open, it waits for a permit for each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import ItemError
from ..policy.breaker import Forgiveness
from ..transport import counters
from ..transport.counters import SeatCounters
from ..transport.gate import (
    ERRORS,
    HALF_OPEN,
    NOT_CLOSED,
    PROBES_SUCCEED,
    RING_ALWAYS,
    SUCCESSES,
    SharedGate,
    generation_of,
)
from .apply import One
from .wording import one_line

_LOOK_S = 0.01
"""How often a worker that is paused looks at the state, in seconds."""

_HEARD_S = 0.5
"""How long to wait until a failure is heard, at most, in seconds."""

_NAP_S, _MAX_NAP_S = 20e-6, 1e-3
"""How often to look whether it is, at first and at last, in seconds."""


class Waits(Protocol):
    """Who keeps account of the time that is not service time: the kernel's outlet."""

    waited_ns: int


class Gate(Protocol):
    """What a kernel asks before and after each call of its function."""

    def enter(self) -> bool:
        """Whether the call may be made now; else `wait`."""

    def wait(self) -> None:
        """Wait until the call may be made."""

    def leave(self, error: BaseException | None) -> None:
        """The call that was let through has ended, with this error."""

    def forgives(self, times: int) -> bool:
        """Whether the failure told last costs its item nothing; it was forgiven `times` before."""


def gated(one: One, gate: Gate, hold: Callable[[], None], go_on: Callable[[], None]) -> One:
    """`one` behind a gate, with what to do before and after a wait at it.

    What ends the worker or the run is no outcome.
    """

    def attempt(item: Any, skip: int) -> None:
        if not gate.enter():
            hold()
            gate.wait()
            go_on()
        try:
            one(item, skip)
        except ItemError:  # the call came through, but an output cannot travel
            gate.leave(None)
            raise
        except (Exception, SystemExit) as error:
            gate.leave(error)
            raise
        gate.leave(None)

    return attempt


class WorkerGate:
    """Satisfies `Gate` for the worker in seat `seat` of its stage.

    `report` wakes the coordinator; `can_give_up` says that an item may fail without the run. Time
    spent waiting here counts among the `outlet`'s, too.
    """

    def __init__(
        self,
        shared: SharedGate,
        seat: int,
        worker: SeatCounters,
        outlet: Waits,
        report: Callable[[str], None],
        can_give_up: bool,
    ) -> None:
        self._shared = shared
        self._seat = seat
        self._worker = worker
        self._outlet = outlet
        self._report = report
        self._paused_ns = 0
        self._forgiveness = Forgiveness(can_give_up)
        self._state = shared.state  # as it was when the call was let through
        self._failed_in = 0  # the half-open generation in which a probe of this worker failed last
        shared.spend_permit(seat)  # a dead worker's

    @property
    def words(self) -> memoryview:
        """The shared words that it stores into."""
        return self._shared.words

    def enter(self) -> bool:
        self._state = state = self._shared.state
        return not state & NOT_CLOSED or self._may_pass(state)

    def wait(self) -> None:
        began = time.perf_counter_ns()
        self._worker.enter(counters.PAUSED)
        while not self.enter():
            time.sleep(_LOOK_S)
        self._worker.enter(counters.BUSY)
        self._waited_since(began)

    def _waited_since(self, began: int) -> None:
        waited = time.perf_counter_ns() - began
        self._paused_ns += waited
        self._outlet.waited_ns += waited

    def take_paused_ns(self) -> int:
        """Time spent waiting here since the last call, in nanoseconds."""
        paused, self._paused_ns = self._paused_ns, 0
        return paused

    def _may_pass(self, state: int) -> bool:
        """Whether there is a permit for the item in hand."""
        generation = generation_of(state)
        if self._failed_in == generation and not state & PROBES_SUCCEED:
            return False  # let others try, to see whether it is the item's fault
        while state & HALF_OPEN and (permit := self._shared.take_permit(self._seat)):
            if permit == generation:
                return True
        return False

    def leave(self, error: BaseException | None) -> None:
        shared, seat, state = self._shared, self._seat, self._state
        probe = state & HALF_OPEN
        shared.count(seat, SUCCESSES if error is None else ERRORS, generation_of(state))
        if probe:
            shared.spend_permit(seat)
            if error is not None:
                self._failed_in = generation_of(state)
        if error is not None or state & (HALF_OPEN | RING_ALWAYS):
            self._ring("" if error is None else one_line(error), not probe)

    def _ring(self, text: str, wait: bool) -> None:
        """Have the coordinator look at the outcomes; `wait` until it has, if it is there at all."""
        shared, seat, began = self._shared, self._seat, time.perf_counter_ns()
        wait = wait and shared.is_heard(seat)
        shared.ring(seat)
        self._report(text)
        nap = _NAP_S
        while wait and not shared.is_heard(seat):
            if time.perf_counter_ns() - began > _HEARD_S * 1e9:
                break
            time.sleep(nap)
            nap = min(nap * 1.5, _MAX_NAP_S)
        self._waited_since(began)

    def forgives(self, times: int) -> bool:
        probe = self._state & HALF_OPEN
        return bool(probe) and self._forgiveness.forgives(generation_of(self._state), times)
