"""The coordinator's watch over limits: it kills workers that are over one, whatever they do.

Only stages with limits are looked at, and only as often as something can have come up. A worker may
get on with its next item between the look and the kill. So what its seat's words said is kept with
the kill: if they say something else when it is dead, the death is nobody's fault.
"""

from __future__ import annotations

import time
from signal import SIGKILL
from typing import NamedTuple, Protocol

from ..plan import Plan
from ..policy.limits import is_overdue, next_look
from ..transport.counters import (
    COMMITTED,
    DUE_NS,
    ENTERED,
    FRAME,
    HANDLED,
    ITEM,
    PID,
    RECYCLING,
    STATE,
    Board,
)
from .lastwords import ASK
from .wear import own_memory

_MEMORY_NS = 50_000_000
"""How often to look at the memory of a worker that has a limit for it, in nanoseconds."""

_LAST_WORDS_NS = 100_000_000
"""Time for a worker to say where it hangs before it is killed, in nanoseconds; on a busy machine it
needs some to get to run at all."""


class Kill(NamedTuple):
    """Send `signal` to the worker in seat number `seat`; the rest is for who examines its death.

    `item` is the index of the item that is to blame, None if that is not known. Unless it is
    `just`, what the worker has in hand need not be to blame at all. `words` are `at_work_on` it.
    """

    seat: int
    signal: int
    how: str
    just: bool
    item: int | None
    words: tuple[int, ...]


class Limits:
    """Watches the seats of a plan."""

    def __init__(self, plan: Plan, board: Board) -> None:
        self._watches: list[_Watch] = []
        for stage, spec in enumerate(plan.graph.stages):
            for seat in plan.seats_of(stage):
                if spec.timeout is not None:
                    self._watches.append(_Time(board, seat, spec.timeout))
                if spec.max_memory is not None:
                    self._watches.append(_Memory(board, seat, spec.max_memory))
        self._look_ns = 0

    def wait_s(self) -> float | None:
        """Seconds until the next look, None if there is nothing to look at."""
        if not self._watches:
            return None
        return max(0.0, (self._look_ns - time.perf_counter_ns()) * 1e-9)

    def starts(self, seat: int) -> None:
        """A process is about to start in the seat."""
        for watch in self._watches:
            if watch.seat == seat:
                watch.starts()

    def look(self) -> list[Kill]:
        """Whom to kill, if it is time to look."""
        now = time.perf_counter_ns()
        if not self._watches or now < self._look_ns:
            return []
        kills = [kill for watch in self._watches if (kill := watch.look(now))]
        self._look_ns = min(watch.next_look(now) for watch in self._watches)
        return kills


class _Watch(Protocol):
    seat: int

    def starts(self) -> None: ...

    def look(self, now: int) -> Kill | None: ...

    def next_look(self, now: int) -> int: ...


class _Time:
    """Watches how long the worker in a seat is at an item."""

    def __init__(self, board: Board, seat: int, timeout: float) -> None:
        self._board = board
        self.seat = seat
        self._allowed_ns = int(timeout * 1e9)
        self._how = f"killed at its timeout of {timeout:g} s"
        self._asked: tuple[int, ...] = ()

    def starts(self) -> None:
        self._asked = ()

    def look(self, now: int) -> Kill | None:
        words = at_work_on(self._board, self.seat)
        due, item = self._board.get(self.seat, DUE_NS), self._board.get(self.seat, ITEM)
        if not (item and is_overdue(due, now) and self._board.get(self.seat, PID)):
            return None
        if words != at_work_on(self._board, self.seat):
            return None
        number = SIGKILL if words == self._asked else ASK
        self._asked = words
        return Kill(self.seat, number, self._how, True, item - 1, words)

    def next_look(self, now: int) -> int:
        if self._asked == at_work_on(self._board, self.seat):
            return now + _LAST_WORDS_NS
        return next_look(self._board.get(self.seat, DUE_NS), now, self._allowed_ns)


class _Memory:
    """Watches the memory of the worker in a seat.

    What it has in hand is to blame only if it has done nothing else before: with many items, all
    of them may have left something behind.
    """

    def __init__(self, board: Board, seat: int, limit: int) -> None:
        self._board = board
        self.seat = seat
        self._limit = limit
        self._settled = 0

    def starts(self) -> None:
        self._settled = self._board.row(self.seat).settled

    def look(self, now: int) -> Kill | None:
        pid, words, fresh = self._get(PID), at_work_on(self._board, self.seat), self._is_fresh()
        used = own_memory(pid) if pid and self._get(STATE) != RECYCLING else 0
        if used <= self._limit:
            return None
        how = f"killed with {used:,} bytes of memory, over its max_memory of {self._limit:,}"
        item = self._get(ITEM)
        return Kill(self.seat, SIGKILL, how, fresh, item - 1 if item else None, words)

    def next_look(self, now: int) -> int:
        return now + _MEMORY_NS

    def _get(self, word: int) -> int:
        return self._board.get(self.seat, word)

    def _is_fresh(self) -> bool:
        """Whether the process has done nothing before what it has in hand."""
        return not self._get(HANDLED) and self._board.row(self.seat).settled == self._settled


def at_work_on(board: Board, seat: int) -> tuple[int, ...]:
    """Words of the worker that change whenever it gets on with another item, or tries it again."""
    return tuple(board.get(seat, word) for word in (ENTERED, HANDLED, FRAME, COMMITTED))
