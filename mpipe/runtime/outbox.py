"""A kernel's outputs between the function and the outlet: how many there are, and whose."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..stats import DeadLetter


class Outlet(Protocol):
    """Where a kernel's outputs go."""

    waited_ns: int
    """Time spent so far waiting for room, or at the gate."""

    @property
    def flush_items(self) -> int:
        """How many outputs to collect before handing them on."""

    def emit(self, outputs: list[Any], items: range, last: bool) -> None:
        """Send outputs to every stage downstream: all or, raising `Unsendable`, none.

        They derive from the `items` of the frame in hand; `last` says that they are the last ones
        of that frame. There may be none of them.
        """


class Rejects(Protocol):
    """Where items go that are given up."""

    def dead_letter(self, letter: DeadLetter, index: int) -> None:
        """Hand item number `index` of the frame in hand, given up, to the caller."""

    def abandon(self) -> int:
        """The item to come gives nothing more: returns how many outputs of it are out already."""

    def log(self, message: str) -> None:
        """Tell the caller's log about a skipped item."""


class Outbox:
    """Collects `outputs` for `outlet`.

    `ends` has the number of outputs after each item that was completed since the last hand-over.
    """

    def __init__(self, outlet: Outlet) -> None:
        self.outputs: list[Any] = []
        self.ends: list[int] = []
        self.before: Outbox | None = None
        """Of a map: its outputs, which it is handing on, are the items here."""
        self._outlet = outlet
        self.clear()

    def clear(self) -> None:
        """Begin with the first item of a frame."""
        self.outputs.clear()
        self.ends.clear()
        self._done = 0  # items completed before the last hand-over
        self._handed_on_ns = time.perf_counter_ns()

    def is_due(self, now: int, longest_ns: int) -> bool:
        """Whether there are many outputs, or the last hand-over was more than `longest_ns` ago."""
        enough = len(self.outputs) >= self._outlet.flush_items
        return enough or now - self._handed_on_ns > longest_ns

    def hand_on(self, last: bool = False) -> int:
        """Hand the outputs on; returns how many there were, or raises `Unsendable`."""
        count, done = len(self.outputs), self._done + len(self.ends)
        in_progress = count > (self.ends[-1] if self.ends else 0)
        first = self.first
        self._outlet.emit(self.outputs, range(first + self._done, first + done + in_progress), last)
        self._done = done
        self.outputs.clear()
        self.ends.clear()
        self._handed_on_ns = time.perf_counter_ns()
        return count

    @property
    def first(self) -> int:
        """The item of the frame in hand that the first item here comes of."""
        before = self.before
        return 0 if before is None else before.first + before._done

    def withdraw(self, index: int) -> int | None:
        """Take output number `index`, and its item's later ones, out.

        Returns the index of that item in the frame; None if it is not at its end yet.
        """
        ends = self.ends
        owner = bisect_right(ends, index)
        is_done = owner < len(ends)
        stop = ends[owner] if is_done else len(self.outputs)
        del self.outputs[index:stop]
        ends[owner:] = [end - (stop - index) for end in ends[owner:]]
        return self._done + owner if is_done else None
