"""The coordinator's watch over limits: it kills workers that are over one, whatever they do.

Only stages with limits are looked at, and only as often as something can have come up. A worker may
get on with its next item between the look and the kill. So what its seat's words said is kept with
the kill: if they say something else when it is dead, the death is nobody's fault.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ..plan import Plan
from ..policy.limits import is_overdue, next_look
from ..transport.counters import COMMITTED, DUE_NS, ITEM, PID, RECYCLING, STATE, Board
from ..transport.token import plain
from .wear import own_memory

_MEMORY_NS = 50_000_000
"""How often to look at the memory of a worker that has a limit for it, in nanoseconds."""


class Kill(NamedTuple):
    """Kill the worker in seat number `seat`; the rest is for who examines its death.

    Unless it is `just`, what the worker has in hand need not be to blame; `words` say what that is.
    """

    seat: int
    how: str
    just: bool
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

    def look(self) -> Iterator[Kill]:
        """Whom to kill, if it is time to look."""
        now = time.perf_counter_ns()
        if not self._watches or now < self._look_ns:
            return
        self._look_ns = min(watch.next_look(now) for watch in self._watches)
        for watch in self._watches:
            if kill := watch.look(now):
                yield kill


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

    def starts(self) -> None:
        pass

    def look(self, now: int) -> Kill | None:
        words = at_work_on(self._board, self.seat)
        if not is_overdue(words[0], now) or not self._board.get(self.seat, PID):
            return None
        return Kill(self.seat, self._how, True, words)

    def next_look(self, now: int) -> int:
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
        self._began_at = (0, 0)

    def starts(self) -> None:
        self._began_at = self._done()

    def look(self, now: int) -> Kill | None:
        pid, words, done = self._get(PID), at_work_on(self._board, self.seat), self._done()
        used = own_memory(pid) if pid and self._get(STATE) != RECYCLING else 0
        if used <= self._limit:
            return None
        how = f"killed with {used:,} bytes of memory, over its max_memory of {self._limit:,}"
        return Kill(self.seat, how, done == self._began_at, words)

    def next_look(self, now: int) -> int:
        return now + _MEMORY_NS

    def _get(self, word: int) -> int:
        return self._board.get(self.seat, word)

    def _done(self) -> tuple[int, int]:
        """Changes with each item or frame that is counted."""
        return plain(self._get(COMMITTED)), self._board.row(self.seat).settled


def at_work_on(board: Board, seat: int) -> tuple[int, ...]:
    """Words of the worker that change whenever it gets on."""
    return tuple(board.get(seat, word) for word in (DUE_NS, ITEM, COMMITTED))
