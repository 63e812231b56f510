"""The user's graph as an immutable value: stages, edges, and the rules it must keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .errors import GraphError
from .stage import StageSpec


class Graph(NamedTuple):
    """A named set of stages and directed edges between their names, checked by `validate`."""

    name: str
    stages: tuple[StageSpec, ...]
    edges: tuple[tuple[str, str], ...]

    def upstream(self, stage: str) -> tuple[str, ...]:
        """Names of the stages that feed `stage`, in the order they were connected."""
        return tuple(source for source, target in self.edges if target == stage)

    def downstream(self, stage: str) -> tuple[str, ...]:
        """Names of the stages that `stage` feeds, in the order they were connected."""
        return tuple(target for source, target in self.edges if source == stage)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stages without a predecessor: `push` goes to each of them."""
        targets = {target for _, target in self.edges}
        return tuple(stage.name for stage in self.stages if stage.name not in targets)

    @property
    def terminals(self) -> tuple[str, ...]:
        """Names of the stages without a successor: their outputs are the run's results."""
        fed = {source for source, _ in self.edges}
        return tuple(stage.name for stage in self.stages if stage.name not in fed)

    def without_functions(self) -> Graph:
        """The same graph as plain data, for processes that must not know the user's code."""
        return self._replace(stages=tuple(stage._replace(fn=None) for stage in self.stages))

    def validate(self) -> None:
        """Raise `GraphError` unless this is a non-empty, acyclic graph of known, joined stages."""
        if not self.stages:
            raise GraphError(f"pipeline {self.name!r} has no stages; add one with add_stage")
        names = {stage.name for stage in self.stages}
        for edge in self.edges:
            for name in edge:
                if name not in names:
                    raise GraphError(f"connect{edge!r}: {unknown_stage(name, names)}")
        self.topological()
        connected = {name for edge in self.edges for name in edge}
        isolated = [stage.name for stage in self.stages if stage.name not in connected]
        if isolated and len(self.stages) > 1:
            raise GraphError(
                f"stage {isolated[0]!r} is connected to no other stage; "
                f"connect it or give it a pipeline of its own"
            )

    def topological(self) -> tuple[StageSpec, ...]:
        """The stages, each after all that feed it; raise `GraphError` with the path of a cycle."""
        waiting = {stage.name: len(self.upstream(stage.name)) for stage in self.stages}
        ordered: list[StageSpec] = []
        by_name = {stage.name: stage for stage in self.stages}
        ready = [name for name, count in waiting.items() if count == 0]
        while ready:
            name = ready.pop(0)
            del waiting[name]
            ordered.append(by_name[name])
            for target in self.downstream(name):
                waiting[target] -= 1
                if waiting[target] == 0:
                    ready.append(target)
        if waiting:
            path = " -> ".join(repr(name) for name in self._cycle(set(waiting)))
            raise GraphError(f"the stages form a cycle: {path}; a pipeline must be acyclic")
        return tuple(ordered)

    def _cycle(self, stuck: set[str]) -> list[str]:
        """Walk upstream among `stuck` stages, each fed by another one, until one repeats."""
        path = [min(stuck)]
        while path.count(path[-1]) < 2:
            path.append(next(name for name in self.upstream(path[-1]) if name in stuck))
        return path[path.index(path[-1]) :][::-1]


def unknown_stage(name: str, names: Iterable[str]) -> str:
    """Say that `name` is not a stage, with the nearest valid name or all of them."""
    from difflib import get_close_matches  # not in every start of a run

    valid = sorted(names)
    near = get_close_matches(str(name), valid, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"stages: {', '.join(map(repr, valid))}"
    return f"there is no stage {name!r}; {hint}"
