"""The engine to debug with: the whole graph in the caller's process and thread.

Each pushed item runs depth-first through all stages before `push` returns, so breakpoints stop
where one expects and a failure is raised from the very `push` that caused it. One kernel runs each
stage, however many workers it asks for; buffers never fill: nothing waits and nothing is dropped.

Items cross every connection as pickled copies, as they do between processes. So what cannot travel
there fails here too, and no stage sees another one's in-place changes; that costs the pickling.
Functions run as they are; an `mpipe.Stage` instance is copied, so that each run starts afresh.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import cloudpickle
import psutil

from ..errors import Cancelled, Closed, ItemError, MPipeError, StageError
from ..plan import Plan, RunOptions
from ..policy import histogram
from ..runtime.functions import pack_function
from ..runtime.kernel import Kernel
from ..stage import Stage, StageSpec
from ..stats import DeadLetter, EdgeStats, Stats, WorkerStats
from ..transport.frame import Payload, Unsendable, encode, encode_all
from .base import Deadline
from .report import StageSums, Times, build_stats

_WAIT_S = 0.05
"""How often a thread that waits for results looks at the deadline and the cancel event."""

_log = logging.getLogger("mpipe")


class InlineEngine:
    """Runs a plan in the calling thread; satisfies `base.Engine`.

    Raises `OptionError` for a function that other engines could not send to a process, and
    `StageError` when a stage cannot be set up. Several threads may use it, one at a time.
    The deadline and the cancel event are looked at before each item.
    """

    def __init__(self, plan: Plan, options: RunOptions) -> None:
        graph = plan.graph
        self._plan = plan
        self._options = options
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self._deadline = Deadline(options.deadline)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._active = False  # kernels are running, in the thread that holds the lock
        self._stop = ""  # why the run is to stop; any thread may set it
        self._state = "running"
        self._failure: MPipeError | None = None
        self._final: Stats | None = None
        self._pushed = 0
        self._letters: deque[DeadLetter] = deque()
        self.outputs: deque[Any] = deque()
        self.crossed: Counter[tuple[str | None, str]] = Counter()
        self.ages = Times()
        self.max_item_bytes = options.max_item_bytes
        specs = [_private(spec) for spec in graph.stages]
        self._lanes: dict[str, _Lane] = {spec.name: _Lane(spec, self) for spec in specs}
        for lane in self._lanes.values():
            lane.targets = [self._lanes[name] for name in graph.downstream(lane.spec.name)]
            lane.keeps_outputs = options.results and not lane.targets
        self._set_up()

    def _set_up(self) -> None:
        try:
            for lane in self._lanes.values():
                lane.kernel.open()
        except StageError as error:
            self._end(error)
            raise
        except BaseException:
            self._end(_cancelled("interrupted"))
            raise

    # What the engine is asked.

    def push(self, items: Sequence[Any], targets: Sequence[str], timeout: float | None) -> None:
        """Run each item through the graph. Never raises `Full`; raises a failure it caused."""
        self._work(lambda: self._push(items, [self._lanes[name] for name in targets]))

    def stream(self, source: Iterable[Any], ordered: bool) -> Iterator[Any]:
        """Push one item at a time and yield what came out of it: always in source order."""
        outputs = self._stream(source)
        next(outputs)  # from here on, closing it at any time ends the run
        return outputs

    def _stream(self, source: Iterable[Any]) -> Iterator[Any]:
        try:
            yield
            for item in source:
                self.push((item,), self._plan.graph.sources, None)
                yield from self._take_outputs()
            self.close()
            yield from self._take_outputs()
            self.drain(None)
        finally:
            self.cancel()

    def close(self) -> None:
        """Finish all stages; a failure in that is raised by `drain`."""
        with suppress(Cancelled, Closed, StageError):
            self._work(self._finish)

    def results(self) -> Iterator[Any]:
        """Yield what came out; while there is nothing, wait for other threads to push or end."""
        while True:
            yield from self._take_outputs()
            with self._changed:
                self._poll()
                if not self.outputs:
                    if self._state != "running":
                        break
                    self._changed.wait(_WAIT_S)
        self._raise_failure()

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters not yielded before."""
        while self._letters:
            yield self._letters.popleft()

    def stats(self) -> Stats:
        """Counters so far; from another thread also while an item is being handled."""
        self._poll()
        return self._final or self._snapshot()

    def drain(self, timeout: float | None) -> Stats:
        """Finish all stages and return the last `Stats`; there is never anything to wait for."""
        self.close()
        self._raise_failure()
        return self.stats()

    def cancel(self) -> None:
        """Stop before the next item and tear the stages down."""
        self._stop = self._stop or "cancel() was called"
        self._poll(wait=True)

    # The run: started, stopped and counted.

    def _work(self, action: Callable[[], None]) -> None:
        """Do what runs kernels, in one thread at a time; end the run on a failure or a stop.

        Raises the run's failure, or `Closed` after its end.
        """
        with self._changed:
            self._raise_failure()
            if self._state != "running":
                raise Closed("this run takes no more items: it was closed or drained")
            if self._active:
                raise MPipeError(
                    "a stage's function cannot push into, or close, its own inline run"
                )
            self._active = True
            try:
                self.check()
                action()
            except _Halt as halt:
                self._end(halt.error)
            except MPipeError:  # the caller's: the run goes on
                raise
            except BaseException as error:
                self._end(_cancelled(f"interrupted by {type(error).__name__}"))
                raise
            finally:
                self._active = False
                self._changed.notify_all()
            self._raise_failure()

    def _poll(self, wait: bool = False) -> None:
        """End the run if it is to stop, unless it is at work: then it will see that itself."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if self._state == "running" and not self._active:
                with suppress(Cancelled):
                    self._work(lambda: None)
        finally:
            self._lock.release()

    def check(self) -> None:
        """Raise `_Halt` if the run is to stop."""
        cancel = self._options.cancel
        if not self._stop and cancel is not None and cancel.is_set():
            self._stop = "its cancel event was set"
        if not self._stop and self._deadline.passed:
            self._stop = f"its deadline of {self._options.deadline:g} s passed"
        if self._stop:
            raise _Halt(_cancelled(self._stop))

    def _push(self, items: Sequence[Any], targets: Sequence[_Lane]) -> None:
        for index, item in enumerate(items):
            self.check()
            try:
                payloads = encode_all([item], self.max_item_bytes)
            except Unsendable as bad:
                self._refuse(item, f"item {index} of {len(items)}", targets, bad.error)
                continue
            origin = _Origin(self._pushed, True, time.perf_counter_ns())
            self._pushed += 1
            for lane in targets:
                lane.receive(payloads, origin, None)

    def _refuse(self, item: Any, which: str, targets: Sequence[_Lane], error: ItemError) -> None:
        """Settle a pushed item that cannot travel: raise, or count it as failed at each target."""
        for lane in targets:
            if lane.spec.on_error == "raise":
                message = f"push to stage {lane.spec.name!r}: {which}: {error}"
                raise ItemError(message) from error.__cause__
        position = f"source item {self._pushed}"
        self._pushed += 1
        for lane in targets:
            name = lane.spec.name
            self.crossed[None, name] += 1
            lane.refuse()
            if lane.spec.on_error == "dead_letter":
                line = f"ItemError: {error}"
                self._letters.append(DeadLetter(name, item, line, "", 1, position))
            else:
                _log.warning("stage %r skipped %s: %s", name, position, error)

    def _finish(self) -> None:
        for lane in self._lanes.values():
            self.check()
            lane.finish()
        self._end(None)

    def _end(self, failure: MPipeError | None) -> None:
        """The one end of every run: tear down what is still up, keep the last counters."""
        for lane in self._lanes.values():
            with suppress(StageError):  # what ended the run matters more
                lane.kernel.close()
        self._failure = failure
        self._state = "failed" if failure else "drained"
        if isinstance(failure, Cancelled):
            self._state = "cancelled"
        self._final = self._snapshot()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _take_outputs(self) -> Iterator[Any]:
        while self.outputs:
            yield self.outputs.popleft()

    def keep_letter(self, letter: DeadLetter) -> None:
        """Keep a copy, without the item if that cannot travel."""
        try:
            payload = encode([letter], self.max_item_bytes)
        except ItemError as error:
            note = f"{letter.error} (the item is lost: {error})"
            payload = encode([replace(letter, item=None, error=note)], self.max_item_bytes)
        self._letters.extend(_copies([payload]))

    def _snapshot(self) -> Stats:
        elapsed = time.perf_counter() - self._began
        worker = self._worker()
        edges = [(None, name) for name in self._plan.graph.sources] + [*self._plan.graph.edges]
        counts = [(source, target, self.crossed[source, target]) for source, target in edges]
        return build_stats(
            self._plan.graph.name,
            self._state,
            elapsed,
            [lane.summary(worker, elapsed) for lane in self._lanes.values()],
            [EdgeStats(source, target, n, n, 0) for source, target, n in counts],
            self.ages,
            time.process_time() - self._cpu_began,
        )

    def _worker(self) -> WorkerStats:
        state = "finished" if self._state != "running" else "busy" if self._active else "idle"
        memory = psutil.Process().memory_info().rss
        return WorkerStats(os.getpid(), restarts=0, cpu=0.0, memory=memory, state=state)


class _Lane:
    """One stage: its kernel, its counters and, as the kernel's `Outlet`, its way downstream."""

    flush_items = 1

    def __init__(self, spec: StageSpec, engine: InlineEngine) -> None:
        self.spec = spec
        self.kernel = Kernel(spec, 0, self)
        self.targets: list[_Lane] = []
        self.keeps_outputs: bool = False
        self.waited_ns = 0
        self._engine = engine
        self._sums = StageSums(spec.name)
        self._origin = _Origin(None, False, 0)

    def receive(self, payloads: list[Payload], origin: _Origin, source: str | None) -> None:
        """Handle items and all that comes of them; raises `_Halt` if that ends the run."""
        name, kernel = self.spec.name, self.kernel
        items = self._load(payloads)
        self._engine.crossed[source, name] += len(items)
        self._sums.received += len(items)
        self._origin = origin
        kernel.position = lambda index: str(origin)
        try:
            kernel.run(items, self._before_item)
        except StageError as error:
            raise _Halt(error) from None
        finally:
            self._count()

    def _load(self, payloads: list[Payload]) -> list[Any]:
        try:
            return _copies(payloads)
        except Exception as error:
            raise _Halt(self._unpickling_failed(error)) from None

    def _unpickling_failed(self, error: Exception) -> StageError:
        name = self.spec.name
        message = f"stage {name!r} (worker 0) could not unpickle its input: {error!r}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        failure = StageError(message, name, 0, "", 1, trace)
        failure.__cause__ = error
        return failure

    def _before_item(self, index: int) -> None:
        self._engine.check()

    def _count(self) -> None:
        """Add up what became of the items handled last; those of a run cut short stay in flight."""
        sums, tally, durations = self._sums, self.kernel.tally, self.kernel.durations
        sums.processed += tally.processed
        sums.failed += tally.failed
        sums.dead_lettered += tally.dead_lettered
        sums.retried += tally.retried
        _record(sums.service, durations)
        _record(sums.wait, [0] * len(durations))
        if not self.targets and durations:
            age = time.perf_counter_ns() - self._origin.born_ns
            _record(self._engine.ages, [age] * len(durations))

    def refuse(self) -> None:
        """Count a pushed item that cannot travel as received and failed."""
        self._sums.received += 1
        self._sums.failed += 1
        self._sums.dead_lettered += self.spec.on_error == "dead_letter"

    def finish(self) -> None:
        """Emit what the stage kept, then tear it down."""
        self._origin = _Origin(None, False, time.perf_counter_ns())
        try:
            self.kernel.finish()
            self.kernel.close()
        except StageError as error:
            raise _Halt(error) from None

    def summary(self, worker: WorkerStats, elapsed: float) -> StageSums:
        """The counters as they are now; what is not spent in the function counts as idle."""
        busy_ns = self._sums.service.total_ns
        idle_ns = int(elapsed * 1e9) - busy_ns
        return replace(self._sums, busy_ns=busy_ns, idle_ns=idle_ns, workers=(worker,))

    # As the kernel's outlet.

    def emit(self, outputs: list[Any]) -> None:
        self._engine.check()
        if not outputs:
            return
        began = time.perf_counter_ns()
        travels = self.targets or self.keeps_outputs
        payloads = encode_all(outputs, self._engine.max_item_bytes) if travels else []
        self._sums.emitted += len(outputs)
        origin = self._origin
        exact = origin.exact and self.spec.kind == "map"
        for target in self.targets:
            target.receive(payloads, origin._replace(exact=exact), self.spec.name)
        if self.keeps_outputs:
            self._engine.outputs.extend(self._load(payloads))
        self.waited_ns += time.perf_counter_ns() - began

    def dead_letter(self, letter: DeadLetter) -> None:
        self._engine.keep_letter(letter)

    def log(self, message: str) -> None:
        _log.warning("%s", message)


class _Origin(NamedTuple):
    """The source item that items derive from; `number` is None for what `finish` emits."""

    number: int | None
    exact: bool
    born_ns: int

    def __str__(self) -> str:
        if self.number is None:
            return "an item from finish()"
        return (
            f"source item {self.number}"
            if self.exact
            else f"an item from source item {self.number}"
        )


class _Halt(BaseException):
    """Unwinds all kernels at once, out of reach of their handlers, with what ends the run."""

    def __init__(self, error: MPipeError) -> None:
        super().__init__(error)
        self.error = error


def _cancelled(reason: str) -> Cancelled:
    return Cancelled(f"the run was cancelled: {reason}")


def _private(spec: StageSpec) -> StageSpec:
    """The spec with a stage object of this run's own."""
    packed = pack_function(spec)
    return replace(spec, fn=cloudpickle.loads(packed)[0]) if isinstance(spec.fn, Stage) else spec


def _copies(payloads: Iterable[Payload]) -> list[Any]:
    copies: list[Any] = []
    for payload in payloads:
        buffers = [bytearray(raw) for raw in payload.buffers]
        copies += pickle.loads(payload.data, buffers=buffers)
    return copies


def _record(times: Times, nanoseconds: Sequence[int]) -> None:
    histogram.record(times.counts, nanoseconds)
    times.total_ns += sum(nanoseconds)
    times.max_ns = max(times.max_ns, *nanoseconds, 0)
