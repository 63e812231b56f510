"""How a stage's function is applied to items; the same code runs in workers and inline.

The kernel calls the function, checks what it returns, retries, gives up and measures. Where
outcomes go is the `Outlet`'s business, and that of `Rejects`; it may block there, and that time is
not service time.

For the same items the kernel hands on the same outputs in the same order, wherever it flushes:
recovery after a crash counts on it. So an item that fails midway keeps the outputs it had given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from operator import length_hint
from typing import Any, Protocol

from ..errors import ItemError
from ..policy.batching import FRAME_NS
from ..policy.retry import delay_before
from ..policy.sampling import run_items
from ..transport.frame import Unsendable
from .apply import Many, One, appliers, check_result
from .gate import Gate, gated
from .host import Host
from .outbox import Outbox, Outlet, Rejects
from .wording import one_line

FLUSH_NS = 2_000_000
"""Longest that an output of a slow iterator is kept back, in nanoseconds."""


class Watch(Protocol):
    """Told when the function is at work on an item, and when it is not."""

    def enter(self, index: int) -> None:
        """An attempt at the item begins."""

    def pause(self) -> None:
        """Not the function, but what comes between: a wait for room, or before a retry."""

    def resume(self) -> None:
        """The function goes on with the item it was at."""


class Tally:
    """What happened to the items of one frame, in items."""

    def __init__(self) -> None:
        self.processed = self.failed = self.dead_lettered = self.retried = self.emitted = 0


class Kernel:
    """Applies the function of an open `host` to items, and hands what comes of them to `outlet`.

    Those that are given up go to `rejects`.

    `position` names the item at an index of the frame in hand, for messages. After `run`, `tally`
    counts what happened, `service_ns` is the time that it took, in nanoseconds; `durations` holds
    the service times of items timed singly, and `runs` the mean and the number of those timed
    together. Every call of the function passes the `gate`, if there is one.
    """

    def __init__(
        self, host: Host, outlet: Outlet, rejects: Rejects, gate: Gate | None = None
    ) -> None:
        self.position: Callable[[int], str] = "item {}".format
        self._outbox = Outbox(outlet)
        self._host = host
        self._spec = host.spec
        self._outlet = outlet
        self._rejects = rejects
        self._gate = gate
        self._one, self._many = self._appliers()
        self._mean_ns = 0.0
        self._watch: Watch | None = None
        self._reset([])

    def follow(self, before: Kernel) -> None:
        """What it will handle are the outputs of another one, of a map, as that hands them on."""
        self._outbox.before = before._outbox
        self.position = lambda index: before.position(index)

    def _appliers(self) -> tuple[One, Many]:
        outputs, ends = self._outbox.outputs, self._outbox.ends
        one, many = appliers(self._spec.kind, self._host.fn, outputs, ends, self._take)
        return one if self._gate is None else gated(one, self._gate, self._hold, self._go_on), many

    def _reset(self, items: Sequence[Any]) -> None:
        self.tally = Tally()
        self.service_ns = 0
        self.durations: list[int] = []
        self.runs: list[tuple[int, int]] = []
        self._outbox.clear()
        self._items = items
        self._failed: set[int] = set()
        self._given = 0  # outputs of an iterator that failed midway, until the item is settled
        self._broken: BaseException | None = None  # what ends the run: not the item in hand

    def run(self, items: Sequence[Any], watch: Watch | None = None, is_end: bool = True) -> None:
        """Handle items of a frame, to its end or not; raises `StageError` if one fails the run."""
        self._reset(items)
        self._watch = watch
        singly = len(items) == 1 or watch is not None or self._gate is not None
        size = 1 if singly else run_items(self._mean_ns)
        if size == 1:
            self._handle_singly(items, watch)
        else:
            for start in range(0, len(items), size):
                self._handle_run(items[start : start + size], start)
        self._flush(is_end)
        self._learn(len(items))
        self.tally.processed = len(items) - self.tally.failed
        self._items = ()  # so that arrays in shared memory can be let go

    def _handle_singly(self, items: Sequence[Any], watch: Watch | None) -> None:
        """Handle items, each timed."""
        outbox, outlet, apply = self._outbox, self._outlet, self._one
        outputs, end = outbox.outputs, outbox.ends.append
        clock, collect = time.perf_counter_ns, self.durations.append
        last, waited, first = clock(), outlet.waited_ns, outbox.first
        for index, item in enumerate(items):
            try:
                if watch is not None:
                    watch.enter(first + index)
                apply(item, 0)
            except (Exception, SystemExit) as error:
                self._retry(index, error)
            end(len(outputs))
            now = clock()
            collect(now - last - (outlet.waited_ns - waited))
            if index + 1 < len(items) and outbox.is_due(now, FRAME_NS):
                self._flush()
                now = clock()
            last, waited = now, outlet.waited_ns

    def _handle_run(self, items: Sequence[Any], start: int) -> None:
        """Handle items timed together, the first of which is number `start` of the frame."""
        outbox, outlet, clock = self._outbox, self._outlet, time.perf_counter_ns
        rest, began, waited = iter(items), clock(), outlet.waited_ns
        while True:
            try:
                self._many(rest)
                break
            except (Exception, SystemExit) as error:
                self._retry(start + len(items) - length_hint(rest) - 1, error)
                outbox.ends.append(len(outbox.outputs))
        now = clock()
        spent = now - began - (outlet.waited_ns - waited)
        self.runs.append((spent // len(items), len(items)))
        if start + len(items) < len(self._items) and outbox.is_due(now, FRAME_NS):
            self._flush()

    def _learn(self, items: int) -> None:
        """Keep a moving mean of the service time, to know how many items to time together."""
        self.service_ns = sum(self.durations)
        for mean_ns, count in self.runs:
            self.service_ns += mean_ns * count
        if items:
            mean = self.service_ns / items
            self._mean_ns = mean if not self._mean_ns else (3 * self._mean_ns + mean) / 4

    def refuse(self, item: Any, error: BaseException, attempts: int, is_end: bool) -> None:
        """Give up an item that is not to be tried again, as a frame of its own."""
        self._reset([item])
        self._watch = None
        self._give_up(0, error, attempts)
        self.tally.emitted = self._rejects.abandon()
        self._outbox.ends.append(0)
        self._flush(is_end)
        self._items = ()

    def finish(self) -> None:
        """Emit what the stage kept; raises `StageError` when its `finish` fails."""
        self._reset([])
        self._watch = None
        stage = self._host.stage
        if stage is not None:
            try:
                self._take(stage.finish(), 0)
                self._flush()
            except (Exception, SystemExit) as error:
                raise self._host.failure("failed in finish()", error) from error

    # What an item gives is added to the outbox, less the first `skip` outputs.

    def _take(self, result: Any, skip: int) -> None:
        check_result(result)
        if isinstance(result, (list, tuple)):
            self._outbox.outputs.extend(result[skip:])
        elif result is not None:
            self._drain(iter(result), skip)

    def _drain(self, iterator: Iterator[Any], skip: int) -> None:
        """Consume an iterator lazily: hand on what it gave whenever that is much, or old."""
        outbox, clock, size = self._outbox, time.perf_counter_ns, 1
        outputs = outbox.outputs
        for _ in islice(iterator, skip):
            pass
        self._given = skip
        while True:
            before, start = len(outputs), clock()
            try:
                outputs.extend(islice(iterator, size))
            finally:  # extend keeps what came before an exception
                self._given += len(outputs) - before
            if len(outputs) - before < size:
                break
            now = clock()
            if outbox.is_due(now, FLUSH_NS):
                self._flush()
                if self._watch is not None:
                    self._watch.resume()
            quick = (now - start) * 4 < FLUSH_NS
            size = min(size * 2, self._outlet.flush_items) if quick else max(1, size // 2)
        self._given = 0

    # Failures.

    def _retry(self, index: int, error: BaseException) -> None:
        """Try an item again as often as the stage allows, then give it up."""
        attempt, retries, forgiven = 1, 0, 0
        watch, gate = self._watch, self._gate
        while True:
            if error is self._broken:
                raise error
            if watch is not None:
                watch.pause()
            if isinstance(error, ItemError):
                break
            if gate is not None and gate.forgives(forgiven):
                forgiven += 1
            elif retries < self._spec.retries:
                retries += 1
                time.sleep(delay_before(retries + 1, self._spec.retry_delay))
            else:
                break
            attempt += 1
            self.tally.retried += 1
            try:
                if watch is not None:
                    watch.enter(self._outbox.first + index)
                self._one(self._items[index], self._given)
                self._given = 0
                del error
                return
            except (Exception, SystemExit) as again:
                error = again
        self._given = 0
        self._keep_order_of_letters()
        self._give_up(index, error, attempt)
        del error  # whose traceback has this frame: the item would stay till garbage is collected

    def _keep_order_of_letters(self) -> None:
        """Let items before this one fail first, if their outputs cannot travel.

        Then letters come in the order of the items: recovery after a crash counts on it.
        """
        if self._outbox.outputs and self._spec.on_error == "dead_letter":
            with suppress(ItemError):  # of the item that fails anyway
                self._flush()

    def _give_up(self, index: int, error: BaseException, attempts: int) -> None:
        if index in self._failed:
            return
        self._failed.add(index)
        spec, position = self._spec, self.position(self._outbox.first + index)
        where = f"failed on {position}"
        if attempts > 1:
            where += f" after {attempts} attempts"
        failure = self._host.failure(where, error, position, attempts)
        if spec.on_error == "raise":
            self._broken = failure
            raise failure from error
        self.tally.failed += 1
        if spec.on_error == "dead_letter":
            from ..stats import DeadLetter  # see `preload`

            self.tally.dead_lettered += 1
            item, trace = self._items[index], failure.remote_traceback
            letter = DeadLetter(spec.name, item, one_line(error), trace, attempts, position)
            self._rejects.dead_letter(letter, index)
        else:
            self._rejects.log(str(failure.args[0]))

    # Handing on.

    def _flush(self, last: bool = False) -> None:
        """Hand the collected outputs on; an item with an output that cannot travel fails."""
        aborted = None
        if self._watch is not None:
            self._watch.pause()
        while True:
            try:
                self._hand_on(last)
                break
            except Unsendable as bad:
                index = self._outbox.withdraw(bad.index)
                if index is None:
                    aborted = bad.error  # the item that is being handled now
                else:
                    self._give_up(index, bad.error, 1)
        if aborted is not None:
            try:
                raise aborted
            finally:
                del aborted  # see `_retry`

    def _hand_on(self, last: bool = False) -> None:
        try:
            emitted = self._outbox.hand_on(last)
        except Unsendable:
            raise
        except (Exception, SystemExit) as error:
            self._broken = error
            raise
        self.tally.emitted += emitted

    def _hold(self) -> None:
        """Before a wait at the gate: hand on what is done, but for what cannot travel."""
        if self._watch is not None:
            self._watch.pause()
        with suppress(Unsendable):  # the next flush sees to that
            self._hand_on()

    def _go_on(self) -> None:
        if self._watch is not None:
            self._watch.resume()
