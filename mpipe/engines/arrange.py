"""Results in source order: the caller as somebody who sees it."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

from ..policy.reorder import Reorder
from ..transport.frame import Header
from ..transport.gaps import GapPipe


class Arrangement:
    """Puts frames of results in order; `routes` lead to the caller, `gaps` says what is missing."""

    def __init__(self, routes: int, gaps: GapPipe) -> None:
        self._order: Reorder[tuple[int, list[Any]]] = Reorder(routes, self._let_go)
        self.held_bytes = 0
        """Size of what waits here for its turn, pickled."""
        self._gaps = gaps
        self._landing = memoryview(bytearray(select.PIPE_BUF))
        self.fd = gaps.fd

    def progress(self) -> tuple[int, int]:
        """The source item whose results come next, and how many bytes wait."""
        return self._order.at[0], self.held_bytes

    def add(self, header: Header, items: list[Any]) -> None:
        """Take a frame of results."""
        self.held_bytes += header.payload_bytes
        self._order.add(header.tag.place, (header.payload_bytes, items))

    def take_marks(self) -> None:
        """Take what is known to be missing."""
        while self._gaps.take(self._landing):
            place = self._gaps.landed(self._landing)
            assert place is not None
            self._order.add(place, (0, []))

    def ready(self, at_end: bool = False) -> Iterator[list[Any]]:
        """What is in order now; `at_end`, all there is."""
        while (held := self._order.pop(at_end)) is not None:
            self._let_go(held)
            yield held[1]

    def _let_go(self, held: tuple[int, list[Any]]) -> None:
        self.held_bytes -= held[0]
