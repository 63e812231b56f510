"""The coordinator's watch over limits: it kills workers that are over one, whatever they do.

Only stages with limits are looked at, and only as often as something can have come up. A worker may
get on with its next item between the look and the kill. So what its seat's words said is kept with
the kill: if they say something else when it is dead, the death is nobody's fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from ..plan import Plan
from ..policy.limits import is_overdue, next_look
from ..transport.counters import COMMITTED, DUE_NS, ITEM, PID, Board


class Kill(NamedTuple):
    """Kill the worker in seat number `seat`; `how` and `words` are for who examines its death."""

    seat: int
    how: str
    words: tuple[int, ...]


class Limits:
    """Watches the seats of a plan."""

    def __init__(self, plan: Plan, board: Board) -> None:
        self._board = board
        self._allowed_ns = {
            seat: int(spec.timeout * 1e9)
            for stage, spec in enumerate(plan.graph.stages)
            if spec.timeout is not None
            for seat in plan.seats_of(stage)
        }
        self._look_ns: int | None = 0 if self._allowed_ns else None

    def wait_s(self) -> float | None:
        """Seconds until the next look, None if there is nothing to look at."""
        if self._look_ns is None:
            return None
        return max(0.0, (self._look_ns - time.perf_counter_ns()) * 1e-9)

    def look(self) -> Iterator[Kill]:
        """Whom to kill, if it is time to look. A worker is named again until it is dead."""
        now = time.perf_counter_ns()
        if self._look_ns is None or now < self._look_ns:
            return
        looks = []
        for seat, allowed in self._allowed_ns.items():
            words = self.words(seat)
            due = words[0] if self._board.get(seat, PID) else 0
            if is_overdue(due, now):
                yield Kill(seat, f"killed at its timeout of {allowed * 1e-9:g} s", words)
            looks.append(next_look(due, now, allowed))
        self._look_ns = min(looks)

    def words(self, seat: int) -> tuple[int, ...]:
        """What the worker in a seat is at: changes whenever it gets on."""
        return tuple(self._board.get(seat, word) for word in (DUE_NS, ITEM, COMMITTED))
