"""From the user's graph to what an engine runs: pools of workers and the channels between them.

Pure: a graph and a number of cores in, a plan out. The first plan is simple: one pool a stage;
the stages that leave `workers` open have twice as many workers as there are cores, shared evenly,
but none more than there are cores, or less than one; one that is ordered has a single worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .graph import Graph

if TYPE_CHECKING:
    from .options import Event


_PER_CORE = 2
"""Workers for each core. Which stage is busy is not known before; those of the others cost little
while they wait."""


class Plan(NamedTuple):
    """A graph whose every stage has a number of workers; `graph.stages` are in topological order.

    A *seat* is a place for one worker process. Seats are numbered through the plan: those of the
    first stage, then those of the second, and so on; `first_seat[i]` is the number of the first
    seat of stage `i`.
    """

    graph: Graph
    workers: tuple[int, ...]
    cores: int

    @property
    def first_seat(self) -> tuple[int, ...]:
        starts = [0]
        for count in self.workers:
            starts.append(starts[-1] + count)
        return tuple(starts[:-1])

    @property
    def seats(self) -> int:
        """Number of worker processes."""
        return sum(self.workers)

    @property
    def place(self) -> Mapping[str, int]:
        """Each stage's place in `graph.stages`, by name."""
        return {stage.name: i for i, stage in enumerate(self.graph.stages)}

    def seats_of(self, stage: int) -> range:
        """Numbers of the seats of stage `stage`."""
        start = self.first_seat[stage]
        return range(start, start + self.workers[stage])

    def producers_of(self, stage: int) -> tuple[int, ...]:
        """Seats that send to stage `stage`, in the order of its edges."""
        name = self.graph.stages[stage].name
        feeding = [self.place[source] for source in self.graph.upstream(name)]
        return tuple(seat for source in feeding for seat in self.seats_of(source))

    @property
    def terminal_seats(self) -> tuple[int, ...]:
        """Seats whose outputs are the results."""
        ends = [self.place[name] for name in self.graph.terminals]
        return tuple(seat for stage in ends for seat in self.seats_of(stage))

    @property
    def dead_letter_seats(self) -> tuple[int, ...]:
        """Seats that may send dead letters."""
        return tuple(
            seat
            for stage, spec in enumerate(self.graph.stages)
            if spec.on_error == "dead_letter"
            for seat in self.seats_of(stage)
        )

    def stage_of(self, seat: int) -> int:
        """Index of the stage that seat `seat` works for."""
        return max(i for i, start in enumerate(self.first_seat) if start <= seat)


def make_plan(graph: Graph, cores: int) -> Plan:
    """Give every stage of a valid graph its pool; `workers=k` is obeyed to the letter."""
    stages = graph.topological()
    open_stages = [s.name for s in stages if s.workers is None and not s.ordered]
    share, rest = divmod(_PER_CORE * cores, len(open_stages)) if open_stages else (0, 0)
    counts = {
        name: min(cores, max(1, share + (1 if i < rest else 0)))
        for i, name in enumerate(open_stages)
    }
    workers = tuple(stage.workers or counts.get(stage.name, 1) for stage in stages)
    return Plan(graph._replace(stages=stages), workers, cores)


class RunOptions(NamedTuple):
    """Checked options of `Pipeline.start`, which documents them."""

    results: bool = False
    ordered_results: bool = False
    deadline: float | None = None
    cancel: Event | None = None
    start_method: str = "fork"
    max_item_bytes: int = 1 << 30
