"""A worker: one process in one seat, from recovery to teardown.

For each frame, in order: (1) take it; (2) run the kernel over its items, which publishes outputs as
it goes; (3) record times, commit the counters, with the stage's state where it has a snapshot - if
that is costly, after several frames only; (4) let go of what is counted. A replacement finds in its
seat's words how far the dead worker came and carries on from there. It handles the frame in hand
item by item, as if each were a frame of its own.

In (2) the stages of a chain follow one another (see `chain`); all else there is once for all.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import OptionError, StageError, WorkerDied
from ..policy.pacing import SnapshotPace
from ..policy.reorder import FINAL
from ..routes import CALLER
from ..transport import counters
from ..transport.channel import Channel
from ..transport.consumer import Consumer
from ..transport.counters import Board, SeatCounters
from ..transport.frame import Header, Tag
from ..transport.gate import SharedGate
from ..transport.producer import Producer
from ..transport.store import Store
from ..transport.token import END
from . import nesting, stopping
from .account import Account
from .backlog import Backlog
from .blame import Caution, Death, describe_crashes
from .chain import join, make_followers
from .emitter import Edge, Emitter, part_of
from .forks import disown
from .functions import load_function, make_main
from .gate import WorkerGate
from .host import Host
from .intake import Direct, Intake, Work
from .kernel import Kernel
from .lastwords import listen
from .noting import Noting
from .reports import Reporter
from .spec import RunSpec
from .wear import Wear
from .wording import describe_frame, describe_position


class Worker:
    """The process in seat number `seat` of the run; `caution` is what those before it died on."""

    def __init__(self, spec: RunSpec, seat: int, caution: Caution, reporter: Reporter) -> None:
        plan = spec.plan
        stage = plan.stage_of(seat)
        self._spec = spec
        self._index = seat - plan.first_seat[stage]
        self._options = plan.graph.stages[stage]
        self._chain = plan.chain(stage)
        self.host = Host(self._options, self._index)
        self._caution = caution
        self._board = Board(spec.board, plan.leaders, len(plan.graph.stages))
        self._counters = SeatCounters(self._board, seat)
        self._account = Account(self._counters, seat in plan.terminal_seats)
        self._followers = make_followers(plan, self._account)
        self._led = [follower.account for follower in self._followers]
        self._hosts = [self.host, *(follower.host for follower in self._followers)]
        self._consumer = Consumer(Channel(spec.channels[stage]), self._index)
        self._intake: Intake = Direct(self._consumer, self._counters)
        self._backlog: Backlog | None = None
        self._has_snapshot = False
        edges = list(_edges(spec, self._chain[-1], self._last.seat))
        letters = _dead_letters(spec, seat)
        self._producers = [edge.producer for edge in (*edges, *([letters] if letters else []))]
        self._emitter = Emitter(
            self._counters,
            edges,
            letters,
            spec.max_item_bytes,
            reporter.log,
            all(plan.graph.stages[i].kind == "map" for i in self._chain),
        )
        self._is_tracked = any(edge.order for edge in edges)
        self._pace = SnapshotPace()
        self._gate = self._open_gate(reporter)
        self._kernel: Kernel  # once it is open
        self._noting = Noting(self._counters, self._options.timeout)
        always = self._options.timeout is not None or self._options.max_crashes == 1
        self._watch = self._noting if always else None
        self._wear = Wear(self._options)

    def _open_gate(self, reporter: Reporter) -> WorkerGate | None:
        fds = self._spec.gates[self._spec.plan.place[self._options.name]]
        if fds is None:
            return None
        can_give_up = self._options.on_error != "raise"
        shared, seat = SharedGate(fds), self._counters
        return WorkerGate(shared, self._index, seat, self._emitter, reporter.outcome, can_give_up)

    @property
    def _last(self) -> SeatCounters:
        """Of the stage whose outputs leave this process."""
        return self._led[-1].seat if self._led else self._counters

    def failure(self, error: Exception) -> StageError:
        """The error that says that something broke that is no item's, nor the function's fault."""
        at = self._board.get(self._counters.seat, counters.AT_STAGE)
        return self._hosts[at].failure("broke", error)

    def words(self) -> list[memoryview]:
        """The shared words that this process stores into."""
        channels = [self._consumer.channel, *(producer.channel for producer in self._producers)]
        gates = [] if self._gate is None else [self._gate.words]
        return [self._board.words, *(channel.words for channel in channels), *gates]

    def recover(self) -> None:
        """Finish what a dead worker in this seat had begun, before others wait for it."""
        self._counters.enter(counters.STARTING)
        self._counters.put(counters.HANDLED, 0)
        self._counters.put(counters.AT_STAGE, 0)
        for producer in self._producers:
            producer.recover()
        self._consumer.recover()
        self._emitter.resume(self._last.row)
        if not self._emitter.is_replay:
            self._counters.put(counters.REACHED, 0)

    def open(self) -> None:
        """Load the stages' functions and set them up; raises `StageError`."""
        host = self.host
        make_main()
        for place, (each, stage) in enumerate(zip(self._hosts, self._chain, strict=True)):
            self._counters.put(counters.AT_STAGE, place)
            try:
                fn = load_function(self._spec.functions[stage])
            except Exception as error:
                raise each.failure("could not load the stage's function", error) from error
            each.open(fn)
        self._counters.put(counters.AT_STAGE, 0)
        try:
            self._wear.check(host.stateful)
        except OptionError as error:
            raise host.failure("cannot keep its limits", error) from error
        self._kernel = join(host, self._followers, self._emitter, self._gate)
        self._has_snapshot = host.has_snapshot
        self._intake, self._backlog = self._make_intake()
        if self._backlog is not None and self._backlog.state is not None:
            host.restore(self._backlog.state)
        self._counters.put(counters.STATEFUL, host.stateful)
        self._counters.enter(counters.BUSY)

    def _make_intake(self) -> tuple[Intake, Backlog | None]:
        if not (self._options.ordered or self._has_snapshot):
            return Direct(self._consumer, self._counters), None
        store, name = Store(self._spec.stores, self._counters.seat), self._options.name
        routes = gaps = None
        if self._options.ordered:
            routes, gaps = self._spec.routes.into[name], self._spec.gap_pipe(name)
        backlog = Backlog(self._consumer, self._counters, store, routes, gaps)
        return backlog, backlog

    def work(self) -> None:
        """Handle frames to the end of input, then finish; raises `StageError`.

        Returns before that when this process is to make way for a new one.
        """
        intake = self._intake
        while not intake.ended:
            if work := intake.take():
                self._handle(work)
                used_up = self._wear.add(work.header.items)
                self._counters.put(counters.HANDLED, self._wear.items)
                if used_up:
                    self._commit_rest()
                    self._counters.enter(counters.RECYCLING)
                    return
            elif not intake.ended:
                self._commit_rest()
                self._wait()
        self._commit_rest()
        if not self._counters.is_committed(END):
            now, seat = time.perf_counter_ns(), self._counters.seat
            self._counters.put(counters.FRAME, END)
            self._emitter.begin(Tag(now, now, FINAL + seat, 0, 0), END)
            self._kernel.finish()
            self._add_up(None, now)
            self._commit(END)
        self._counters.enter(counters.FINISHED)
        self._counters.put(counters.DONE, 1)

    def _wait(self) -> None:
        began = self._counters.enter(counters.IDLE)
        self._intake.wait()
        self._account.idle_ns += self._counters.enter(counters.BUSY) - began

    def _handle(self, work: Work) -> None:
        taken = time.perf_counter_ns()
        self._counters.begin(work.id, work.header.tag)
        careful = self._caution.frame == work.id
        self._apply(work, taken, careful)  # on return its arrays are gone, their slot free
        self._consumer.report_service(int(self._account.service_ns))
        self._intake.done()
        if self._backlog is None or careful or self._is_due(self._backlog):
            self._save_and_commit()

    def _apply(self, work: Work, taken: int, careful: bool) -> None:
        kernel, tag, items = self._kernel, work.header.tag, self._load(work)
        if careful and items:
            self._apply_carefully(work, items, taken)
            return
        for follower in self._followers:
            follower.begin(work.header, self._watch)
        self._emitter.begin(tag, work.id)
        kernel.position = lambda index: describe_position(tag, index)
        self._noting.first = 0
        kernel.run(items, self._watch)
        self._add_up(work.header, taken)

    def _apply_carefully(self, work: Work, items: Sequence[Any], taken: int) -> None:
        """Handle a frame that a worker died on: item by item, each counted as soon as it is done.

        With snapshots that could take long; there only what is given up is counted at once. It must
        be, before anything later goes out: nobody could tell how much of that was still its own.
        """
        kernel, tag = self._kernel, work.header.tag
        for index in range(self._account.settled, len(items)):
            last = index + 1 == len(items)
            part = tag if self._is_tracked else part_of(tag, index, 1)
            self._emitter.begin(part, work.id, index)
            kernel.position = _always(describe_position(tag, index))
            death = self._caution.condemned.get(index)
            if death is not None:
                error, attempts = self._blame(death), self._options.max_crashes
                kernel.refuse(items[index], error, attempts, last)
            else:
                self._noting.first = index
                for follower in self._followers:
                    follower.begin(work.header, self._noting)
                kernel.run(items[index : index + 1], self._noting, last)
            self._add_up(work.header, taken)
            if not last and (death is not None or not self._has_snapshot):
                self._settle(index + 1)

    def _blame(self, death: Death) -> WorkerDied:
        what = describe_crashes(self._options.max_crashes)
        message = f"{what} (worker {self._index}; the last time: {death.how})"
        name, index = self._options.name, self._index
        return WorkerDied(message, name, index, death.exitcode, remote_traceback=death.trace)

    # Counting.

    def _add_up(self, header: Header | None, taken: int) -> None:
        paused_ns = self._gate.take_paused_ns() if self._gate is not None else 0
        self._account.blocked_ns += self._emitter.waited_ns - paused_ns
        self._emitter.waited_ns = 0
        self._account.add(self._kernel, header, taken)

    def _is_due(self, backlog: Backlog) -> bool:
        """Whether to count what was handled now, rather than with the state after later frames."""
        if not self._has_snapshot or self._is_tracked:
            return True
        now, frames = time.perf_counter_ns(), backlog.uncounted_frames
        return self._pace.is_due(now, frames, backlog.held_bytes)

    def _commit_rest(self) -> None:
        """Before waiting, and at the end, nothing stays uncounted."""
        if self._intake.has_uncounted:
            self._save_and_commit()

    def _settle(self, items: int) -> None:
        """Count so many items of the frame in hand."""
        self._save_state()
        counted = self._counters.committed if self._backlog is None else self._backlog.reached
        self._commit(counted, items)

    def _save_and_commit(self) -> None:
        self._save_state()
        self._commit(self._intake.reached)

    def _save_state(self) -> None:
        if self._has_snapshot and self._backlog is not None:
            began = time.perf_counter_ns()
            self._backlog.keep_state(self.host.snapshot())
            self._pace.took(began, time.perf_counter_ns())

    def _commit(self, work: int, settled: int = 0) -> None:
        """Make it all count with one store: up to the frame `work`, and some items after that."""
        self._intake.prepare()
        self._account.commit(work, settled, self._led)
        if not settled and (self._backlog is None or not self._emitter.is_replay):
            self._counters.put(counters.REACHED, 0)  # all that is out is counted
        self._intake.counted(settled)

    def _load(self, work: Work) -> Sequence[Any]:
        try:
            return work.load()
        except Exception as error:
            what = f"could not unpickle {describe_frame(work.header.tag)}"
            raise self.host.failure(what, error, describe_frame(work.header.tag)) from error


def _edges(spec: RunSpec, stage: int, seat: int) -> Iterator[Edge]:
    plan = spec.plan
    source = plan.graph.stages[stage].name
    for name in plan.graph.downstream(source):
        target = plan.place[name]
        producer = Producer(Channel(spec.channels[target]), plan.producers_of(target).index(seat))
        to = plan.graph.stages[target]
        yield Edge(producer, to.drop_on_full, spec.order_of(source, name), to.max_items)
    if spec.results is not None and seat in plan.terminal_seats:
        producer = Producer(Channel(spec.results), plan.terminal_seats.index(seat))
        yield Edge(producer, False, spec.order_of(source, CALLER))


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
        stopping.heed()
        nesting.enter(spec.level)
        listen(spec.last_words, seat)
        reporter = Reporter(spec.reports, seat)
        worker = Worker(spec, seat, caution, reporter)
        disown(worker.words(), spec.reports, stopping.HANDLERS)
        try:
            worker.recover()
            worker.open()
            worker.work()
            worker.host.close()
            stopping.go_on()  # beyond here `Stopped` is not caught
        except Exception as error:
            reporter.error(error if isinstance(error, StageError) else worker.failure(error))
            while True:
                signal.pause()
    except stopping.Stopped:
        if worker is not None:
            with contextlib.suppress(Exception):
                worker.host.close()
