"""The gate of a stage with a circuit breaker: a page of shared words and a pipe of permits.

    words   | state, pauses so far                                   written by the coordinator
            | one block per seat: outcomes, rings, permit in hand    written by the seat's worker
            |                     heard                              written by the coordinator
    permits | coordinator ---> workers: each lets one call through in the half-open state

The state is one word: the generation and flags. Outcomes are counted per generation, the count and
its generation in one word, so that one store is all it takes and late ones can be told. A permit is
the number of its generation; the kernel moves it into the seat's word, so a killed worker cannot
have taken one without a trace.
"""

from __future__ import annotations

import os
import time
from array import array
from contextlib import suppress
from select import PIPE_BUF
from typing import NamedTuple

from . import memory
from .pipe import PipeFds, TokenPipe, create_pipe

OPEN, HALF_OPEN, PROBES_SUCCEED, RING_ALWAYS = 1, 2, 4, 8
"""Flags of the state. Without one of the first two, calls are let through.

`RING_ALWAYS`: a success may change the state, so the coordinator must hear of each one.
"""

NOT_CLOSED = OPEN | HALF_OPEN
_GENERATION = 8  # bits of the flags

# Words of the coordinator.
_STATE, _OPEN_SINCE, _OPEN_NS, _TRIPS, _REOPENED = range(5)
_STAGE_WORDS = 8

# Words of a seat's block.
SUCCESSES, ERRORS, _RUNG, _PERMIT, _HEARD = range(5)
_SEAT_WORDS = 8

_COUNT = 40  # bits of a count of outcomes; the generation's low bits are above it
_COUNT_MASK = (1 << _COUNT) - 1
_TAG_MASK = (1 << 24) - 1


class GateFds(NamedTuple):
    """What a process needs to open the gate of a stage with so many seats."""

    seats: int
    file: int
    permits: PipeFds

    def all(self) -> tuple[int, ...]:
        return (self.file, *self.permits.all())


def create_gate(seats: int) -> GateFds:
    """Make the gate of a closed breaker in its first generation."""
    opened = [memory.create_file(_file_bytes(seats))]
    try:
        permits = create_pipe(PIPE_BUF)
        opened += permits.all()
        fds = GateFds(seats, opened[0], permits)
        gate = SharedGate(fds)
        gate.put_state(1, 0)
        gate.close()
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return fds


def _file_bytes(seats: int) -> int:
    return 8 * (_STAGE_WORDS + seats * _SEAT_WORDS)


class SharedGate:
    """One process's mapping of a gate. Seats are counted within the stage."""

    def __init__(self, fds: GateFds) -> None:
        self.seats = fds.seats
        self._memory = memory.map_shared(fds.file, _file_bytes(fds.seats))
        self._words = memory.words(self._memory)
        self._raw = memoryview(self._memory)
        self._permits = TokenPipe(fds.permits, self._raw)

    def close(self) -> None:
        """Unmap."""
        memory.unmap(self._memory, self._words, self._raw)

    # For anyone.

    @property
    def words(self) -> memoryview:
        """All of its words."""
        return self._words

    @property
    def state(self) -> int:
        """The generation and the flags, in one word."""
        return self._words[_STATE]

    def facts(self) -> tuple[str, int, int, float]:
        """What there is to tell about it now: the fields of `BreakerStats`."""
        state, since = self.state, self._words[_OPEN_SINCE]
        pausing = max(0, time.perf_counter_ns() - since) if since else 0
        return (
            "open" if state & OPEN else "half-open" if state & HALF_OPEN else "closed",
            self._words[_TRIPS],
            self._words[_REOPENED],
            (self._words[_OPEN_NS] + pausing) * 1e-9,
        )

    # For the worker in a seat.

    def take_permit(self, seat: int) -> int:
        """Take a permit, if there is one: the generation it is for, else 0."""
        index = _block(seat) + _PERMIT
        return self._words[index] if self._permits.take(index) else 0

    def spend_permit(self, seat: int) -> None:
        """The permit's call has ended, and its outcome is counted."""
        self._words[_block(seat) + _PERMIT] = 0

    def count(self, seat: int, which: int, generation: int) -> None:
        """Count an outcome of a call that was begun in `generation`."""
        index = _block(seat) + which
        tag, count = generation & _TAG_MASK, self._words[index]
        count = count + 1 if count >> _COUNT == tag else 1
        self._words[index] = tag << _COUNT | count & _COUNT_MASK

    def ring(self, seat: int) -> None:
        """Say that there is something to hear, before the coordinator is woken for it."""
        self._words[_block(seat) + _RUNG] += 1

    def is_heard(self, seat: int) -> bool:
        """Whether the coordinator has looked at the seat's outcomes since it last rang."""
        return self._words[_block(seat) + _HEARD] == self._words[_block(seat) + _RUNG]

    # For the coordinator.

    def put_state(self, generation: int, flags: int) -> None:
        self._words[_STATE] = generation << _GENERATION | flags

    def put_pauses(self, trips: int, reopened: int, open_ns: int, open_since_ns: int) -> None:
        """Keep what `stats` tells; `open_since_ns` is 0 while it is not open."""
        self._words[_OPEN_SINCE] = 0
        self._words[_OPEN_NS] = open_ns
        self._words[_OPEN_SINCE] = open_since_ns
        self._words[_TRIPS] = trips
        self._words[_REOPENED] = reopened

    def counted(self, seat: int, which: int, generation: int) -> int:
        """How many outcomes of calls of `generation` the seat has counted."""
        word = self._words[_block(seat) + which]
        return word & _COUNT_MASK if word >> _COUNT == generation & _TAG_MASK else 0

    def rung(self, seat: int) -> int:
        """How often the seat has rung; to be read before its outcomes."""
        return self._words[_block(seat) + _RUNG]

    def hear(self, seat: int, rung: int) -> None:
        """Say that what the seat counted before it rang for the time `rung` is known."""
        self._words[_block(seat) + _HEARD] = rung

    def holds_permit(self, seat: int, generation: int) -> bool:
        """Whether the seat's call under a permit of `generation` has not ended."""
        return self._words[_block(seat) + _PERMIT] == generation

    def put_permits(self, generation: int, count: int) -> None:
        """Let so many calls through, at most 512."""
        self._permits.put(array("Q", [generation] * count).tobytes())

    def withdraw_permits(self) -> None:
        """Take back the permits that nobody has taken."""
        with suppress(BlockingIOError):
            os.read(self._permits.fds.read_now, PIPE_BUF)


def generation_of(state: int) -> int:
    return state >> _GENERATION


def _block(seat: int) -> int:
    return _STAGE_WORDS + seat * _SEAT_WORDS
