"""Putting frames back into source order; pure logic over the ranges of source items they cover."""

from __future__ import annotations

from typing import Any


class Reorder:
    """Holds what came early until everything before it is there.

    Every frame covers the source items `origin` to `origin + span - 1`; together they cover all of
    them without overlap. A frame that comes again is ignored.
    """

    def __init__(self) -> None:
        self.next = 0
        """The first source item that is still missing."""
        self._held: dict[int, tuple[int, list[Any]]] = {}

    def add(self, origin: int, span: int, items: list[Any]) -> list[Any]:
        """Take a frame's items; returns those that are in order now."""
        if origin != self.next:
            if origin > self.next:
                self._held[origin] = (span, items)
            return []
        self.next += span
        ready = items
        while self.next in self._held:
            span, items = self._held.pop(self.next)
            self.next += span
            ready = ready + items
        return ready
