"""What the processes of a run are told: plain values, inherited descriptors, opaque functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..plan import Plan
from ..routes import MAX_HOPS, Routes
from ..transport.channel import ChannelFds
from ..transport.gaps import GapPipe
from ..transport.gate import GateFds
from ..transport.pipe import PipeFds
from .ordering import EdgeOrder


class RunSpec(NamedTuple):
    """One run. The plan's stages carry no functions: `functions[i]` is stage i's, pickled.

    `channels[i]` stands in front of stage i, if that has processes of its own; `results` and
    `dead_letters` in front of the caller; `gates[i]` is the gate of stage i if that has a circuit
    breaker.
    `gaps` has a pipe for each that sees source order, by its name in `routes`; `stores` is the file
    of the seats' stores.
    Workers tell the coordinator of errors through `reports`, which it reads from `reports_in`, and
    where they crashed through the file `last_words`; they may have `max_descriptors` open, and have
    `environment` besides the caller's.
    """

    plan: Plan
    functions: tuple[bytes, ...]
    channels: Mapping[int, ChannelFds]
    results: ChannelFds | None
    dead_letters: ChannelFds | None
    gates: tuple[GateFds | None, ...]
    board: int
    stores: int
    routes: Routes
    gaps: Mapping[str, PipeFds]
    reports: int
    reports_in: int
    last_words: int
    start_method: str
    max_item_bytes: int
    level: int
    max_descriptors: int
    environment: Mapping[str, str]

    def gap_pipe(self, name: str) -> GapPipe:
        """The pipe for marks to `name`, who sees source order."""
        return GapPipe(self.gaps[name], min(len(self.channels) + 1, MAX_HOPS))

    def order_of(self, source: str, target: str) -> EdgeOrder | None:
        """How a connection keeps source order; None where nobody needs it."""
        if not self.routes.is_tracked(target):
            return None
        marks = [(self.gap_pipe(name), more) for name, more in self.routes.onward[target]]
        return EdgeOrder(self.routes.first.get((source, target), 0), marks)

    def channel_descriptors(self) -> tuple[int, ...]:
        """Those that hold what is on its way, and the counters."""
        parts = [*self.channels.values(), self.results, self.dead_letters, *self.gates]
        fds = [fd for part in parts if part is not None for fd in part.all()]
        marks = [fd for pipe in self.gaps.values() for fd in pipe.all()]
        return (*fds, *marks, self.board, self.stores)

    def descriptors(self) -> tuple[int, ...]:
        """All that a worker inherits."""
        return (*self.channel_descriptors(), self.reports, self.last_words)
