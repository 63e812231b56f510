"""Stages that say nothing of how they are to run share processes; but for its speed, nobody can
tell."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from functions import segfaults
from reference import assert_conserved, assert_drained, in_order
from scenarios import NEVER

import mpipe
from mpipe.plan import Plan, make_plan


def same(item: Any) -> Any:
    return item


def odd(item: int) -> bool:
    return item % 2 == 1


def twice(item: int) -> list[int]:
    return [item, item]


class Summing(mpipe.Stage):
    def process(self, item: int) -> list[int]:
        return [item]


KINDS: dict[str, tuple[str, Any]] = {
    "map": ("add_map", same),
    "filter": ("add_filter", odd),
    "flat": ("add_stage", twice),
    "object": ("add_stage", Summing()),
    "class": ("add_stage", Summing),
}


def built(*stages: str | tuple[str, dict[str, Any]], edges: Sequence[str] = ()) -> mpipe.Pipeline:
    """Stages named a, b, c ... of these kinds, in a row unless `edges` such as "ab" are given."""
    pipeline = mpipe.Pipeline("p")
    names = "abcdefghi"[: len(stages)]
    for name, stage in zip(names, stages, strict=True):
        kind, options = (stage, {}) if isinstance(stage, str) else stage
        add, fn = KINDS[kind]
        getattr(pipeline, add)(name, fn, **options)
    for source, target in edges or pairwise(names):
        pipeline.connect(source, target)
    return pipeline


def pools(pipeline: mpipe.Pipeline, cores: int = 2) -> tuple[list[str], Plan]:
    """The stages that each pool of processes runs."""
    plan = make_plan(pipeline.graph, cores)
    names = [stage.name for stage in plan.graph.stages]
    return ["".join(names[i] for i in plan.chain(head)) for head in plan.pools], plan


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (built("map", "map", "filter"), ["abc"]),
        (built("map", "flat"), ["ab"]),
        (built("flat", "map"), ["a", "b"]),  # what comes of one item, or is left of many,
        (built("filter", "map"), ["a", "b"]),  # may be work for all workers
        (built("map", "flat", "map", "filter", "map"), ["ab", "cd", "e"]),
        (built(*["map"] * 8, "flat"), ["abcdefgh", "i"]),
        (built("map", ("map", {"workers": 2}), "map"), ["a", "b", "c"]),
        (built("map", ("map", {"buffer_size": 10}), "map"), ["a", "b", "c"]),
        (built("map", ("map", {"ordered": True}), "map"), ["a", "b", "c"]),
        (built("map", ("map", {"on_error": "skip"})), ["a", "b"]),
        (built("map", ("map", {"timeout": 1.0})), ["a", "b"]),
        (built("map", ("map", {"max_crashes": 9})), ["a", "b"]),
        (built(("map", {"max_crashes": 9}), ("map", {"max_crashes": 9})), ["ab"]),
        (built("map", "object"), ["a", "b"]),
        (built("map", "class"), ["a", "b"]),
        (built("map", "map", "map", edges=["ab", "ac"]), ["a", "b", "c"]),
        (built("map", "map", "map", edges=["ac", "bc"]), ["a", "b", "c"]),
        (built("map", "map", "map", "map", edges=["ab", "bc", "bd"]), ["ab", "c", "d"]),
        (built("map", "map", "map", "map", edges=["ac", "bc", "cd"]), ["a", "b", "cd"]),
    ],
)
def test_plain_stages_share_processes_where_nothing_is_gained_by_spreading_items_anew(
    pipeline: mpipe.Pipeline, expected: list[str]
) -> None:
    assert pools(pipeline)[0] == expected


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_a_seat_of_each_stage_that_shares_a_process_leads_to_the_first(cores: int) -> None:
    names, plan = pools(built("map", "map", "flat", "map"), cores)
    assert names == ["abc", "d"]
    count = plan.workers[0]
    assert plan.workers == (count, count, count, plan.workers[3])
    assert plan.processes == count + plan.workers[3]
    alone = range(3 * count, 3 * count + plan.workers[3])
    assert plan.leaders == (*range(count), *range(count), *range(count), *alone)


@pytest.mark.parametrize(
    "pipeline",
    [
        built("map", "map", "map", "flat"),
        built("map", "filter", "map", "map", "flat"),
        built("map", "map", "map", "filter", edges=["ab", "ac", "cd"]),
        built("filter", "map", "map", "flat", edges=["ac", "bc", "cd"]),
        built("map", "filter", ("map", {"workers": 2}), "map", "filter"),
        built("map", "map", "filter", ("map", {"ordered": True}), "map", "flat"),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_results_and_counts_are_those_of_separate_stages(
    pipeline: mpipe.Pipeline, ordered: bool
) -> None:
    assert len(pools(pipeline)[0]) < len(pipeline.graph.stages)
    outputs = pipeline.run(range(3000), ordered=ordered)
    got, expected = list(outputs), in_order(pipeline, range(3000))
    if ordered:
        assert got == expected
    assert sorted(got) == sorted(expected)
    stats = outputs.stats()
    assert_drained(stats, pipeline)
    assert stats.latency.count == sum(stats.stages[n].received for n in pipeline.graph.terminals)


def test_each_stage_has_service_times_of_its_own_and_the_cpu_time_of_its_workers_counts_once() -> (
    None
):
    def slow(item: int) -> int:
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass
        return item

    pipeline = mpipe.Pipeline("p")
    pipeline.add_map("quick", same).add_map("slow", slow).connect("quick", "slow")
    with pipeline.start() as run:
        run.push(*range(300))
        stats = run.drain()
    quick, late = stats.stages["quick"], stats.stages["slow"]
    assert quick.latency.p99 < 0.001 < late.latency.p50
    assert stats.bottleneck == "slow"
    assert late.busy > 10 * quick.busy
    assert [worker.pid for worker in quick.workers] == [worker.pid for worker in late.workers]
    assert late.wait.max == 0.0 < quick.wait.max, "it has no buffer"
    shared = sum(worker.cpu for worker in late.workers)
    assert 0.5 < shared < stats.cpu < 1.9 * shared


SMALL: dict[str, Any] = {"workers": 2, "buffer_size": 4}


@pytest.mark.parametrize(
    "pipeline", [built("map", "map", "flat"), built(("map", SMALL), ("map", SMALL))]
)
def test_counts_are_never_ahead_of_each_other_while_a_run_goes_on(pipeline: mpipe.Pipeline) -> None:
    with pipeline.start() as run:
        for _ in range(500):
            run.push(*range(100))
            stats = run.stats()
            for name, stage in stats.stages.items():
                assert stage.in_flight >= 0, name
                assert stage.received == stage.processed + stage.in_flight, name
        run.drain()


@pytest.mark.parametrize("items", [1, 1000])
@pytest.mark.parametrize("at", ["b", "c"])
def test_an_error_names_the_stage_and_the_source_item(items: int, at: str) -> None:
    def fails(item: int) -> list[int]:
        if item == items - 1:
            raise ValueError(f"not {item}")
        return [item]

    pipeline = mpipe.Pipeline("p").add_map("a", same)
    pipeline.add_map("b", fails if at == "b" else same)
    pipeline.add_stage("c", same if at == "b" else fails)
    pipeline.connect("a", "b").connect("b", "c")
    outputs = pipeline.run(range(items))
    with pytest.raises(mpipe.StageError) as caught:
        list(outputs)
    assert caught.value.stage == at
    assert str(caught.value.args[0]).endswith(f"ValueError: not {items - 1}")
    assert caught.value.position == f"source item {items - 1}"
    assert "in fails" in caught.value.remote_traceback
    assert_conserved(outputs.stats(), pipeline)


def test_an_output_that_cannot_travel_is_the_failure_of_the_last_stage() -> None:
    pipeline = mpipe.Pipeline("p")
    pipeline.add_map("a", same).add_map("b", lambda item: (i for i in ()) if item == 7 else item)
    pipeline.connect("a", "b")
    with pytest.raises(mpipe.StageError, match="cannot be sent") as caught:
        list(pipeline.run(range(10)))
    assert (caught.value.stage, caught.value.position) == ("b", "source item 7")


def test_a_function_that_cannot_be_loaded_is_the_failure_of_its_stage() -> None:
    pipeline = mpipe.Pipeline("p").add_map("a", same).add_map("b", Unloadable()).connect("a", "b")
    with pytest.raises(mpipe.StageError, match="could not load") as caught:
        list(pipeline.run(range(10)))
    assert caught.value.stage == "b"


def test_a_worker_that_dies_while_a_function_is_loaded_dies_for_its_stage() -> None:
    pipeline = mpipe.Pipeline("p").add_map("a", same).add_map("b", Deadly()).connect("a", "b")
    with pytest.raises(mpipe.WorkerDied, match="while they are set up") as caught:
        list(pipeline.run(range(10)))
    assert caught.value.stage == "b"


class Unloadable:
    def __call__(self, item: int) -> int:
        return item

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.stat, ("/no such file",)


class Deadly(Unloadable):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.abort, ()


@pytest.mark.parametrize("max_crashes", [1, 3])
@pytest.mark.parametrize("at", ["b", "c"])
def test_an_item_that_kills_its_worker_in_a_later_stage_is_told_with_that_stage(
    at: str, max_crashes: int
) -> None:
    def deadly(item: int) -> int:
        if item == 501:
            segfaults(item)
        return item

    pipeline = mpipe.Pipeline("p")
    pipeline.add_map("a", same, max_crashes=max_crashes)
    pipeline.add_map("b", deadly if at == "b" else same, max_crashes=max_crashes)
    pipeline.add_map("c", deadly if at == "c" else same, max_crashes=max_crashes)
    pipeline.connect("a", "b").connect("b", "c")
    outputs = pipeline.run(range(1000))
    got: list[int] = []
    with pytest.raises(mpipe.WorkerDied, match="SIGSEGV") as caught:
        got.extend(outputs)
    assert caught.value.stage == at
    assert caught.value.position == "source item 501"
    assert len(set(got)) == len(got)
    assert 501 not in got
    assert_conserved(outputs.stats(), pipeline)


def test_workers_that_are_killed_again_and_again_lose_nothing() -> None:
    def sometimes(item: int) -> int:
        if random.random() < 0.002:
            os.kill(os.getpid(), 9)
        return item

    pipeline = mpipe.Pipeline("p")
    pipeline.add_map("a", sometimes, max_crashes=NEVER).add_map("b", same, max_crashes=NEVER)
    pipeline.add_map("c", sometimes, max_crashes=NEVER).add_stage("d", twice, max_crashes=NEVER)
    pipeline.connect("a", "b").connect("b", "c").connect("c", "d")
    outputs = pipeline.run(range(5_000), ordered=True)
    assert list(outputs) == [item for item in range(5_000) for _ in range(2)]
    stats = outputs.stats()
    assert_conserved(stats, pipeline)
    assert not any(stage.in_flight for stage in stats.stages.values())
    assert stats.stages["a"].restarts > 3


def test_arrays_pass_from_stage_to_stage_as_they_are_and_may_be_changed() -> None:
    def double(array: Any) -> Any:
        array *= 2
        return array

    pipeline = mpipe.Pipeline("p")
    pipeline.add_map("a", double).add_map("b", lambda array: array[::2]).add_map("c", double)
    pipeline.connect("a", "b").connect("b", "c")
    source = (np.full(100_000, number) for number in range(50))
    for number, array in enumerate(pipeline.run(source, ordered=True)):
        assert array.shape == (50_000,)
        assert (array == 4 * number).all()


def test_classes_of_a_script_are_the_same_in_all_stages_of_a_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import enum, mpipe\n"
        "from dataclasses import dataclass\n"
        "class Colour(enum.Enum):\n"
        "    RED = 1\n"
        "@dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "    colour: Colour\n"
        "def make(number):\n"
        "    return Order(number, Colour.RED)\n"
        "def check(order):\n"
        "    assert isinstance(order, Order) and order.colour is Colour.RED\n"
        "    return order\n"
        "p = mpipe.Pipeline('p').add_map('make', make).add_map('check', check)\n"
        "orders = list(p.connect('make', 'check').run(range(3), ordered=True))\n"
        "assert orders == [make(number) for number in range(3)]\n"
        "print('right')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("right\n", "")
