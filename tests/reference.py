"""What a graph of pure functions must compute, and what must hold of every run's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpipe import Pipeline, Stats
from mpipe.stage import StageSpec


def interpret(
    pipeline: Pipeline, pushed: Mapping[str, Iterable[Any]], failures: Counter[Any] | None = None
) -> Counter[Any]:
    """The multiset of the terminal stages' outputs, for items pushed to each source.

    Adds to `failures` the items on which a function raises.
    """
    graph = pipeline.graph
    inputs = {stage.name: list(pushed.get(stage.name, ())) for stage in graph.stages}
    results: Counter[Any] = Counter()
    for stage in graph.topological():
        outputs = [out for item in inputs[stage.name] for out in _apply(stage, item, failures)]
        for target in graph.downstream(stage.name):
            inputs[target] += outputs
        if not graph.downstream(stage.name):
            results.update(outputs)
    return results


def _apply(stage: StageSpec, item: Any, failures: Counter[Any] | None = None) -> Sequence[Any]:
    """What one stage makes of one item."""
    if stage.kind == "filter":
        return [item] if stage.fn(item) else []
    if stage.kind == "map":
        return [stage.fn(item)]
    outputs: list[Any] = []
    try:
        outputs.extend(stage.fn(item) or ())  # which keeps what came before an exception
    except ValueError:
        if failures is not None:
            failures[item] += 1
    return outputs


CUT_OFF = "failed", "cancelled"


def assert_conserved(stats: Stats, pipeline: Pipeline) -> None:
    """Every item is accounted for, exactly, on every stage and edge of a run that is quiescent.

    Of one that was cut off, outputs may be out of a frame that was not counted yet.
    """
    graph = pipeline.graph
    assert list(stats.stages) == [stage.name for stage in graph.topological()]
    assert sorted((edge.source or "", edge.target) for edge in stats.edges) == sorted(
        [("", name) for name in graph.sources] + list(graph.edges)
    )
    for edge in stats.edges:
        assert edge.emitted == edge.received + edge.dropped, edge
        if edge.source is not None:
            uncounted = edge.emitted - stats.stages[edge.source].emitted
            assert uncounted == 0 or (uncounted > 0 and stats.state in CUT_OFF), edge
    for stage in stats.stages.values():
        into = [edge for edge in stats.edges if edge.target == stage.name]
        assert stage.received == stage.processed + stage.failed + stage.in_flight, stage
        assert stage.received == sum(edge.received for edge in into), stage
        assert stage.dropped == sum(edge.dropped for edge in into), stage
        assert stage.dead_lettered <= stage.failed, stage


def assert_drained(stats: Stats, pipeline: Pipeline) -> None:
    """Nothing is in flight after a drain, and every item is accounted for."""
    assert stats.state == "drained"
    assert_conserved(stats, pipeline)
    for stage in stats.stages.values():
        assert (stage.in_flight, stage.queued) == (0, 0), stage
        assert stage.latency.count == stage.wait.count <= stage.received, stage
        assert {worker.state for worker in stage.workers} == {"finished"}, stage


def in_order(pipeline: Pipeline, pushed: Iterable[Any]) -> list[Any]:
    """The terminal stages' outputs in source order, for items pushed to all sources."""
    graph = pipeline.graph
    results: list[Any] = []
    for item in pushed:
        outputs: dict[str, list[Any]] = {}
        for stage in graph.topological():
            before = graph.upstream(stage.name)
            inputs = [out for name in before for out in outputs[name]] if before else [item]
            outputs[stage.name] = [out for value in inputs for out in _apply(stage, value)]
        ends = [stage.name for stage in graph.topological() if stage.name in graph.terminals]
        results += [out for name in ends for out in outputs[name]]
    return results
