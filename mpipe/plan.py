"""From the user's graph to what an engine runs: pools of workers and the channels between them.

Pure: a graph and a number of cores in, a plan out. A stage that says `workers=k` has a pool of its
own of k workers, and one that is ordered has a single worker.

Stages that say nothing of how they are to run form *chains*: the same process applies the function
of one to what the one before gave, and nothing is sent in between. All but the last are maps: what
a filter lets through of many items, or a flat stage makes of one, may be work for more than the one
worker that has it in hand. The pools of chains, and of the other stages that leave `workers` open,
have twice as many workers as there are cores, shared evenly among the stages; but none has more
than there are cores, or less than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .graph import Graph
from .stage import Stage, StageSpec

if TYPE_CHECKING:
    from .options import Event


_PER_CORE = 2
"""Workers for each core. Which stage is busy is not known before; those of the others cost little
while they wait."""


_LONGEST = 8
"""Most stages of a chain. Each takes some of the interpreter's stack."""


class Plan(NamedTuple):
    """A graph whose every stage has a number of workers; `graph.stages` are in topological order.

    A *seat* is a place for one worker of a stage. Seats are numbered through the plan: those of the
    first stage, then those of the second, and so on; `first_seat[i]` is the number of the first
    seat of stage `i`. `heads[i]` is the first stage of the chain that stage `i` is in, often `i`
    itself. One process sits in a seat of each stage of a chain, and is known by that of the head.
    """

    graph: Graph
    workers: tuple[int, ...]
    cores: int
    heads: tuple[int, ...]

    @property
    def first_seat(self) -> tuple[int, ...]:
        starts = [0]
        for count in self.workers:
            starts.append(starts[-1] + count)
        return tuple(starts[:-1])

    @property
    def leaders(self) -> tuple[int, ...]:
        """For each seat, that by which its process is known."""
        first = self.first_seat
        pools = zip(self.heads, self.workers, strict=True)
        return tuple(first[head] + index for head, count in pools for index in range(count))

    @property
    def pools(self) -> tuple[int, ...]:
        """Stages with processes, and a channel, of their own: those that are no other's to run."""
        return tuple(i for i, head in enumerate(self.heads) if i == head)

    def chain(self, head: int) -> tuple[int, ...]:
        """The stages that the processes of stage `head` run, in order."""
        return tuple(i for i, other in enumerate(self.heads) if other == head)

    @property
    def processes(self) -> int:
        """Number of worker processes."""
        return sum(self.workers[stage] for stage in self.pools)

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
    graph = graph._replace(stages=graph.topological())
    stages, heads = graph.stages, _heads(graph)
    open_stages = [i for i, s in enumerate(stages) if s.workers is None and not s.ordered]
    share, rest = divmod(_PER_CORE * cores, len(open_stages)) if open_stages else (0, 0)
    shares = [0] * len(stages)
    for place, i in enumerate(open_stages):
        shares[heads[i]] += max(1, share + (1 if place < rest else 0))
    workers = tuple(
        stage.workers or min(cores, shares[head]) or 1
        for stage, head in zip(stages, heads, strict=True)
    )
    return Plan(graph, workers, cores, heads)


def _heads(graph: Graph) -> tuple[int, ...]:
    """For each stage the first of its chain."""
    heads: list[int] = []  # of the stages so far
    place = {stage.name: i for i, stage in enumerate(graph.stages)}
    for i, stage in enumerate(graph.stages):
        head, feeding = i, graph.upstream(stage.name)
        if len(feeding) == 1 and graph.downstream(feeding[0]) == (stage.name,):
            before = place[feeding[0]]
            is_short = heads.count(heads[before]) < _LONGEST
            if is_short and _may_follow(graph.stages[before], stage):
                head = heads[before]
        heads.append(head)
    return tuple(heads)


def _may_follow(before: StageSpec, stage: StageSpec) -> bool:
    """Whether the processes of one stage may go on with another."""
    is_alike = before.max_crashes == stage.max_crashes
    return before.kind == "map" and is_alike and _is_plain(before) and _is_plain(stage)


def _is_plain(stage: StageSpec) -> bool:
    """Whether it is a function that says nothing of how it is to run."""
    plain = StageSpec(stage.name, stage.fn, stage.kind, max_crashes=stage.max_crashes)
    return stage == plain and not isinstance(stage.fn, Stage)


class RunOptions(NamedTuple):
    """Checked options of `Pipeline.start`, which documents them."""

    results: bool = False
    ordered_results: bool = False
    deadline: float | None = None
    cancel: Event | None = None
    start_method: str = "fork"
    max_item_bytes: int = 1 << 30
