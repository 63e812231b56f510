"""How a stage's function is applied to items; the same code runs in workers and inline.

The kernel calls the function, checks what it returns, retries, gives up and measures. Where
outcomes go is the `Outlet`'s business; it may block there, and that time is not service time.

For the same items the kernel hands on the same outputs in the same order, wherever it flushes:
recovery after a crash counts on it. So an item that fails midway keeps the outputs it had given.
"""

from __future__ import annotations

import pickle
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, Protocol

from ..errors import ItemError, StageError, WorkerDied
from ..policy.batching import FRAME_NS
from ..policy.retry import delay_before
from ..policy.sampling import run_items
from ..stage import Stage, StageSpec, has_snapshot, needs_memory
from ..stats import DeadLetter
from ..transport.byvalue import dumps
from ..transport.frame import Unsendable
from .apply import Many, One, appliers
from .gate import Gate, gated, one_line

FLUSH_NS = 2_000_000
"""Longest that an output of a slow iterator is kept back, in nanoseconds."""


class Outlet(Protocol):
    """Where a kernel's outcomes go."""

    waited_ns: int
    """Time spent so far waiting for room, or at the gate."""

    @property
    def flush_items(self) -> int:
        """How many outputs to collect before handing them on."""

    def emit(self, outputs: list[Any], last: bool) -> None:
        """Send outputs to every stage downstream: all or, raising `Unsendable`, none.

        `last` says that these are the last ones of the frame in hand; there may be none of them.
        """

    def dead_letter(self, letter: DeadLetter, index: int) -> None:
        """Hand item number `index` of the frame in hand, given up, to the caller."""

    def abandon(self) -> int:
        """The item to come gives nothing more: returns how many outputs of it are out already."""

    def log(self, message: str) -> None:
        """Tell the caller's log about a skipped item."""


class Watch(Protocol):
    """Told when the function is at work on an item, and when it is not."""

    def enter(self, index: int) -> None:
        """An attempt at the item begins."""

    def pause(self) -> None:
        """Not the function, but what comes between: a wait for room, or before a retry."""

    def resume(self) -> None:
        """The function goes on with the item it was at."""


@dataclass
class Tally:
    """What happened to the items of one frame, in items."""

    processed: int = 0
    failed: int = 0
    dead_lettered: int = 0
    retried: int = 0
    emitted: int = 0


class Kernel:
    """Applies one stage's function in one process.

    `position` names the item at an index of the frame in hand, for messages. After `run`, `tally`
    counts what happened, `durations` holds the service times of items timed singly, in nanoseconds,
    and `runs` the mean and the number of those timed together. Every call of the function passes
    the `gate`, if there is one.
    """

    def __init__(
        self, spec: StageSpec, worker: int, outlet: Outlet, gate: Gate | None = None
    ) -> None:
        self.spec = spec
        self.worker = worker
        self.outlet = outlet
        self._gate = gate
        self.position: Callable[[int], str] = "item {}".format
        self.stage: Stage | None = None
        self._fn: Callable[[Any], Any] = spec.fn
        self._outputs: list[Any] = []
        self._ends: list[int] = []  # len(_outputs) after each item since the last flush
        self._one, self._many = self._appliers()
        self._mean_ns = 0.0
        self._watch: Watch | None = None
        self._reset([])

    def _reset(self, items: Sequence[Any]) -> None:
        self.tally = Tally()
        self.durations: list[int] = []
        self.runs: list[tuple[int, int]] = []
        self._items = items
        self._outputs.clear()
        self._ends.clear()
        self._done = 0  # items completed before the last flush
        self._failed: set[int] = set()
        self._given = 0  # outputs of an iterator that failed midway, until the item is settled
        self._broken: BaseException | None = None  # what ends the run: not the item in hand
        self._last_flush = time.perf_counter_ns()

    def open(self) -> None:
        """Make and set up the stage; raises `StageError` when that fails."""
        spec = self.spec
        try:
            stage = spec.fn() if spec.is_factory else spec.fn
            if isinstance(stage, Stage):
                self.stage = stage
                self._fn = stage.process
                self._one, self._many = self._appliers()
                stage.setup()
            elif spec.is_factory:
                raise TypeError(
                    f"the factory returned a {type(stage).__name__}, not an mpipe.Stage; "
                    f"a function that handles items must take one argument"
                )
        except (Exception, SystemExit) as error:
            raise self._error("could not be set up", error) from error

    @property
    def stateful(self) -> bool:
        """Whether outputs depend on what this worker remembers, and dies with it."""
        return self.stage is not None and needs_memory(self.stage)

    @property
    def has_snapshot(self) -> bool:
        """Whether the stage can say what it remembers."""
        return self.stage is not None and has_snapshot(type(self.stage))

    def snapshot(self) -> bytes:
        """What the stage remembers, pickled; raises `StageError`."""
        assert self.stage is not None
        try:
            return dumps(self.stage.snapshot())
        except (Exception, SystemExit) as error:
            raise self._error("failed in snapshot()", error) from error

    def restore(self, state: bytes) -> None:
        """Give the stage what `snapshot` returned in another process; raises `StageError`."""
        assert self.stage is not None
        try:
            self.stage.restore(pickle.loads(state))
        except (Exception, SystemExit) as error:
            raise self._error("failed in restore()", error) from error

    @property
    def batch(self) -> range:
        """Indices of the items that the outputs now handed on derive from."""
        in_progress = len(self._outputs) > (self._ends[-1] if self._ends else 0)
        return range(self._done, self._done + len(self._ends) + in_progress)

    def close(self) -> None:
        """Tear the stage down, once; raises `StageError` when that fails."""
        stage, self.stage = self.stage, None
        if stage is not None:
            try:
                stage.teardown()
            except (Exception, SystemExit) as error:
                raise self._error("could not be torn down", error) from error

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
        outputs, outlet, apply = self._outputs, self.outlet, self._one
        clock, collect, end = time.perf_counter_ns, self.durations.append, self._ends.append
        last, waited = clock(), outlet.waited_ns
        for index, item in enumerate(items):
            try:
                if watch is not None:
                    watch.enter(index)
                apply(item, 0)
            except (Exception, SystemExit) as error:
                self._retry(index, error)
            end(len(outputs))
            now = clock()
            collect(now - last - (outlet.waited_ns - waited))
            enough = len(outputs) >= outlet.flush_items or now - self._last_flush > FRAME_NS
            if enough and index + 1 < len(items):
                self._flush()
                now = clock()
            last, waited = now, outlet.waited_ns

    def _handle_run(self, items: Sequence[Any], start: int) -> None:
        """Handle items timed together, the first of which is number `start` of the frame."""
        rest, outlet, clock = iter(items), self.outlet, time.perf_counter_ns
        began, waited = clock(), outlet.waited_ns
        while True:
            try:
                self._many(rest)
                break
            except (Exception, SystemExit) as error:
                self._retry(start + len(items) - length_hint(rest) - 1, error)
                self._ends.append(len(self._outputs))
        now = clock()
        spent = now - began - (outlet.waited_ns - waited)
        self.runs.append((spent // len(items), len(items)))
        enough = len(self._outputs) >= outlet.flush_items or now - self._last_flush > FRAME_NS
        if enough and start + len(items) < len(self._items):
            self._flush()

    def _learn(self, items: int) -> None:
        """Keep a moving mean of the service time, to know how many items to time together."""
        if items:
            mean = (sum(self.durations) + sum(ns * n for ns, n in self.runs)) / items
            self._mean_ns = mean if not self._mean_ns else (3 * self._mean_ns + mean) / 4

    def refuse(self, item: Any, error: BaseException, attempts: int, is_end: bool) -> None:
        """Give up an item that is not to be tried again, as a frame of its own."""
        self._reset([item])
        self._watch = None
        self._give_up(0, error, attempts)
        self.tally.emitted = self.outlet.abandon()
        self._ends.append(0)
        self._flush(is_end)
        self._items = ()

    def finish(self) -> None:
        """Emit what the stage kept; raises `StageError` when its `finish` fails."""
        self._reset([])
        self._watch = None
        if self.stage is not None:
            try:
                self._take(self.stage.finish(), 0)
                self._flush()
            except (Exception, SystemExit) as error:
                raise self._error("failed in finish()", error) from error

    # Outputs of an item are added to `_outputs`, less the first `skip`.

    def _appliers(self) -> tuple[One, Many]:
        one, many = appliers(self.spec.kind, self._fn, self._outputs, self._ends, self._take)
        return one if self._gate is None else gated(one, self._gate, self._hold, self._go_on), many

    def _take(self, result: Any, skip: int) -> None:
        check_result(result)
        if isinstance(result, (list, tuple)):
            self._outputs.extend(result[skip:])
        elif result is not None:
            self._drain(iter(result), skip)

    def _drain(self, iterator: Iterator[Any], skip: int) -> None:
        """Consume an iterator lazily: hand on what it gave whenever that is much, or old."""
        outputs, clock, size = self._outputs, time.perf_counter_ns, 1
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
            if len(outputs) >= self.outlet.flush_items or now - self._last_flush > FLUSH_NS:
                self._flush()
                if self._watch is not None:
                    self._watch.resume()
            quick = (now - start) * 4 < FLUSH_NS
            size = min(size * 2, self.outlet.flush_items) if quick else max(1, size // 2)
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
            elif retries < self.spec.retries:
                retries += 1
                time.sleep(delay_before(retries + 1, self.spec.retry_delay))
            else:
                break
            attempt += 1
            self.tally.retried += 1
            try:
                if watch is not None:
                    watch.enter(index)
                self._one(self._items[index], self._given)
                self._given = 0
                return
            except (Exception, SystemExit) as again:
                error = again
        self._given = 0
        self._keep_order_of_letters()
        self._give_up(index, error, attempt)

    def _keep_order_of_letters(self) -> None:
        """Let items before this one fail first, if their outputs cannot travel.

        Then letters come in the order of the items: recovery after a crash counts on it.
        """
        if self._outputs and self.spec.on_error == "dead_letter":
            with suppress(ItemError):  # of the item that fails anyway
                self._flush()

    def _give_up(self, index: int, error: BaseException, attempts: int) -> None:
        if index in self._failed:
            return
        self._failed.add(index)
        where = f"failed on {self.position(index)}"
        if attempts > 1:
            where += f" after {attempts} attempts"
        failure = self._error(where, error, self.position(index), attempts)
        if self.spec.on_error == "raise":
            self._broken = failure
            raise failure from error
        self.tally.failed += 1
        if self.spec.on_error == "dead_letter":
            self.tally.dead_lettered += 1
            self.outlet.dead_letter(
                DeadLetter(
                    self.spec.name,
                    self._items[index],
                    one_line(error),
                    failure.remote_traceback,
                    attempts,
                    failure.position,
                ),
                index,
            )
        else:
            self.outlet.log(str(failure.args[0]))

    def _error(
        self, what: str, error: BaseException, position: str = "", attempts: int = 1
    ) -> StageError:
        message = f"stage {self.spec.name!r} (worker {self.worker}) {what}: {one_line(error)}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        if isinstance(error, WorkerDied):
            trace = error.remote_traceback
        return StageError(message, self.spec.name, self.worker, position, attempts, trace)

    # Outputs.

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
                aborted = self._withdraw(bad) or aborted
        if aborted is not None:
            raise aborted

    def _hand_on(self, last: bool) -> None:
        try:
            self.outlet.emit(self._outputs, last)
        except Unsendable:
            raise
        except (Exception, SystemExit) as error:
            self._broken = error
            raise
        self.tally.emitted += len(self._outputs)
        self._done += len(self._ends)
        self._outputs.clear()
        self._ends.clear()
        self._last_flush = time.perf_counter_ns()

    def _hold(self) -> None:
        """Before a wait at the gate: hand on what is done, but for what cannot travel."""
        if self._watch is not None:
            self._watch.pause()
        with suppress(Unsendable):  # the next flush sees to that
            self._hand_on(False)

    def _go_on(self) -> None:
        if self._watch is not None:
            self._watch.resume()

    def _withdraw(self, bad: Unsendable) -> ItemError | None:
        """Take an output that cannot travel, and its item's later ones, out of the batch.

        Returns the error when it belongs to the item that is being handled now.
        """
        owner = bisect_right(self._ends, bad.index)
        stop = self._ends[owner] if owner < len(self._ends) else len(self._outputs)
        del self._outputs[bad.index : stop]
        gone = stop - bad.index
        self._ends[owner:] = [end - gone for end in self._ends[owner:]]
        if owner == len(self._ends):
            return bad.error
        self._give_up(self._done + owner, bad.error, 1)
        return None


def check_result(result: Any) -> None:
    """Raise `TypeError`, with what to return instead, unless `result` is outputs or None."""
    if result is None or isinstance(result, (list, Iterator)):
        return
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return
    raise TypeError(
        f"a stage must return a list, tuple, generator or iterator of outputs, or None, not "
        f"{type(result).__name__}; return [result] for one output, or use add_map"
    )
