"""A stage with `ordered=True`, and ordered results, see source order whatever happened upstream."""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from functions import Work
from helpers import killing, not_hanging, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_conserved, assert_drained, in_order
from test_random_graphs import EXHAUSTIVE, pipelines

import mpipe
from mpipe.policy.reorder import Place
from mpipe.routes import MAX_HOPS
from mpipe.runtime.spec import RunSpec
from mpipe.transport.gaps import create_gap_pipe

ENGINES = ["processes", "inline"]


class Seen(mpipe.Stage):
    """Emits at the end what it has seen; a kill changes nothing."""

    def setup(self) -> None:
        self.seen: list[Any] = []

    def process(self, item: Any) -> None:
        self.seen.append(item)

    def finish(self) -> list[list[Any]]:
        return [self.seen]

    def snapshot(self) -> list[Any]:
        return self.seen

    def restore(self, state: list[Any]) -> None:
        self.seen = state


def jitter(item: Any) -> Any:
    """Takes a random time, so that items overtake each other."""
    time.sleep(random.random() * 0.002)
    return item


def chain(*edges: str) -> mpipe.Pipeline:
    """A pipeline whose stages the test adds; `edges` are pairs of one-letter names."""
    pipeline = mpipe.Pipeline("ordered")
    for source, target in edges:
        pipeline.connect(source, target)
    return pipeline


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("buffer_size", [1, 20, 1000])
def test_expanding_and_shrinking_parallel_stages_keep_source_order(
    engine: str, buffer_size: int
) -> None:
    options: dict[str, Any] = {"workers": 3, "buffer_size": buffer_size}
    pipeline = chain("ab", "bo").add_map("a", jitter, **options)
    pipeline.add_stage("b", lambda x: [(x, i) for i in range(x % 4)], **options)
    pipeline.add_stage("o", Seen, ordered=True, buffer_size=buffer_size)
    (seen,) = pipeline.run(range(400), engine)
    assert seen == [(x, i) for x in range(400) for i in range(x % 4)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("buffer_size", [1, 15])
def test_where_ways_meet_the_order_is_that_of_source_items_then_of_edges(
    engine: str, buffer_size: int
) -> None:
    options: dict[str, Any] = {"workers": 2, "buffer_size": buffer_size}
    pipeline = chain("ab", "ac", "bd", "cd", "co", "do").add_map("a", lambda x: x, **options)
    pipeline.add_stage("b", lambda x: [f"b{x}.{i}" for i in range(x % 3)], **options)
    pipeline.add_map("c", lambda x: jitter(f"c{x}"), **options)
    pipeline.add_map("d", lambda x: f"d({x})", **options)
    pipeline.add_stage("o", Seen, ordered=True, buffer_size=buffer_size)
    (seen,) = pipeline.run(range(100), engine)
    expected: list[str] = []
    for x in range(100):
        expected += [f"c{x}", *(f"d(b{x}.{i})" for i in range(x % 3)), f"d(c{x})"]
    assert seen == expected


@given(pipelines(), st.lists(st.integers(0, 10_000), max_size=60))
@settings(EXHAUSTIVE, max_examples=40)
@pytest.mark.parametrize("engine", ENGINES)
def test_ordered_results_of_any_graph_are_those_of_the_reference_in_its_order(
    engine: str, pipeline: mpipe.Pipeline, items: list[int]
) -> None:
    not_hanging()
    outputs = pipeline.run(iter(items), engine, ordered=True)
    assert list(outputs) == in_order(pipeline, items)
    assert_drained(outputs.stats(), pipeline)


def test_a_mark_is_written_and_read_in_one_piece_however_many_stages_there_are() -> None:
    with_stages = SimpleNamespace(gaps={"a": create_gap_pipe()}, channels=[None] * 500)
    try:
        pipe = RunSpec.gap_pipe(cast(RunSpec, with_stages), "a")
        place, landing = (
            Place(7, 1, 0, (0, 0, 1) * MAX_HOPS),
            memoryview(bytearray(select.PIPE_BUF)),
        )
        for _ in range(2):
            pipe.put(place)
            assert pipe.take(landing)
            assert pipe.landed(landing) == place
            assert not pipe.take(landing)
    finally:
        for fd in with_stages.gaps["a"].all():
            os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_finish_emits_comes_after_everything_in_the_order_of_stages_and_workers(
    engine: str,
) -> None:
    class Last(mpipe.Stage):
        def __init__(self, name: str) -> None:
            self.name = name

        def process(self, item: Any) -> list[Any]:
            return [item]

        def finish(self) -> list[str]:
            return [f"{self.name}{i}" for i in range(3)]

    pipeline = chain("ab", "bo").add_stage("a", Last("a"), workers=1)
    pipeline.add_stage("b", Last("b"), workers=1).add_stage("o", Seen, ordered=True)
    (seen,) = pipeline.run(range(50), engine)
    assert seen == [*range(50), "a0", "a1", "a2", "b0", "b1", "b2"]


@pytest.mark.parametrize("dropping", ["b", "o"])
def test_items_dropped_on_the_way_leave_the_others_in_order(dropping: str) -> None:
    full = {"drop_on_full": True, "buffer_size": 2}
    pipeline = chain("ab", "bo")
    pipeline.add_stage("a", Work(3, "generator", 4), workers=2)
    pipeline.add_map("b", lambda x: x, workers=2, **full if dropping == "b" else {})
    pipeline.add_map("o", jitter, ordered=True, **full if dropping == "o" else {})
    outputs = pipeline.run(range(3000))
    got = list(outputs)
    stats = outputs.stats()
    assert_conserved(stats, pipeline)
    assert stats.stages[dropping].dropped > 0
    assert len(got) == stats.stages["o"].processed
    everything = [y for x in range(3000) for y in Work(3, "list", 4)(x)]
    assert _is_subsequence(got, everything)


def _is_subsequence(part: Iterable[Any], whole: Iterable[Any]) -> bool:
    rest = iter(whole)
    return all(any(item == other for other in rest) for item in part)


def test_pushes_dropped_at_the_first_stage_leave_the_others_in_order() -> None:
    pipeline = chain("ao").add_map("a", jitter, workers=3, drop_on_full=True, buffer_size=5)
    pipeline.add_stage("o", Seen, ordered=True)
    with pipeline.start(results=True) as run:
        for x in range(2000):
            run.push(x)
        run.close()
        (seen,) = run.results()
        stats = run.drain()
    assert stats.stages["a"].dropped > 0
    assert len(seen) == 2000 - stats.stages["a"].dropped
    assert seen == sorted(seen)


@pytest.mark.parametrize("engine", ENGINES)
def test_items_pushed_to_one_of_several_sources_hold_up_nobody(engine: str) -> None:
    pipeline = chain("ao", "bo").add_map("a", lambda x: ("a", x), workers=2)
    pipeline.add_map("b", lambda x: ("b", x), workers=2).add_stage("o", Seen, ordered=True)
    with pipeline.start(engine, results=True) as run:
        for x in range(100):
            run.push(x, stage=(None, "a", "b")[x % 3])
        wait_until(lambda: run.stats().stages["o"].processed == 134, within=10)
        run.close()
        (seen,) = run.results()
        run.drain()
    ways = ("ab", "a", "b")
    assert seen == [(way, x) for x in range(100) for way in ways[x % 3]]


@pytest.mark.parametrize("engine", ENGINES)
def test_items_that_fail_or_cannot_travel_leave_the_others_in_order(engine: str) -> None:
    def odd(x: int) -> Any:
        if x % 7 == 3:
            raise ValueError(x)
        return (i for i in range(2)) if x % 7 == 5 else x  # a generator cannot be pickled

    pipeline = chain("ao").add_map("a", odd, workers=3, on_error="skip", retries=1)
    pipeline.add_stage("o", Seen, ordered=True)
    (seen,) = pipeline.run(range(300), engine)
    assert seen == [x for x in range(300) if x % 7 not in (3, 5)]


@pytest.mark.parametrize("buffer_size", [1, 30])
def test_killed_workers_before_and_in_an_ordered_stage_change_nothing(buffer_size: int) -> None:
    options: dict[str, Any] = {"buffer_size": buffer_size, "max_crashes": 10**6}
    pipeline = chain("ab", "ac", "bo", "co", "op")
    pipeline.add_stage("a", lambda x: [x, -x] if x % 3 else None, workers=2, **options)
    pipeline.add_stage("b", lambda x: [x] * (x % 3), workers=2, **options)
    pipeline.add_map("c", lambda x: ("c", x), workers=2, **options)
    pipeline.add_map("o", lambda x: x, ordered=True, **options)
    pipeline.add_stage("p", Seen, ordered=True, **options)
    split = [(x, -x) if x % 3 else () for x in range(700)]
    expected: list[Any] = []
    for pair in split:
        expected += [y for y in pair for _ in range(y % 3)]
        expected += [("c", y) for y in pair]
    outputs = pipeline.run(range(700))
    with killing(outputs) as kills:
        (seen,) = outputs
    assert seen == expected
    assert kills
    assert_conserved(outputs.stats(), pipeline)


def test_a_source_waits_for_an_item_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what comes after it would pile up before the ordered stage without bound."""
    monkeypatch.setattr("mpipe.engines.source.WINDOW", 300)
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for x in range(100_000):
            pulled += 1
            yield x

    def late(x: int) -> int:
        if x == 40:  # before unread results stop the ordered stage, after the first of them
            time.sleep(60)
        return x

    pipeline = chain("ao").add_map("a", late, workers=2, buffer_size=50)
    pipeline.add_map("o", lambda x: x, ordered=True, buffer_size=50)
    outputs = pipeline.run(source())
    assert [next(outputs) for _ in range(4)] == list(range(4))
    wait_until(lambda: pulled > 500, within=30)
    time.sleep(0.5)
    assert pulled < 900
    outputs.close()


def test_ordered_needs_a_single_worker_and_gets_one_by_itself() -> None:
    with pytest.raises(mpipe.OptionError, match=r"stage 'o': ordered=True needs workers=1"):
        mpipe.Pipeline().add_map("o", abs, ordered=True, workers=2)
    with mpipe.Pipeline().add_map("o", abs, ordered=True).start() as run:
        assert len(run.stats().stages["o"].workers) == 1


def test_too_many_ways_into_an_ordered_stage_are_an_error_at_once() -> None:
    def ladder(rungs: int) -> mpipe.Pipeline:
        pipeline = mpipe.Pipeline().add_map("0", abs)
        for i in range(rungs):
            for name in (f"a{i}", f"b{i}"):
                pipeline.add_map(name, abs).connect(str(i), name)
            pipeline.add_map(str(i + 1), abs, ordered=i == rungs - 1)
            pipeline.connect(f"a{i}", str(i + 1)).connect(f"b{i}", str(i + 1))
        return pipeline

    with pytest.raises(mpipe.GraphError, match=r"ordered stage '11' .* 2,048 routes"):
        ladder(11).start("inline")
    items: Sequence[int] = range(2)
    assert list(ladder(4).run(items, "inline")) == [0] * 16 + [1] * 16


def test_a_source_that_is_ahead_of_source_order_waits_where_nothing_may_be_dropped(
    tmp_path: Path,
) -> None:
    def hold_back(x: int) -> int:
        while x == 0 and not (tmp_path / "go").exists():
            time.sleep(0.01)
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_map("keep", hold_back, workers=2, buffer_size=10)
    pipeline.add_map("drop", abs, workers=1, buffer_size=10, drop_on_full=True)
    pipeline.add_stage("order", lambda x: None, workers=1, buffer_size=10, ordered=True)
    pipeline.connect("keep", "order").connect("drop", "order")
    with pipeline.start() as run:
        with pytest.raises(mpipe.Full):
            run.push(*range(20_000), timeout=2.0)
        (tmp_path / "go").touch()
        stats = run.drain()
    assert stats.edges[0].target == "keep"
    assert stats.edges[0].dropped == 0


def test_large_results_that_wait_for_a_late_one_stop_the_source(tmp_path: Path) -> None:
    def fill(x: int) -> bytes:
        while x == 0 and not (tmp_path / "go").exists():
            time.sleep(0.01)
        return bytes(1 << 19)

    pulled: list[float] = []

    def source() -> Iterator[int]:
        for x in range(400):
            pulled.append(time.monotonic())
            yield x

    def rests() -> bool:
        return len(pulled) > 1 and time.monotonic() - pulled[-1] > 1.0

    def let_go() -> None:
        try:
            wait_until(rests, within=30.0)
            seen.append(len(pulled))
        finally:
            (tmp_path / "go").touch()

    seen: list[int] = []
    watching = threading.Thread(target=let_go)
    watching.start()
    pipeline = mpipe.Pipeline().add_map("fill", fill, workers=2, buffer_size=20)
    assert sum(map(len, pipeline.run(source(), ordered=True))) == 400 << 19
    watching.join()
    assert 128 <= seen[0] <= 128 + 2 * 20 + 40  # held are 64 MiB; two buffers, frames in hand


@pytest.mark.parametrize("when", ["counted", "_free_old_states"])
def test_a_source_goes_on_after_a_worker_died_before_it_could_say_that_it_holds_no_more(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frame is counted; its replacement has nothing in hand, and nothing is on its way."""
    monkeypatch.setattr("mpipe.engines.source.HELD_BYTES", 1 << 20)
    died = tmp_path / "died"

    def fn(item: tuple[int, bytes]) -> int:
        if item[0] == 1 and not died.exists():
            from mpipe.runtime.backlog import Backlog

            def die(*_: Any) -> None:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(Backlog, when, die)
        return item[0]

    def source() -> Iterator[tuple[int, bytes]]:
        for number in range(4):
            yield number, bytes(2 << 20)
            time.sleep(0.3)

    outputs = mpipe.Pipeline().add_map("a", fn, ordered=True).run(source(), deadline=20)
    assert list(outputs) == [0, 1, 2, 3]
    assert outputs.stats().stages["a"].restarts == 1
