"""The engine on OS processes, as the caller sees it: it feeds the first channels, reads the last.

Every wait of the caller also watches its coordinator, so the run's failure, the coordinator's death
and a cancel from another thread end it. Locks order the caller's own threads only.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from ..errors import Closed, Full, ItemError, Timeout
from ..plan import Plan, RunOptions
from ..routes import CALLER
from ..runtime.spec import RunSpec
from ..stats import DeadLetter, Stats
from ..transport import counters
from ..transport.channel import Channel
from ..transport.counters import Board
from ..transport.descriptors import require_spare
from ..transport.frame import Unsendable
from ..transport.gate import SharedGate
from .arrange import Arrangement
from .base import NO_MORE, Batches, Deadline, watch
from .feeder import Feeder
from .inbox import Inbox, Unreadable
from .launch import Launched, launch, not_started
from .link import Link, log
from .reader import Patience, Reader
from .refusal import refuse
from .snapshot import snapshot
from .source import Progress, Source, Wait
from .turns import Turns, check_not_busy, is_busy

_SLICE_S = 0.1
"""Longest single wait, in seconds; the state is looked at in between."""

_ALL_AT_ONCE_S = 0.01
"""How long a push waits for room for a whole frame while there is room for a few items."""

_PENDING_S, _NOT_PENDING_S = 0.005, 0.02
"""How often to see to a part-filled frame of a slow source, if there is one, if not; in seconds."""

_NAP_S = 0.02
"""How long results may pile up while the source rests, in seconds."""


class ProcessesEngine:
    """Runs a plan on worker processes; satisfies `base.Engine`."""

    def __init__(self, plan: Plan, options: RunOptions) -> None:
        self._plan = plan
        self._max_item_bytes = options.max_item_bytes
        self._began = time.perf_counter()
        self._pushing, self._looking = Turns(), Turns()
        try:
            self._launched = launched = launch(plan, options)
            try:
                self._link = Link(launched.coordinator)
                self._open(launched.spec)
            except BaseException:
                launched.release()
                raise
        except OSError as error:
            raise not_started(error) from error
        lost = partial(_in_flight, self._link, plan, self._board, self._channels)
        self._finalizer = weakref.finalize(self, _abandon, launched, lost)
        self._closed = self._told_closed = self._warned = False
        self._final: Stats | None = None
        self._unwatch = watch(options, self._stop)

    def _open(self, spec: RunSpec) -> None:
        """Map the caller's part of the shared memory."""
        self._board = Board(spec.board, self._plan.leaders, len(self._plan.graph.stages))
        self._channels = {stage: Channel(fds) for stage, fds in spec.channels.items()}
        self._gates = {i: SharedGate(fds) for i, fds in enumerate(spec.gates) if fds is not None}
        self._arrangement: Arrangement | None = None
        if CALLER in spec.routes.ordered:
            self._arrangement = Arrangement(spec.routes.into[CALLER], spec.gap_pipe(CALLER))
        self._source = Source(spec, self._channels, list(self._orders(spec)))
        turns = self._pushing, self._looking, self._link.turns
        self._reader = Reader(spec, self._link, turns)
        self._turns = *turns, self._reader.turns
        ends = len(self._plan.graph.sources) + 2  # results and dead letters
        require_spare(2 * ends)  # their payloads are mapped when there are any

    def _orders(self, spec: RunSpec) -> Iterator[Progress]:
        """How far those are who see source order."""
        for name in spec.routes.ordered:
            if self._arrangement is not None and name == CALLER:
                yield self._arrangement.progress
            else:
                seat = self._plan.first_seat[self._plan.place[name]]
                yield partial(_progress, self._board, seat)

    # Input.

    def push(self, items: Sequence[Any], targets: Sequence[str], timeout: float | None) -> None:
        self._link.check_owner()
        check_not_busy(self._turns, "push")
        deadline, start, lock = Deadline(timeout), 0, self._pushing.lock
        try:
            while start < len(items):
                if not lock.acquire(timeout=deadline.remaining(_SLICE_S)):
                    self._check_open(items, start)
                    if deadline.passed:
                        raise Full("another thread is pushing", tuple(items[start:]))
                    continue
                with lock:
                    lock.release()  # see Turns
                    start += self._push_frame(items, start, targets, deadline)
        except BaseException:
            self._pushing.leave()
            raise
        finally:
            if not self._source.is_whole or self._closed != self._told_closed:
                self._settle(0.0)

    def _push_frame(
        self, items: Sequence[Any], start: int, targets: Sequence[str], deadline: Deadline
    ) -> int:
        """Send some items from `start` on; returns how many are settled."""
        part = items[start : start + self._source.frame_items(targets)]
        gathering, patience = Deadline(_ALL_AT_ONCE_S), None
        while True:
            self._check_open(items, start)
            all_at_once = not (gathering.passed or deadline.passed)
            try:
                sent = self._source.send(part, targets, self._max_item_bytes, all_at_once)
            except Unsendable as bad:
                if bad.index:
                    part = part[: bad.index]
                    continue
                if self._source.can_mark:
                    self._refuse(part[0], f"item {start} of {len(items)}", targets, bad.error)
                    return 1
                sent = Wait([], None)
            if isinstance(sent, int):
                return sent
            if deadline.passed:
                why = self._reader.unread()
                raise Full(
                    _full(targets, len(items) - start, len(items), why), tuple(items[start:])
                )
            self._link.wait(sent.fds, deadline.remaining(sent.seconds or _SLICE_S))
            self._reader.collect_letters()
            patience = patience or Patience(self._reader, self._reader.unread)
            self._look_at_unread(patience)

    def _look_at_unread(self, patience: Patience) -> None:
        """Dead letters fail the run; for results a push may wait: somebody may begin to read."""
        unread = patience.lost()
        if unread and self._reader.unread_letters():
            patience.enforce()
        elif unread and not self._warned:
            self._warned = True
            log.warning("push waits for room, because nobody reads the run's %s", unread)

    def _check_open(self, items: Sequence[Any], start: int) -> None:
        self._link.check()
        if self._closed:
            left = tuple(items[start:])
            which = f"; {len(left)} of {len(items)} items were not accepted" if start else ""
            raise Closed(NO_MORE + which, left)

    def _refuse(self, item: Any, which: str, targets: Sequence[str], error: ItemError) -> None:
        indices = [self._plan.place[name] for name in targets]
        stages = [self._plan.graph.stages[index] for index in indices]
        position = f"source item {self._source.pushed}"
        letters = refuse(stages, item, which, position, error)
        for index, letter in zip(indices, letters, strict=True):
            self._board.refuse(index, dead_lettered=letter is not None)
        self._reader.add_letters([letter for letter in letters if letter is not None])
        self._source.skip()

    def close(self) -> None:
        self._link.check_owner()
        self._closed = True  # pushes of other threads, and what a signal came amid of, end by that
        while not self._told_closed and not self._pushing.mine() and self._link.outcome is None:
            self._settle(_SLICE_S)

    def _settle(self, seconds: float) -> None:
        """Finish what an exception interrupted, and tell the coordinator if the source is closed.

        Unless other threads are pushing all that time: they finish, too, what was interrupted.
        """
        lock = self._pushing.lock
        try:
            if lock.acquire(timeout=seconds):
                with lock:
                    lock.release()  # see Turns
                    self._source.mend()
                    if self._closed and not self._told_closed:
                        self._link.close_source()
                        self._told_closed = True
        finally:
            self._pushing.leave()

    # Output.

    def results(self) -> Iterator[Any]:
        return chain.from_iterable(self._results())

    def _results(self) -> Batches:
        self._link.check_owner()
        for frame in self._reader.frames(lambda inbox: self._link.wait([inbox.fd], _SLICE_S)):
            if frame is not None:
                yield frame.items

    def stream(self, source: Iterable[Any], ordered: bool) -> Batches:
        self._finalizer.detach()  # who drops the outputs wants no more of them
        self._finalizer = weakref.finalize(self, _abandon, self._launched)
        arrangement = self._arrangement if ordered else None
        more_fds = [arrangement.fd] if arrangement else []
        targets = self._plan.graph.sources
        feeder = Feeder(source, self._source, targets, self.push, self.close)

        def check_source() -> None:
            if feeder.error is not None:
                self._link.raise_failure()
                raise feeder.error

        def wait(inbox: Inbox) -> None:
            check_source()
            if feeder.resting and not inbox.was_full:  # nobody waits: read several frames at once
                self._link.wait([], _NAP_S)
                return
            try:
                seconds = _PENDING_S if feeder.nudge() else _NOT_PENDING_S
                self._link.wait([inbox.fd, *more_fds], seconds)
            except (OSError, ValueError):  # the run was ended meanwhile, and closed what this needs
                self._link.raise_failure()
                raise

        try:
            for frame in self._reader.frames(wait):
                if arrangement is not None:
                    if frame is not None:
                        arrangement.add(frame.header, list(frame.items))
                    self._take_marks(arrangement)
                    yield from arrangement.ready()
                elif frame is not None:
                    yield frame.items
            if arrangement is not None:
                self._take_marks(arrangement)
                yield from arrangement.ready(at_end=True)
            check_source()
            self.drain(None)
        finally:
            if self.mine:
                feeder.stop()
                self.cancel()

    def _take_marks(self, arrangement: Arrangement) -> None:
        with self._reader.turns.lock:
            if not self._launched.released:  # by another thread, which has ended the run
                arrangement.take_marks()

    def dead_letters(self) -> Iterator[DeadLetter]:
        self._link.check_owner()
        return self._reader.letters()

    # Health.

    def stats(self) -> Stats:
        if self.mine and self._final is None:
            self._link.pump()
        with self._looking.lock if self.mine else contextlib.nullcontext():
            if self._final is not None:
                return self._final
            return self._snapshot(self._link.outcome or "running", self._link.coordinator_pid)

    def _snapshot(self, state: str, coordinator: int = 0) -> Stats:
        elapsed = (self._link.ended_at or time.perf_counter()) - self._began
        return snapshot(
            self._plan, self._board, self._channels, state, elapsed, coordinator, self._gates
        )

    # The end.

    def drain(self, timeout: float | None) -> Stats:
        self._link.check_owner()
        check_not_busy(self._turns, "drain")
        self._closed = True  # pushes of other threads end by that
        deadline, patience = Deadline(timeout), Patience(self._reader, self._reader.unread)
        self._link.pump()
        while self._link.outcome is None:
            if not self._told_closed:
                self._settle(deadline.remaining(_SLICE_S))
            else:
                self._link.wait((), deadline.remaining(_SLICE_S))
            with contextlib.suppress(Unreadable):  # which has failed the run
                self._reader.collect_letters()
            patience.enforce()
            if deadline.passed and self._link.outcome is None:
                raise Timeout(f"not drained after {timeout:g} s; the run goes on")
        return self._end()

    def cancel(self) -> None:
        self._stop("cancel() was called")

    def _stop(self, reason: str) -> None:
        if not self.mine:
            return
        self._link.stop(reason)
        if not is_busy(self._turns):  # else what this thread is in the middle of ends by itself
            with contextlib.suppress(Exception):  # what comes next raises the run's failure
                self._end()

    def _end(self) -> Stats:
        """Once the outcome is known: the last numbers, then let go of everything."""
        with self._pushing.lock:
            if self._final is None:
                self._unwatch()
                self._read_rest()
                self._link.leave()
            with self._reader.turns.lock, self._looking.lock:
                self._final = self._final or self._snapshot(self._link.outcome or "failed")
                self._release()
        self._link.raise_failure()
        return self._final

    def _read_rest(self) -> None:
        """What waits in shared memory can be taken after the end."""
        try:
            with self._reader.turns.lock:
                if self._link.outcome == "drained":
                    self._reader.read_rest()
        except Unreadable as error:
            self._link.fail(error)

    def _release(self) -> None:
        if not self._launched.released:
            for channel in self._channels.values():
                channel.close()
            for gate in self._gates.values():
                gate.close()
            self._board.close()
            self._reader.close()
            self._launched.release(keep=self._link.stays)
            self._finalizer.detach()

    @property
    def mine(self) -> bool:
        return self._link.mine


def _progress(board: Board, seat: int) -> tuple[int, int]:
    return board.get(seat, counters.NEXT), board.get(seat, counters.HELD_BYTES)


def _full(targets: Sequence[str], left: int, items: int, unread: str) -> str:
    names = " and ".join(map(repr, targets))
    why = f" (because nobody reads the run's {unread})" if unread else ""
    return f"the buffer of stage {names} is full{why}; {left} of {items} items were not accepted"


def _in_flight(link: Link, plan: Plan, board: Board, channels: Mapping[int, Channel]) -> int:
    """Items that a run which goes on has yet to handle; 0 if it has ended."""
    link.pump()
    if link.outcome is not None:
        return 0
    stages = snapshot(plan, board, channels, "running", 0.0).stages
    return sum(stage.in_flight for stage in stages.values())


def _abandon(launched: Launched, in_flight: Callable[[], int] | None = None) -> None:
    """End a run that nobody holds any more, or because the interpreter ends."""
    if os.getpid() != launched.coordinator.owner:
        return
    lost = 0
    with contextlib.suppress(Exception):  # an end that was interrupted
        lost = in_flight() if in_flight is not None else 0
    launched.release()
    if lost:
        log.warning(_DROPPED, launched.spec.plan.graph.name, lost)


_DROPPED = (
    "pipeline %r: a run was dropped with %d items in flight, which are lost; "
    "drain it, or use it in a with block"
)
