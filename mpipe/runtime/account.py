"""What a worker did, added up frame by frame until its counters are committed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..transport import counters
from ..transport.counters import Row, SeatCounters
from ..transport.frame import Header
from .kernel import Kernel


class Account:
    """The sums of one seat; `is_terminal` says that items end here.

    Unless it `has_buffer`, what it handles comes straight from the stage before.
    """

    def __init__(self, seat: SeatCounters, is_terminal: bool, has_buffer: bool = True) -> None:
        self.service_ns = 0.0
        """What an item costs this process, moving mean, in nanoseconds of service time."""
        self.further_ns = 0
        """Service time of later stages of the chain since the last frame was added."""
        self.idle_ns = self.blocked_ns = 0
        """Time spent waiting since the last frame was added, for input and for room."""
        self.seat = seat
        self._is_terminal = is_terminal
        self._has_buffer = has_buffer
        self._row = seat.row

    def add(self, kernel: Kernel, header: Header | None, taken_ns: int) -> None:
        """Add what the kernel did last; the frame `header` was taken at `taken_ns`."""
        tally, old = kernel.tally, self._row
        items, longest = self._record_service(kernel)
        service = kernel.service_ns
        waited = age = 0
        if header is not None and items:
            tag, seat = header.tag, self.seat
            waited = max(0, taken_ns - tag.put_ns) if self._has_buffer else 0
            seat.record_same(counters.WAIT, waited, items)
            if self._is_terminal:
                age = max(0, time.perf_counter_ns() - tag.born_ns)
                seat.record_same(counters.END_TO_END, age, items)
            self._learn((service + self.further_ns) / items)
        self._row = Row(  # by place: a name for each costs as much as all the rest of it
            old.processed + tally.processed,
            old.failed + tally.failed,
            old.dead_lettered + tally.dead_lettered,
            old.retried + tally.retried,
            old.emitted + tally.emitted,
            old.service_ns + service,
            max(old.service_max_ns, longest),
            old.wait_ns + waited * items,
            max(old.wait_max_ns, waited),
            old.end_to_end_ns + age * items,
            max(old.end_to_end_max_ns, age),
            old.idle_ns + self.idle_ns,
            old.blocked_ns + self.blocked_ns,
            old.settled,
        )
        self.idle_ns = self.blocked_ns = self.further_ns = 0

    def _record_service(self, kernel: Kernel) -> tuple[int, int]:
        """Take the service times down; returns how many there are, and the longest."""
        items, longest = len(kernel.durations), max(kernel.durations, default=0)
        if items:
            self.seat.record(counters.SERVICE, kernel.durations)
        for mean, count in kernel.runs:
            items += count
            longest = max(longest, mean)
            self.seat.record_same(counters.SERVICE, mean, count)
        return items, longest

    def _learn(self, mean_ns: float) -> None:
        known = self.service_ns
        self.service_ns = mean_ns if not known else known + (mean_ns - known) / 4

    @property
    def settled(self) -> int:
        """Items of the frame in hand that are counted already."""
        return self._row.settled

    def commit(self, work: int, settled: int = 0, led: Sequence[Account] = ()) -> None:
        """Make it count, all at once, up to the frame `work` and `settled` items after that.

        With it what the accounts `led` have, of the seats that this one leads.
        """
        if settled != self._row.settled:
            self._row = self._row._replace(settled=settled)
        self.seat.commit(work, self._row, [(other.seat, other._row) for other in led])
