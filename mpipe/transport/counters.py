"""The board: every seat's counters in one shared-memory file, without locks, for anyone to read.

A seat's block has three parts: words of the worker, words of the coordinator, and two rows of sums.
A frame's counts are committed with one store: the worker writes the new sums into the row that is
not in use, then stores `COMMITTED` = the frame's token with the row's number in its attempt bits.
So a frame is counted exactly once, and a replacement knows whether the frame in hand was. A process
that sits in several seats (see `plan`) commits the rows of all of them with the word of the first,
their *leader*. The histograms beside the rows are not committed: a kill may lose or repeat one
frame's times in them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..policy import histogram
from . import memory
from .frame import Tag
from .token import ATTEMPT_MASK, ATTEMPT_ONE, SERIAL_ONE, plain

# Words of the worker.
COMMITTED, HOLDING, ITEM, DUE_NS, STATE, SINCE, DONE, STATEFUL = range(8)
FRAME, ORIGIN, SPAN, EXACT, NEXT, HELD_BYTES, HANDLED, ENTERED = range(8, 16)
# Words of the coordinator.
PID, RESTARTS, RECYCLED, CPU_NS = range(16, 20)
# More of the worker: see `reached`; and which stage of its chain is at work, by its place in it.
REACHED, AT_STAGE = 20, 21
_ROWS = 24

STARTING, IDLE, BUSY, BLOCKED, FINISHED, RECYCLING, PAUSED = range(7)
STATES = ("starting", "idle", "busy", "blocked", "finished", "recycling", "paused")

SERVICE, WAIT, END_TO_END = range(3)
"""The histograms of a seat."""


class Row(NamedTuple):
    """Sums of one seat since the start: items, and nanoseconds where the name says so."""

    processed: int = 0
    failed: int = 0
    dead_lettered: int = 0
    retried: int = 0
    emitted: int = 0
    service_ns: int = 0
    service_max_ns: int = 0
    wait_ns: int = 0
    wait_max_ns: int = 0
    end_to_end_ns: int = 0
    end_to_end_max_ns: int = 0
    idle_ns: int = 0
    blocked_ns: int = 0
    settled: int = 0
    """Items of the frame in hand that are counted already, where it is handled item by item."""


_ROW_WORDS = len(Row())
_HISTOGRAMS = _ROWS + 2 * _ROW_WORDS
SEAT_WORDS = (_HISTOGRAMS + 3 * histogram.BUCKETS + 7) // 8 * 8


def board_bytes(seats: int, stages: int) -> int:
    """Size of the file for so many seats and stages."""
    return (seats * SEAT_WORDS + stages * 2 + 1) * 8


class Board:
    """One process's mapping of the board; `leaders` has the leader of each seat, often itself."""

    def __init__(self, fd: int, leaders: Sequence[int], stages: int) -> None:
        seats = len(leaders)
        self._leaders = leaders
        self._memory = memory.map_shared(fd, board_bytes(seats, stages))
        self.words = memory.words(self._memory)
        self._refused = seats * SEAT_WORDS
        self._coordinator_cpu = self._refused + 2 * stages

    def get(self, seat: int, word: int) -> int:
        return self.words[seat * SEAT_WORDS + word]

    def put(self, seat: int, word: int, value: int) -> None:
        self.words[seat * SEAT_WORDS + word] = value

    def row(self, seat: int) -> Row:
        """The committed sums of a seat."""
        committed = self.words[self._leaders[seat] * SEAT_WORDS + COMMITTED]
        index = seat * SEAT_WORDS + _ROWS + _ROW_WORDS * _row_number(committed)
        return Row._make(self.words[index : index + _ROW_WORDS].tolist())

    def times(self, seat: int, which: int) -> memoryview:
        """One of the seat's histograms."""
        start = seat * SEAT_WORDS + _HISTOGRAMS + which * histogram.BUCKETS
        return self.words[start : start + histogram.BUCKETS]

    def refuse(self, stage: int, dead_lettered: bool) -> None:
        """Count a pushed item that cannot travel as failed at its stage. Caller only."""
        self.words[self._refused + 2 * stage] += 1
        self.words[self._refused + 2 * stage + 1] += dead_lettered

    def refused(self, stage: int) -> tuple[int, int]:
        """Pushed items that failed at `stage` because they cannot travel, and its dead letters."""
        index = self._refused + 2 * stage
        return self.words[index], self.words[index + 1]

    def put_coordinator_cpu(self, nanoseconds: int) -> None:
        """Say how much CPU time the coordinator has used for the run. Coordinator only.

        While it runs: minus what its process had used before.
        """
        self.words[self._coordinator_cpu] = nanoseconds % (1 << 64)

    @property
    def coordinator_cpu_ns(self) -> int:
        nanoseconds = self.words[self._coordinator_cpu]
        return nanoseconds - (nanoseconds >> 63 << 64)

    def close(self) -> None:
        """Unmap."""
        memory.unmap(self._memory, self.words)


class SeatCounters:
    """The worker's hand on its own block."""

    def __init__(self, board: Board, seat: int) -> None:
        self.board = board
        self.seat = seat
        self._words = board.words
        self._start = seat * SEAT_WORDS
        self._histograms = [board.times(seat, which) for which in range(3)]
        self.row = board.row(seat)

    def put(self, word: int, value: int) -> None:
        self._words[self._start + word] = value

    def begin(self, frame: int, tag: Tag) -> None:
        """Say which frame is in hand; last its name, which tells that the rest is about it."""
        words, start = self._words, self._start
        words[start + ORIGIN] = tag.origin
        words[start + SPAN] = tag.span
        words[start + EXACT] = tag.exact
        words[start + FRAME] = frame

    def reach(self, frame: int, items: int, is_replay: bool) -> None:
        """Say that something of the first `items` items of a frame is about to go out.

        In a replay perhaps not the last of what is out.
        """
        word, at = self._start + REACHED, reached(frame, items)
        self._words[word] = max(at, self._words[word]) if is_replay else at

    def enter(self, state: int) -> int:
        """Say what the worker does from now on; returns the time, by `perf_counter_ns`."""
        now = time.perf_counter_ns()
        self._words[self._start + STATE] = state
        self._words[self._start + SINCE] = now
        return now

    @property
    def committed(self) -> int:
        """The token of the last frame that was counted."""
        return plain(self._words[self._start + COMMITTED])

    def is_committed(self, token: int) -> bool:
        """Whether the frame `token` has been counted."""
        return self._words[self._start + COMMITTED] & ~ATTEMPT_MASK == token

    @property
    def row_number(self) -> int:
        """Number of the row in force, 0 or 1."""
        return _row_number(self._words[self._start + COMMITTED])

    def record(self, which: int, nanoseconds: Sequence[int]) -> None:
        """Add times to a histogram."""
        histogram.record(self._histograms[which], nanoseconds)

    def record_same(self, which: int, nanoseconds: int, count: int) -> None:
        """Add one time `count` times."""
        self._histograms[which][histogram.bucket(nanoseconds)] += count

    def commit(self, token: int, row: Row, led: Iterable[tuple[SeatCounters, Row]] = ()) -> None:
        """Make `row` the sums, with the frame `token` counted in; and those of the seats `led`.

        With the token of the frame before, for sums with a part of the frame in hand.
        """
        number = 1 - self.row_number
        for seat, sums in led:
            seat._write(number, sums)
        self._write(number, row)
        self._words[self._start + COMMITTED] = token | number * ATTEMPT_ONE

    def _write(self, number: int, row: Row) -> None:
        index = self._start + _ROWS + _ROW_WORDS * number
        self._words[index : index + _ROW_WORDS] = memoryview(array("Q", row))
        self.row = row


def reached(frame: int, items: int) -> int:
    """How far something is out that is not counted yet, in one word; grows from frame to frame.

    At least where several frames may be uncounted; their ids grow (see `Backlog`).
    """
    return frame // SERIAL_ONE % (1 << 32) << 32 | items


def _row_number(committed: int) -> int:
    return int(committed & ATTEMPT_ONE != 0)


def idle_and_blocked(board: Board, seat: int, row: Row, now: int) -> tuple[int, int]:
    """The row's idle and blocked time in nanoseconds, with the wait that is going on now."""
    state, since = board.get(seat, STATE), board.get(seat, SINCE)
    going_on = max(0, now - since)
    idle = row.idle_ns + (going_on if state == IDLE else 0)
    return idle, row.blocked_ns + (going_on if state == BLOCKED else 0)
