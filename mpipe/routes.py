"""The ways by which items reach a stage, numbered in the order in which an ordered stage sees them.

A *route* is a path through the graph from the caller to a stage. Items of one source item reach an
ordered stage in the order of its incoming edges, and by each edge in the order of the routes to the
stage before it. So the routes into a stage are numbered edge by edge: those over its first edge,
then those over its second, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import GraphError
from .graph import Graph

CALLER = ""
"""Name of the caller as the target of the terminal stages' outputs; no stage can have it."""

MAX_ROUTES = 1024
MAX_HOPS = 160
"""Most stages in a row before one that is ordered: their tags must fit a pipe's atomic write."""


class Routes(NamedTuple):
    """What must be known of a graph to keep source order in it; names are those of stages."""

    ordered: tuple[str, ...]
    """Who sees its input in source order: stages, or `CALLER`."""
    into: Mapping[str, int]
    """Number of routes into each stage, and to `CALLER`."""
    first: Mapping[tuple[str, str], int]
    """Per edge, the number at its target of the first route that comes over it."""
    onward: Mapping[str, tuple[tuple[str, int], ...]]
    """Per stage, who that is ordered is reached from it, and by how much a route's number grows."""

    def is_tracked(self, stage: str) -> bool:
        """Whether the frames that go to `stage` must tell their place in source order."""
        return bool(self.onward[stage])

    @property
    def one_by_one(self) -> bool:
        """Whether a source's frames must be of one item, because routes meet before an order."""
        return any(self.into[name] > 1 for name in self.ordered)


def find_routes(graph: Graph, ordered_results: bool) -> Routes:
    """The routes of a valid graph; raises `GraphError` when an ordered stage has too many."""
    stages = graph.topological()
    ordered = [stage.name for stage in stages if stage.ordered]
    ordered += [CALLER] if ordered_results else []
    into: dict[str, int] = {}
    hops: dict[str, int] = {}
    first: dict[tuple[str, str], int] = {}
    feeding = {stage.name: graph.upstream(stage.name) for stage in stages}
    feeding[CALLER] = graph.terminals
    for name, sources in feeding.items():
        total = 0
        for source in sources:
            first[source, name] = total
            total += into[source]
        into[name] = total if sources else 1
        hops[name] = 1 + max((hops[source] for source in sources), default=0)
        if name in ordered:
            _check(name, into[name], hops[name])
    onward: dict[str, tuple[tuple[str, int], ...]] = {}
    for name in reversed(feeding):
        reached = [(name, 0)] if name in ordered else []
        for target in feeding:
            if (name, target) in first:
                shift = first[name, target]
                reached += [(end, shift + more) for end, more in onward[target]]
        onward[name] = tuple(reached)
    return Routes(tuple(ordered), into, first, onward)


def _check(name: str, routes: int, hops: int) -> None:
    who = "the results" if name == CALLER else f"ordered stage {name!r}"
    if routes > MAX_ROUTES:
        raise GraphError(f"{who} can be reached by {routes:,} routes, of at most {MAX_ROUTES:,}")
    if hops > MAX_HOPS:
        raise GraphError(f"{who}: there are {hops} stages in a row before it, at most {MAX_HOPS}")
