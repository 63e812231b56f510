"""Any graph of pure functions gives what a small interpreter gives; every item is counted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from functions import Divides, Shift, Work
from helpers import not_hanging
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from reference import assert_drained, interpret

import mpipe

EXHAUSTIVE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass
class Case:
    pipeline: mpipe.Pipeline
    pushes: list[tuple[str | None, list[int]]]

    @property
    def pushed(self) -> dict[str, list[int]]:
        """The items that each source is given."""
        sources = self.pipeline.graph.sources
        given: dict[str, list[int]] = {name: [] for name in sources}
        for stage, items in self.pushes:
            for name in sources if stage is None else [stage]:
                given[name] += items
        return given


@st.composite
def pipelines(draw: st.DrawFn) -> mpipe.Pipeline:
    """A connected DAG of 1 to 6 stages, as its edges go from lower to higher numbers."""
    count = draw(st.integers(1, 6))
    pipeline = mpipe.Pipeline("random")
    for i in range(count):
        options = {
            "workers": draw(st.integers(1, 3)),
            "buffer_size": draw(st.integers(1, 20)),
        }
        if draw(st.booleans()):
            options = {}  # it may share processes
        salt = draw(st.integers(0, 100))
        kind = draw(st.sampled_from(["flat", "flat", "map", "filter"]))
        if kind == "flat":
            shape = draw(st.sampled_from(["list", "tuple", "generator", "none"]))
            pipeline.add_stage(f"s{i}", Work(salt, shape, draw(st.integers(0, 4))), **options)
        elif kind == "map":
            pipeline.add_map(f"s{i}", Shift(salt), **options)
        else:
            pipeline.add_filter(f"s{i}", Divides(salt), **options)
    for source, target in sorted(draw(edges(count))):
        pipeline.connect(f"s{source}", f"s{target}")
    return pipeline


@st.composite
def edges(draw: st.DrawFn, count: int) -> set[tuple[int, int]]:
    """Any forward edges among `count` stages that leave none of them alone."""
    pairs = [(i, j) for j in range(count) for i in range(j)]
    chosen = draw(st.sets(st.sampled_from(pairs), max_size=8)) if pairs else set()
    for stage in range(count):
        if count > 1 and not any(stage in pair for pair in chosen):
            other = draw(st.integers(0, count - 1).filter(lambda n, stage=stage: n != stage))
            chosen.add((min(stage, other), max(stage, other)))
    return chosen


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A pipeline and 0 to 60 items, some pushed singly, some in batches, some to one source."""
    pipeline = draw(pipelines())
    items = draw(st.lists(st.integers(0, 10_000), max_size=60))
    targets = st.sampled_from([None, None, *pipeline.graph.sources])
    pushes = []
    while items:
        size = draw(st.sampled_from([1, 1, 2, 5, 17]))
        pushes.append((draw(targets), items[:size]))
        items = items[size:]
    return Case(pipeline, pushes)


def check(case: Case, engine: str) -> None:
    """Run a case while a thread of its own reads the results, and compare."""
    not_hanging()
    note(repr(case.pipeline))
    note(repr(case.pushes))
    results: list[Any] = []
    run = case.pipeline.start(engine, results=True)
    reader = threading.Thread(target=lambda: results.extend(run.results()))
    reader.start()
    try:
        for stage, items in case.pushes:
            run.push(*items, stage=stage, timeout=60)
        stats = run.drain(timeout=60)
    finally:
        run.cancel()
        reader.join(60)
    assert Counter(results) == interpret(case.pipeline, case.pushed)
    assert_drained(stats, case.pipeline)
    assert not any(stage.failed or stage.dropped for stage in stats.stages.values())
    assert sum(edge.received for edge in stats.edges if edge.source is None) == sum(
        map(len, case.pushed.values())
    )


@given(cases())
@settings(EXHAUSTIVE, max_examples=300)
def test_processes_compute_what_the_reference_computes_and_count_every_item(case: Case) -> None:
    check(case, "processes")


@given(cases())
@settings(EXHAUSTIVE, max_examples=100)
def test_inline_computes_what_the_reference_computes_and_counts_every_item(case: Case) -> None:
    check(case, "inline")


@given(pipelines(), st.lists(st.integers(0, 10_000), max_size=60))
@settings(EXHAUSTIVE, max_examples=30)
@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_run_streams_what_the_reference_computes(
    engine: str, pipeline: mpipe.Pipeline, items: list[int]
) -> None:
    not_hanging()
    outputs = pipeline.run(iter(items), engine)
    assert Counter(outputs) == interpret(pipeline, dict.fromkeys(pipeline.graph.sources, items))
    assert_drained(outputs.stats(), pipeline)
