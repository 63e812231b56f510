"""One stage of an inline run: applies its function to items, then hands what comes out downstream.

Items cross every connection as pickled copies, as they do between processes.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, NamedTuple

from ..errors import StageError
from ..policy import histogram
from ..routes import CALLER, Routes
from ..runtime.emitter import encode_letter
from ..runtime.host import Host
from ..runtime.kernel import Kernel
from ..stage import StageSpec
from ..stats import DeadLetter, WorkerStats
from ..transport.frame import Payload, encode_all
from .base import Halt
from .gate import InlineGate
from .report import StageSums, Times

logger = logging.getLogger("mpipe")


class Origin(NamedTuple):
    """The source item that items derive from; `number` is None for what `finish` emits."""

    number: int | None
    exact: bool
    born_ns: int
    route: int = 0
    """Number of the way from the source, see `mpipe.routes`."""

    def __str__(self) -> str:
        if self.number is None:
            return "an item from finish()"
        source = f"source item {self.number}"
        return source if self.exact else f"an item from {source}"


@dataclass
class Shared:
    """What the lanes of one run have in common; `check` raises `Halt` if the run is to stop."""

    check: Callable[[], None]
    max_item_bytes: int
    routes: Routes
    outputs: deque[Any] = field(default_factory=deque)
    letters: deque[DeadLetter] = field(default_factory=deque)
    crossed: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    """Items that went over each connection, from the caller if its source is None."""
    ages: Times = field(default_factory=Times)
    """End-to-end times."""
    unordered: list[tuple[int, list[Any]]] = field(default_factory=list)
    """Where results are ordered: those of the source item in hand, with the route of each."""

    def keep(self, route: int, outputs: list[Any]) -> None:
        """Take results, which came by a route."""
        if self.routes.is_tracked(CALLER):
            self.unordered.append((route, outputs))
        else:
            self.outputs.extend(outputs)

    def settle(self) -> None:
        """The source item in hand is done: put its results in the order of their routes."""
        for _, outputs in sorted(self.unordered, key=itemgetter(0)):
            self.outputs.extend(outputs)
        self.unordered.clear()


class Lane:
    """One stage: its host and kernel, its counters; the kernel's `Outlet` and `Rejects`."""

    flush_items = 1

    def __init__(self, spec: StageSpec, shared: Shared) -> None:
        self.spec = spec
        self.targets: list[Lane] = []
        self.keeps_outputs: bool = False
        self.waited_ns = 0
        self._gate = InlineGate(spec, spec.breaker, shared.check, self) if spec.breaker else None
        self._host = Host(spec, 0)
        self._kernel: Kernel  # once it is open
        self._shared = shared
        self._sums = StageSums(spec.name)
        self._origin = Origin(None, False, 0)
        self._held: list[tuple[list[Any], Origin]] = []

    def open(self) -> None:
        """Set the stage up; raises `StageError`."""
        self._host.open(self.spec.fn)
        self._kernel = Kernel(self._host, self, self, self._gate)

    def close(self) -> None:
        """Tear the stage down; raises `StageError`."""
        self._host.close()

    def receive(self, payloads: list[Payload], origin: Origin, source: str | None) -> None:
        """Handle items and all that comes of them; raises `Halt` if that ends the run.

        An ordered stage keeps them until all of the source item is there, see `settle`.
        """
        items = self._load(payloads, "input")
        self._shared.crossed[source, self.spec.name] += len(items)
        self._sums.received += len(items)
        if self.spec.ordered:
            self._held.append((items, origin))
        else:
            self._handle(items, origin)

    def settle(self) -> None:
        """The source item in hand is done with all stages before this one."""
        held = sorted(self._held, key=lambda part: part[1].route)
        self._held.clear()
        for items, origin in held:
            self._handle(items, origin)

    def _handle(self, items: list[Any], origin: Origin) -> None:
        kernel = self._kernel
        self._origin = origin
        kernel.position = lambda index: str(origin)
        try:
            kernel.run(items, self)
        except StageError as error:
            raise Halt(error) from None
        finally:
            self._count()

    def _load(self, payloads: list[Payload], what: str) -> list[Any]:
        try:
            return _copies(payloads)
        except Exception as error:
            failure = self._host.failure(f"could not unpickle its {what}", error)
            failure.__cause__ = error
            raise Halt(failure) from None

    def _count(self) -> None:
        """Add up what became of the items handled last; those of a run cut short stay in flight."""
        sums, tally, durations = self._sums, self._kernel.tally, self._kernel.durations
        sums.processed += tally.processed
        sums.failed += tally.failed
        sums.dead_lettered += tally.dead_lettered
        sums.retried += tally.retried
        _record(sums.service, durations)
        _record(sums.wait, [0] * len(durations))
        if not self.targets and durations:
            age = time.perf_counter_ns() - self._origin.born_ns
            _record(self._shared.ages, [age] * len(durations))

    def refuse(self) -> None:
        """Count a pushed item that cannot travel as received and failed."""
        self._sums.received += 1
        self._sums.failed += 1
        self._sums.dead_lettered += self.spec.on_error == "dead_letter"

    def finish(self) -> None:
        """Emit what the stage kept, then tear it down."""
        self._origin = Origin(None, False, time.perf_counter_ns())
        try:
            self._kernel.finish()
            self.close()
        except StageError as error:
            raise Halt(error) from None

    def summary(self, worker: WorkerStats, elapsed: float) -> StageSums:
        """The counters as they are now; what is not spent in the function counts as idle."""
        busy_ns = self._sums.service.total_ns
        idle_ns = int(elapsed * 1e9) - busy_ns
        sums = replace(self._sums, busy_ns=busy_ns, idle_ns=idle_ns, workers=(worker,))
        if self._gate is not None:
            sums.breaker = self._gate.stats()
            if self._gate.is_pausing:
                sums.workers = (replace(worker, state="paused"),)
        return sums

    # As the kernel's watch and outlet.

    def enter(self, index: int) -> None:
        self._shared.check()

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def emit(self, outputs: list[Any], items: range, last: bool) -> None:
        self._shared.check()
        if not outputs:
            return
        began = time.perf_counter_ns()
        travels = self.targets or self.keeps_outputs
        payloads = encode_all(outputs, self._shared.max_item_bytes) if travels else []
        self._sums.emitted += len(outputs)
        origin = self._origin
        exact = origin.exact and self.spec.kind == "map"
        name, routes = self.spec.name, self._shared.routes
        for target in self.targets:
            route = origin.route + routes.first[name, target.spec.name]
            target.receive(payloads, origin._replace(exact=exact, route=route), name)
        if self.keeps_outputs:
            route = origin.route + routes.first[name, CALLER]
            self._shared.keep(route, self._load(payloads, "output"))
        self.waited_ns += time.perf_counter_ns() - began

    def dead_letter(self, letter: DeadLetter, index: int) -> None:
        payload = encode_letter(letter, self._shared.max_item_bytes)
        self._shared.letters += _copies([payload])

    def abandon(self) -> int:
        return 0

    def log(self, message: str) -> None:
        logger.warning("%s", message)


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
