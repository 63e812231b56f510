"""The worker's note of the item its function is at, for who must judge its death.

Three words of the seat: how many attempts were begun; the item's index plus 1, 0 while the function
is not at work; and the time at which its allowance (the stage's `timeout`) ends, 0 for none. Who
finds the same number of attempts before and after reading the others has what belongs together.
"""

from __future__ import annotations

import time

from ..transport.counters import DUE_NS, ENTERED, ITEM, SeatCounters


class Noting:
    """Satisfies `kernel.Watch`. `first` is the index in the frame of the kernel's first item.

    Each attempt at an item has the whole allowance; waits in between do not use it up.
    """

    def __init__(self, seat: SeatCounters, timeout: float | None) -> None:
        self.first = 0
        self._put = seat.put
        self._entered = seat.board.get(seat.seat, ENTERED)
        self._allowed_ns = None if timeout is None else int(timeout * 1e9)
        self._item = 0
        self._due_ns = 0
        self._left_ns = 0

    def enter(self, index: int) -> None:
        self._put(DUE_NS, 0)
        self._entered += 1
        self._put(ENTERED, self._entered)
        self._item = self.first + index + 1
        self._left_ns = self._allowed_ns or 0
        self.resume()

    def pause(self) -> None:
        self._put(DUE_NS, 0)
        self._put(ITEM, 0)
        self._left_ns = self._due_ns - time.perf_counter_ns()

    def resume(self) -> None:
        self._put(ITEM, self._item)
        if self._allowed_ns is not None:
            self._due_ns = time.perf_counter_ns() + self._left_ns
            self._put(DUE_NS, self._due_ns)
