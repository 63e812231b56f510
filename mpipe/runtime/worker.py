"""A worker: one process in one seat, from recovery to teardown.

For each frame, in order: (1) take it and return its credits; (2) run the kernel over its items,
which publishes outputs as it goes; (3) record times, commit the counters; (4) release the slot.
A replacement finds in its seat's words how far the dead worker came and carries on from there. It
handles the frame in hand item by item, as if each were a frame of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

from ..errors import OptionError, StageError, WorkerDied
from ..transport import counters
from ..transport.channel import Channel
from ..transport.consumer import Consumer
from ..transport.counters import Board, Row, SeatCounters
from ..transport.frame import Header, Tag
from ..transport.producer import Producer
from ..transport.token import END
from .blame import Caution, Death, describe_crashes
from .emitter import Edge, Emitter, part_of
from .functions import load_function
from .kernel import Kernel, Stopped
from .noting import Noting
from .position import describe_frame, describe_position
from .reports import Reporter
from .spec import RunSpec
from .wear import Wear


class Worker:
    """The process in seat number `seat` of the run; `caution` is what those before it died on."""

    def __init__(self, spec: RunSpec, seat: int, caution: Caution, reporter: Reporter) -> None:
        plan = spec.plan
        stage = plan.stage_of(seat)
        self._index = seat - plan.first_seat[stage]
        self._options = plan.graph.stages[stage]
        self._function = spec.functions[stage]
        self._caution = caution
        self._is_terminal = seat in plan.terminal_seats
        self._board = Board(spec.board, plan.seats, len(plan.graph.stages))
        self._counters = SeatCounters(self._board, seat)
        self._consumer = Consumer(Channel(spec.channels[stage]), self._index)
        edges = list(_edges(spec, stage, seat))
        letters = _dead_letters(spec, seat)
        self._producers = [edge.producer for edge in (*edges, *([letters] if letters else []))]
        self._emitter = Emitter(
            self._counters,
            edges,
            letters,
            spec.max_item_bytes,
            reporter.log,
            self._options.kind == "map",
            spec.ordered_results,
        )
        self._kernel: Kernel | None = None
        self._noting = Noting(self._counters, self._options.timeout)
        always = self._options.timeout is not None or self._options.max_crashes == 1
        self._watch = self._noting if always else None
        self._wear = Wear(self._options)
        self._service_ns = 0.0
        self._idle_ns = 0

    def recover(self) -> None:
        """Finish what a dead worker in this seat had begun, before others wait for it."""
        self._counters.enter(counters.STARTING)
        for producer in self._producers:
            producer.recover()
        if self._consumer.recover() not in (0, END):
            self._emitter.resume()

    def open(self) -> None:
        """Load the stage's function and set it up; raises `StageError`."""
        try:
            fn = load_function(self._function)
        except Exception as error:
            raise self.error("could not load the stage's function", error) from error
        kernel = Kernel(replace(self._options, fn=fn), self._index, self._emitter)
        self._emitter.batch = lambda: (kernel.batch, kernel.failed)
        self._kernel = kernel
        kernel.open()
        try:
            self._wear.check(kernel.stateful)
        except OptionError as error:
            raise self.error("cannot keep its limits", error) from error
        self._counters.put(counters.STATEFUL, kernel.stateful)
        self._counters.enter(counters.BUSY)

    def work(self) -> None:
        """Handle frames to the end of input, then finish; raises `StageError`.

        Returns before that when this process is to make way for a new one.
        """
        consumer, kernel = self._consumer, self._kernel
        assert kernel is not None
        while True:
            if not consumer.token and not consumer.take():
                self._wait()
            if consumer.token == END:
                break
            header = consumer.claim()
            if header is None:
                continue
            if not self._counters.is_committed(consumer.token):
                self._handle(kernel, header)
            consumer.release()
            if self._wear.add(header.items):
                self._counters.enter(counters.RECYCLING)
                return
        if not self._counters.is_committed(END):
            now = time.perf_counter_ns()
            self._emitter.begin(Tag(now, now, 0, 0, 0))
            kernel.finish()
            self._counters.commit(END, self._add_up(kernel, None, now))
        self._counters.enter(counters.FINISHED)
        self._counters.put(counters.DONE, 1)

    def close(self) -> None:
        """Tear the stage down; raises `StageError`."""
        if self._kernel is not None:
            self._kernel.close()

    def _wait(self) -> None:
        began = time.perf_counter_ns()
        self._counters.enter(counters.IDLE)
        self._consumer.wait_take()
        self._counters.enter(counters.BUSY)
        self._idle_ns += time.perf_counter_ns() - began

    def _handle(self, kernel: Kernel, header: Header) -> None:
        taken, put, token = time.perf_counter_ns(), self._counters.put, self._consumer.token
        put(counters.HOLDING, header.items)
        items = self._load(header)
        if self._caution.frame == token and items:
            self._handle_carefully(kernel, header, items, taken)
        else:
            self._emitter.begin(header.tag)
            kernel.position = lambda index: describe_position(header, index)
            self._noting.first = 0
            kernel.run(items, self._watch)
            self._counters.commit(token, self._add_up(kernel, header, taken))
        put(counters.HOLDING, 0)

    def _handle_carefully(
        self, kernel: Kernel, header: Header, items: list[Any], taken: int
    ) -> None:
        """Handle a frame that a worker died on: item by item, each counted as soon as it is done.

        Where a worker's memory goes with its frames, they are counted whole.
        """
        seat, token = self._counters, self._consumer.token
        before, row = seat.committed, seat.row
        for index in range(row.settled, len(items)):
            self._emitter.begin(part_of(header.tag, index, 1))
            kernel.position = _always(describe_position(header, index))
            if death := self._caution.condemned.get(index):
                kernel.refuse(items[index], self._blame(death), self._options.max_crashes)
            else:
                self._noting.first = index
                kernel.run(items[index : index + 1], self._noting)
            row = self._add_up(kernel, header, taken, row)
            if not kernel.stateful and index + 1 < len(items):
                seat.commit(before, row._replace(settled=index + 1))
                seat.put(counters.HOLDING, len(items) - index - 1)
        seat.commit(token, row._replace(settled=0))

    def _blame(self, death: Death) -> WorkerDied:
        what = describe_crashes(self._options.max_crashes)
        message = f"{what} (worker {self._index}; the last time: {death.how})"
        return WorkerDied(message, self._options.name, self._index, death.exitcode)

    def _load(self, header: Header) -> list[Any]:
        try:
            return self._consumer.load()
        except Exception as error:
            what = f"could not unpickle {describe_frame(header)}"
            raise self.error(what, error, describe_frame(header)) from error

    def _add_up(
        self, kernel: Kernel, header: Header | None, taken: int, old: Row | None = None
    ) -> Row:
        """Record the times of what the kernel did; returns the sums with its counts."""
        now = time.perf_counter_ns()
        seat, tally, durations = self._counters, kernel.tally, kernel.durations
        old = old or seat.row
        items = len(durations)
        service, longest = sum(durations), max(durations, default=0)
        waited = max(0, taken - header.put_ns) if header and items else 0
        age = max(0, now - header.born_ns) if header and items and self._is_terminal else 0
        if items:
            seat.record(counters.SERVICE, durations)
            seat.record_same(counters.WAIT, waited, items)
            if self._is_terminal:
                seat.record_same(counters.END_TO_END, age, items)
            self._report_service(service / items)
        idle, self._idle_ns = self._idle_ns, 0
        blocked, self._emitter.waited_ns = self._emitter.waited_ns, 0
        return Row(
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
            old.idle_ns + idle,
            old.blocked_ns + blocked,
        )

    def _report_service(self, mean_ns: float) -> None:
        known = self._service_ns
        self._service_ns = mean_ns if not known else known + (mean_ns - known) / 4
        self._consumer.report_service(int(self._service_ns))

    def error(self, what: str, error: BaseException, position: str = "") -> StageError:
        """A failure of the worker itself, for the caller."""
        name, index = self._options.name, self._index
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        message = f"stage {name!r} (worker {index}) {what}: {type(error).__name__}: {error}"
        return StageError(message, name, index, position, 1, trace)


def _edges(spec: RunSpec, stage: int, seat: int) -> Iterator[Edge]:
    plan = spec.plan
    for name in plan.graph.downstream(plan.graph.stages[stage].name):
        target = plan.index[name]
        channel = Channel(spec.channels[target])
        drop_on_full = plan.graph.stages[target].drop_on_full
        yield Edge(Producer(channel, plan.producers_of(target).index(seat)), drop_on_full)
    if spec.results is not None and seat in plan.terminal_seats:
        yield Edge(Producer(Channel(spec.results), plan.terminal_seats.index(seat)), False)


def _dead_letters(spec: RunSpec, seat: int) -> Edge | None:
    if spec.dead_letters is None or seat not in spec.plan.dead_letter_seats:
        return None
    index = spec.plan.dead_letter_seats.index(seat)
    return Edge(Producer(Channel(spec.dead_letters), index), drop_on_full=False)


def _always(position: str) -> Callable[[int], str]:
    return lambda index: position


def run_worker(spec: RunSpec, seat: int, caution: Caution) -> None:
    """The life of a worker, until its stage is finished or a signal stops it."""
    worker = None
    try:
        signal.signal(signal.SIGTERM, _stop)
        reporter = Reporter(spec.reports, seat)
        worker = Worker(spec, seat, caution, reporter)
        try:
            worker.recover()
            worker.open()
            worker.work()
            worker.close()
        except Exception as error:
            report = error if isinstance(error, StageError) else worker.error("broke", error)
            reporter.error(report)
            while True:
                signal.pause()
    except Stopped:
        if worker is not None:
            with contextlib.suppress(Exception):
                worker.close()


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def leave(status: int) -> None:
    """End this process at once, with its output flushed, whatever threads user code left."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
