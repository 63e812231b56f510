"""What every engine promises of graphs, of the functions in them, and of stages with state."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import (
    PATIENCE_S,
    Diary,
    failure,
    finish,
    lines,
    one_stage,
    push_and_drain,
    rejects,
)
from helpers import wait_until
from reference import assert_drained

import mpipe
from mpipe import Pipeline

# Shapes of graphs.


def test_a_chain_applies_its_stages_in_order(engine: str) -> None:
    chain = Pipeline().add_map("double", lambda n: n * 2, workers=2)
    chain.add_stage("twice", lambda n: [n, n + 1], workers=1).connect("double", "twice")
    chain.add_map("text", str, workers=2).connect("twice", "text")
    results, stats = finish(chain, engine, *range(50))
    assert Counter(results) == Counter(str(n) for n in range(100))
    assert [stage.processed for stage in stats.stages.values()] == [50, 50, 100]
    assert [stage.emitted for stage in stats.stages.values()] == [50, 100, 100]


def test_fan_out_gives_every_branch_every_item(engine: str) -> None:
    fan = Pipeline().add_map("in", lambda n: n, workers=1)
    for branch in ("a", "b", "c"):
        fan.add_map(branch, lambda n, branch=branch: (branch, n), workers=1)
        fan.connect("in", branch)
    results, stats = finish(fan, engine, 1, 2, 3)
    assert Counter(results) == Counter((b, n) for b in "abc" for n in (1, 2, 3))
    assert stats.stages["in"].emitted == 3


def test_fan_in_merges_what_all_branches_send(engine: str) -> None:
    fan = Pipeline().add_map("a", lambda n: ("a", n)).add_map("b", lambda n: ("b", n))
    fan.add_map("out", lambda pair: pair).connect("a", "out").connect("b", "out")
    results, stats = finish(fan, engine, 1, 2)
    assert Counter(results) == Counter([("a", 1), ("a", 2), ("b", 1), ("b", 2)])
    assert stats.stages["out"].received == 4


def test_a_diamond_gives_each_item_once_per_path(engine: str) -> None:
    diamond = Pipeline().add_map("in", lambda n: n, workers=1)
    diamond.add_map("left", lambda n: -n, workers=2).add_filter("right", lambda n: n % 2)
    diamond.add_map("out", lambda n: n, workers=1)
    for source, target in (("in", "left"), ("in", "right"), ("left", "out"), ("right", "out")):
        diamond.connect(source, target)
    results, _ = finish(diamond, engine, *range(1, 21))
    assert Counter(results) == Counter([-n for n in range(1, 21)] + list(range(1, 21, 2)))


def test_push_goes_to_every_source_or_to_the_one_that_is_named(engine: str) -> None:
    two = Pipeline().add_map("a", lambda n: ("a", n)).add_map("b", lambda n: ("b", n))
    two.add_map("out", lambda pair: pair).connect("a", "out").connect("b", "out")
    with two.start(engine, results=True) as run:
        run.push(1)
        run.push(2, stage="a")
        run.push(3, stage="b")
        run.close()
        assert Counter(run.results()) == Counter([("a", 1), ("b", 1), ("a", 2), ("b", 3)])
        stats = run.drain(PATIENCE_S)
    assert_drained(stats, two)
    assert [stats.stages[name].received for name in ("a", "b", "out")] == [2, 2, 4]


def test_results_come_from_every_terminal_stage(engine: str) -> None:
    tree = Pipeline().add_map("in", lambda n: n, workers=1)
    tree.add_stage("none", lambda n: None, workers=1).connect("in", "none")
    tree.add_map("some", lambda n: n * 10, workers=1).connect("in", "some")
    assert Counter(finish(tree, engine, 1, 2)[0]) == Counter([10, 20])


def test_one_branch_cannot_change_what_another_one_sees(engine: str) -> None:
    def spoil(items: Any) -> list[int]:
        items[0] += 1
        return [int(items[0])]

    fan = Pipeline().add_map("in", lambda items: items, workers=1)
    for branch in ("a", "b"):
        fan.add_stage(branch, spoil, workers=1).connect("in", branch)
    small, large = [1], np.full(10_000, 1)
    assert finish(fan, engine, small, large)[0].count(2) == 4
    assert (small[0], large[0]) == (1, 1)


def test_without_results_outputs_are_counted_and_let_go(engine: str) -> None:
    pipeline = one_stage(lambda n: [n, n])
    with pipeline.start(engine) as run:
        run.push(*range(20))
        stats = run.drain(PATIENCE_S)
    assert_drained(stats, pipeline)
    assert stats.stages["s"].emitted == 40


def test_leaving_the_block_drains(engine: str) -> None:
    pipeline = one_stage(lambda n: [n])
    with pipeline.start(engine) as run:
        run.push(1, 2, 3)
    assert run.stats().stages["s"].processed == 3
    assert_drained(run.stats(), pipeline)


def test_an_empty_run_drains(engine: str) -> None:
    pipeline = Pipeline().add_map("a", lambda n: n).add_map("b", lambda n: n).connect("a", "b")
    results, stats = finish(pipeline, engine)
    assert (results, stats.bottleneck) == ([], None)
    assert stats.latency == mpipe.Latency()


# Functions and what they return.


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda n: [n, n], [2, 2]),
        (lambda n: (n, n), [2, 2]),
        (lambda n: iter([n, n]), [2, 2]),
        (lambda n: (n for _ in range(2)), [2, 2]),
        (lambda n: map(str, [n]), ["2"]),
        (lambda n: [n] * 500, [2] * 500),
        (lambda n: (n for _ in range(500)), [2] * 500),
        (lambda n: [], []),
        (lambda n: None, []),
    ],
    ids=["list", "tuple", "iterator", "generator", "map", "500", "500 lazily", "empty", "None"],
)
def test_every_kind_of_return_value_becomes_its_items(
    engine: str, fn: Any, expected: list[Any]
) -> None:
    assert finish(one_stage(fn), engine, 2)[0] == expected


def test_map_sends_on_whatever_is_returned(engine: str) -> None:
    values = [None, {"a": 1}, [1, 2], "text", b"", 1.5]
    pipeline = Pipeline().add_map("m", lambda n: values[n], workers=1)
    assert finish(pipeline, engine, *range(6))[0] == values


def test_filter_sends_on_the_items_its_predicate_accepts(engine: str) -> None:
    pipeline = Pipeline().add_filter("f", lambda n: n % 3 == 0, workers=1)
    results, stats = finish(pipeline, engine, *range(10))
    assert results == [0, 3, 6, 9]
    assert (stats.stages["f"].processed, stats.stages["f"].emitted) == (10, 4)


@pytest.mark.parametrize(
    ("fn", "kind"),
    [(lambda n: {"n": n}, "dict"), (str, "str"), (lambda n: n, "int"), (np.zeros, "ndarray")],
)
def test_a_wrong_return_type_fails_with_what_to_return_instead(
    engine: str, fn: Any, kind: str
) -> None:
    error = failure(one_stage(fn), engine, 1)
    assert error.args[0] == (
        "stage 's' (worker 0) failed on source item 0: TypeError: a stage must return a list, "
        f"tuple, generator or iterator of outputs, or None, not {kind}; return [result] for one "
        "output, or use add_map"
    )
    assert isinstance(error.__cause__, TypeError)


def test_closures_and_items_of_classes_defined_in_a_function_travel(engine: str) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    step = 5
    chain = Pipeline().add_map("a", lambda p: Point(p.x + step), workers=1)
    chain.add_stage("b", lambda p: [p.x, lambda: p.x], workers=1).connect("a", "b")
    chain.add_map("c", lambda v: v() if callable(v) else v, workers=1).connect("b", "c")
    assert finish(chain, engine, Point(1), Point(2))[0] == [6, 6, 7, 7]


def test_arrays_arrive_whole_and_can_be_changed_in_place(engine: str) -> None:
    def negate(array: Any) -> list[Any]:
        array *= -1
        return [array]

    chain = one_stage(negate).add_map("sum", lambda array: float(array.sum()), workers=1)
    chain.connect("s", "sum")
    arrays = [np.full(n, 2.0) for n in (1, 1000, 300_000)]
    assert finish(chain, engine, *arrays)[0] == [-2.0, -2000.0, -600_000.0]
    assert [float(array[0]) for array in arrays] == [2.0, 2.0, 2.0]


def test_a_function_that_cannot_be_sent_is_refused_by_start(engine: str) -> None:
    lock = threading.Lock()
    with pytest.raises(mpipe.OptionError, match=r"stage 's': its function cannot be sent"):
        one_stage(lambda n: [lock]).start(engine)


# Stages with state.


@pytest.mark.parametrize("as_factory", [False, True], ids=["instance", "factory"])
def test_a_stage_is_set_up_fed_finished_and_torn_down(
    engine: str, tmp_path: Path, as_factory: bool
) -> None:
    path = tmp_path / "diary"
    chain = one_stage((lambda: Diary(path)) if as_factory else Diary(path))
    chain.add_map("next", lambda total: total * 10, workers=1).connect("s", "next")
    assert finish(chain, engine, 1, 2, 3)[0] == [60]
    assert lines(path) == ["setup", "process", "process", "process", "finish", "teardown"]


def test_finish_runs_stage_after_stage_along_the_graph(engine: str, tmp_path: Path) -> None:
    chain = Pipeline()
    for name in "abc":
        chain.add_stage(name, Diary(tmp_path / name), workers=1)
    chain.connect("a", "b").connect("b", "c")
    results, stats = finish(chain, engine, 1, 2, 3)
    assert results == [6]
    assert [stage.emitted for stage in stats.stages.values()] == [1, 1, 1]
    assert [lines(tmp_path / name).count("process") for name in "abc"] == [3, 1, 1]


def test_every_run_starts_with_a_fresh_stage(engine: str, tmp_path: Path) -> None:
    stage = Diary(tmp_path / "diary")
    pipeline = one_stage(stage)
    assert [finish(pipeline, engine, 5)[0] for _ in range(2)] == [[5], [5]]
    assert stage.total == 0


def test_teardown_also_runs_when_the_run_is_cancelled(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    run = one_stage(Diary(path)).start(engine)
    run.push(1)
    wait_until(lambda: run.stats().stages["s"].processed == 1)
    run.cancel()
    assert lines(path) == ["setup", "process", "teardown"]


def test_teardown_also_runs_when_another_stage_fails(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    chain = Pipeline().add_stage("bad", rejects(2), workers=1)
    chain.add_stage("diary", Diary(path), workers=1).connect("bad", "diary")
    with chain.start(engine) as run:
        run.push(1)
        wait_until(lambda: run.stats().stages["diary"].processed == 1)
        with pytest.raises(mpipe.StageError, match="not 2"):
            push_and_drain(run, 2)
        run.cancel()
    assert lines(path) == ["setup", "process", "teardown"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("setup", "could not be set up"),
        ("finish", "failed in finish()"),
        ("teardown", "could not be torn down"),
    ],
)
def test_a_failure_outside_of_items_fails_the_run(
    engine: str, tmp_path: Path, broken: str, says: str
) -> None:
    path = tmp_path / "diary"
    error = failure(one_stage(Diary(path, broken)), engine)
    assert error.args[0] == f"stage 's' (worker 0) {says}: OSError: {broken} is broken"
    assert error.stage == "s"
    assert isinstance(error.__cause__, OSError)
    assert lines(path).count("teardown") == 1
