"""Marks that need no slot: where, in source order, nothing more comes, because it was dropped.

A mark is a place of no items. It goes through a pipe of its own straight to who puts things in
order, since the channel it should go through is full. Each is written, and read, in one piece.
"""

from __future__ import annotations

import os
import select
from array import array

from ..policy.reorder import Place
from .pipe import PipeFds, create_pipe

_PIPE_BYTES = 1 << 20

PATH_NUMBERS = 3
"""Numbers of a place's path for each stage passed."""


def create_gap_pipe() -> PipeFds:
    """A pipe for marks, as large as the system allows."""
    return create_pipe(select.PIPE_BUF, _PIPE_BYTES)


class GapPipe:
    """One process's end of such a pipe; `hops` is the largest number of stages that are passed."""

    def __init__(self, fds: PipeFds, hops: int) -> None:
        self.fd = fds.read_now
        self._write = fds.write
        self._words = 4 + PATH_NUMBERS * hops

    @property
    def has_room(self) -> bool:
        """Whether a mark can be sent without waiting."""
        poll = select.poll()
        poll.register(self._write, select.POLLOUT)
        return bool(poll.poll(0))

    def put(self, place: Place) -> None:
        """Send a mark; waits while the pipe is full."""
        padding = self._words - 4 - len(place.path)
        head = (1 + len(place.path), place.origin, place.span, place.route)
        os.write(self._write, array("Q", (*head, *place.path, *[0] * padding)).tobytes())

    def take(self, landing: memoryview) -> bool:
        """Read one mark into `landing`, if there is one; it stays there until `clear`."""
        try:
            return os.readv(self.fd, [landing[: self._words * 8]]) > 0
        except BlockingIOError:
            return False

    @staticmethod
    def landed(landing: memoryview) -> Place | None:
        """The mark in `landing`, None if there is none."""
        length, origin, span, route = landing[:32].cast("Q").tolist()
        if not length:
            return None
        path = landing[32 : 32 + 8 * (length - 1)].cast("Q").tolist()
        return Place(origin, span, route, tuple(path))

    @staticmethod
    def clear(landing: memoryview) -> None:
        """The mark in `landing` has been taken note of."""
        landing[:8] = bytes(8)
