"""What a worker did, added up frame by frame until its counters are committed."""

from __future__ import annotations

import time

from ..transport import counters
from ..transport.counters import SeatCounters
from ..transport.frame import Header
from .kernel import Kernel


class Account:
    """The sums of one seat; `is_terminal` says that items end here."""

    def __init__(self, seat: SeatCounters, is_terminal: bool) -> None:
        self.service_ns = 0.0
        """Mean service time of an item, moving, in nanoseconds."""
        self._seat = seat
        self._is_terminal = is_terminal
        self._row = seat.row

    def add(self, kernel: Kernel, header: Header | None, taken_ns: int) -> None:
        """Add what the kernel did last; the frame `header` was taken at `taken_ns`."""
        seat, tally, durations, runs = self._seat, kernel.tally, kernel.durations, kernel.runs
        old, items = self._row, len(durations) + sum(count for _, count in runs)
        service = sum(durations) + sum(mean * count for mean, count in runs)
        longest = max(max(durations, default=0), max(runs, default=(0, 0))[0])
        waited = age = 0
        if header is not None and items:
            waited = max(0, taken_ns - header.tag.put_ns)
            seat.record(counters.SERVICE, durations)
            for mean, count in runs:
                seat.record_same(counters.SERVICE, mean, count)
            seat.record_same(counters.WAIT, waited, items)
            if self._is_terminal:
                age = max(0, time.perf_counter_ns() - header.tag.born_ns)
                seat.record_same(counters.END_TO_END, age, items)
            self._learn(service / items)
        self._row = old._replace(
            processed=old.processed + tally.processed,
            failed=old.failed + tally.failed,
            dead_lettered=old.dead_lettered + tally.dead_lettered,
            retried=old.retried + tally.retried,
            emitted=old.emitted + tally.emitted,
            service_ns=old.service_ns + service,
            service_max_ns=max(old.service_max_ns, longest),
            wait_ns=old.wait_ns + waited * items,
            wait_max_ns=max(old.wait_max_ns, waited),
            end_to_end_ns=old.end_to_end_ns + age * items,
            end_to_end_max_ns=max(old.end_to_end_max_ns, age),
        )

    def _learn(self, mean_ns: float) -> None:
        known = self.service_ns
        self.service_ns = mean_ns if not known else known + (mean_ns - known) / 4

    @property
    def settled(self) -> int:
        """Items of the frame in hand that are counted already."""
        return self._row.settled

    def commit(self, work: int, idle_ns: int, blocked_ns: int, settled: int = 0) -> None:
        """Make it count, all at once, up to the frame `work`; with the time spent waiting.

        And with the first `settled` items of the frame after that.
        """
        old = self._row
        self._row = old._replace(
            idle_ns=old.idle_ns + idle_ns,
            blocked_ns=old.blocked_ns + blocked_ns,
            settled=settled,
        )
        self._seat.commit(work, self._row)
