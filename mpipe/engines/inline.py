"""The engine to debug with: the whole graph in the caller's process and thread.

Each pushed item runs depth-first through all stages before `push` returns, so breakpoints stop
where one expects and a failure is raised from the very `push` that caused it. One kernel runs each
stage, however many workers it asks for; buffers never fill: nothing waits and nothing is dropped.

Items cross every connection as pickled copies, as they do between processes. So what cannot travel
there fails here too, and no stage sees another one's in-place changes; that costs the pickling.
Functions run as they are; an `mpipe.Stage` instance is copied, so that each run starts afresh.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil

from ..errors import Cancelled, Closed, ItemError, MPipeError, StageError
from ..plan import Plan, RunOptions
from ..routes import find_routes
from ..stage import Stage, StageSpec
from ..stats import DeadLetter, EdgeStats, Stats, WorkerStats
from ..transport.frame import Unsendable, encode_all
from .base import NO_MORE, Batches, Deadline, Halt, why_cancelled
from .lane import Lane, Origin, Shared
from .packing import pack_function
from .refusal import refuse
from .report import build_stats

_WAIT_S = 0.05
"""How often a thread that waits for results looks at the deadline and the cancel event."""


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
        routes = find_routes(graph, options.ordered_results)
        self._shared = Shared(self._check, options.max_item_bytes, routes)
        specs = [_private(spec) for spec in graph.stages]
        self._lanes: dict[str, Lane] = {spec.name: Lane(spec, self._shared) for spec in specs}
        for lane in self._lanes.values():
            lane.targets = [self._lanes[name] for name in graph.downstream(lane.spec.name)]
            lane.keeps_outputs = options.results and not lane.targets
        self._set_up()

    def _set_up(self) -> None:
        try:
            for lane in self._lanes.values():
                lane.open()
        except StageError as error:
            self._end(error)
            raise
        except BaseException:
            self._end(_cancelled("interrupted"))
            raise

    # What the engine is asked.

    def push(self, items: Sequence[Any], targets: Sequence[str], timeout: float | None) -> None:
        """Run each item through the graph. Never raises `Full`; raises a failure it caused."""
        self._work(lambda: self._push(items, [self._lanes[name] for name in targets]), items)

    def stream(self, source: Iterable[Any], ordered: bool) -> Batches:
        """Push one item at a time and yield what came out of it: source order comes for free."""
        batches = self._stream(source)
        next(batches)  # from here on, closing it at any time ends the run
        return batches

    def _stream(self, source: Iterable[Any]) -> Batches:
        try:
            yield ()
            for item in source:
                self.push((item,), self._plan.graph.sources, None)
                yield self._take_outputs()
            self.close()
            yield self._take_outputs()
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
                if not self._shared.outputs:
                    if self._state != "running":
                        break
                    self._changed.wait(_WAIT_S)
        self._raise_failure()

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters not yielded before."""
        while self._shared.letters:
            yield self._shared.letters.popleft()

    def stats(self) -> Stats:
        """Counters so far; from another thread also while an item is being handled."""
        self._poll()
        return self._final or self._snapshot()

    def drain(self, timeout: float | None) -> Stats:
        """Finish all stages and return the last `Stats`; there is never anything to wait for."""
        self.close()
        self._raise_failure()
        return self.stats()

    mine = True

    def cancel(self) -> None:
        """Stop before the next item and tear the stages down."""
        self._stop = self._stop or "cancel() was called"
        self._poll(wait=True)

    # The run: started, stopped and counted.

    def _work(self, action: Callable[[], None], items: Sequence[Any] = ()) -> None:
        """Do what runs kernels, in one thread at a time; end the run on a failure or a stop.

        Raises the run's failure, or `Closed`, with the items, after its end.
        """
        with self._changed:
            self._raise_failure()
            if self._state != "running":
                raise Closed(NO_MORE, tuple(items))
            if self._active:
                raise MPipeError(
                    "a stage's function cannot push into, or close, its own inline run"
                )
            self._active = True
            try:
                self._check()
                action()
            except Halt as halt:
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

    def _check(self) -> None:
        """Raise `Halt` if the run is to stop."""
        self._stop = self._stop or why_cancelled(self._options.cancel)
        if not self._stop and self._deadline.passed:
            self._stop = f"its deadline of {self._options.deadline:g} s passed"
        if self._stop:
            raise Halt(_cancelled(self._stop))

    def _push(self, items: Sequence[Any], targets: Sequence[Lane]) -> None:
        for index, item in enumerate(items):
            self._check()
            try:
                payloads = encode_all([item], self._shared.max_item_bytes)
            except Unsendable as bad:
                self._refuse(item, f"item {index} of {len(items)}", targets, bad.error)
                continue
            origin = Origin(self._pushed, True, time.perf_counter_ns())
            self._pushed += 1
            for lane in targets:
                lane.receive(payloads, origin, None)
            self._settle()

    def _settle(self) -> None:
        """Let ordered stages, and results, take what has come of the last source item."""
        for lane in self._lanes.values():
            lane.settle()
        self._shared.settle()

    def _refuse(self, item: Any, which: str, targets: Sequence[Lane], error: ItemError) -> None:
        stages = [lane.spec for lane in targets]
        letters = refuse(stages, item, which, f"source item {self._pushed}", error)
        for lane in targets:
            self._shared.crossed[None, lane.spec.name] += 1
            lane.refuse()
        self._shared.letters.extend(letter for letter in letters if letter is not None)
        self._pushed += 1

    def _finish(self) -> None:
        for lane in self._lanes.values():
            self._check()
            lane.finish()
            self._settle()
        self._end(None)

    def _end(self, failure: MPipeError | None) -> None:
        """The one end of every run: tear down what is still up, keep the last counters."""
        for lane in self._lanes.values():
            with suppress(StageError):  # what ended the run matters more
                lane.close()
        self._failure = failure
        self._state = "failed" if failure else "drained"
        if isinstance(failure, Cancelled):
            self._state = "cancelled"
        self._final = self._snapshot()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _take_outputs(self) -> Iterator[Any]:
        while self._shared.outputs:
            yield self._shared.outputs.popleft()

    def _snapshot(self) -> Stats:
        elapsed = time.perf_counter() - self._began
        worker = self._worker()
        graph = self._plan.graph
        edges = [*((None, name) for name in graph.sources), *graph.edges]
        return build_stats(
            graph.name,
            self._state,
            elapsed,
            [lane.summary(worker, elapsed) for lane in self._lanes.values()],
            [self._edge(source, target) for source, target in edges],
            self._shared.ages,
            time.process_time() - self._cpu_began,
        )

    def _edge(self, source: str | None, target: str) -> EdgeStats:
        items = self._shared.crossed[source, target]
        return EdgeStats(source, target, emitted=items, received=items, dropped=0)

    def _worker(self) -> WorkerStats:
        state = "finished" if self._state != "running" else "busy" if self._active else "idle"
        memory = psutil.Process().memory_info().rss
        return WorkerStats(os.getpid(), restarts=0, recycled=0, cpu=0.0, memory=memory, state=state)


def _cancelled(reason: str) -> Cancelled:
    return Cancelled(f"the run was cancelled: {reason}")


def _private(spec: StageSpec) -> StageSpec:
    """The spec with a stage object of this run's own."""
    packed = pack_function(spec)
    return spec._replace(fn=pickle.loads(packed)[0]) if isinstance(spec.fn, Stage) else spec
