"""What every engine promises, run on each of them: same graph, same results, same exceptions."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import wait_until
from reference import assert_conserved, assert_drained

import mpipe
from mpipe import Pipeline, Stats

PATIENCE_S = 60.0
"""How long a drain may take before a test counts it as a hang."""


@pytest.fixture(params=["inline", "processes"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def finish(pipeline: Pipeline, engine: str, *items: Any, **options: Any) -> tuple[Any, Stats]:
    """Push all items, read all results, drain; check that every item is accounted for."""
    with pipeline.start(engine, results=True, **options) as run:
        run.push(*items)
        run.close()
        results = list(run.results())
        stats = run.drain(PATIENCE_S)
    assert_drained(stats, pipeline)
    return results, stats


def letters(pipeline: Pipeline, engine: str, *items: Any) -> list[mpipe.DeadLetter]:
    """The dead letters of a run that is drained."""
    with pipeline.start(engine) as run:
        run.push(*items)
        assert_drained(run.drain(PATIENCE_S), pipeline)
        return list(run.dead_letters())


def failure(pipeline: Pipeline, engine: str, *items: Any, **options: Any) -> mpipe.StageError:
    """The error of a run that fails; wherever it shows first, it shows everywhere later."""
    seen: list[BaseException] = []
    run: mpipe.Run | None = None
    try:
        run = pipeline.start(engine, **options)
        run.push(*items)
        run.drain(PATIENCE_S)
    except mpipe.StageError as error:
        seen.append(error)
    (first,) = seen
    assert isinstance(first, mpipe.StageError)
    if run is not None:
        for again in (lambda: run.push(1), lambda: run.drain(PATIENCE_S)):
            with pytest.raises(mpipe.StageError) as caught:
                again()
            assert str(caught.value) == str(first)
        assert run.stats().state == "failed"
        assert_conserved(run.stats(), pipeline)
    return first


def one_stage(fn: Any, **options: Any) -> Pipeline:
    return Pipeline("p").add_stage("s", fn, **{"workers": 1, **options})


def rejects(*bad: Any) -> Callable[[Any], list[Any]]:
    def fn(item: Any) -> list[Any]:
        if item in bad:
            raise ValueError(f"not {item}")
        return [item]

    return fn


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


class Diary(mpipe.Stage):
    """Writes down what happens to it, each call in a line of the file."""

    def __init__(self, path: Path, broken: str = "") -> None:
        self.path = path
        self.broken = broken
        self.total = 0

    def note(self, what: str) -> None:
        with self.path.open("a") as file:
            file.write(what + "\n")
        if self.broken == what:
            raise OSError(f"{what} is broken")

    def setup(self) -> None:
        self.note("setup")

    def process(self, item: int) -> list[int]:
        self.note("process")
        self.total += item
        return []

    def finish(self) -> list[int]:
        self.note("finish")
        return [self.total]

    def teardown(self) -> None:
        self.note("teardown")


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


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


def push_and_drain(run: mpipe.Run, *items: Any) -> Stats:
    run.push(*items)
    return run.drain(PATIENCE_S)


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


# Items that fail.


def test_raise_fails_the_run_with_all_that_is_known(engine: str) -> None:
    error = failure(one_stage(rejects("c")), engine, "a", "b", "c", "d")
    assert error.args[0] == "stage 's' (worker 0) failed on source item 2: ValueError: not c"
    assert (error.stage, error.worker, error.position, error.attempts) == (
        "s",
        0,
        "source item 2",
        1,
    )
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.args == ("not c",)
    assert "in fn" in error.remote_traceback
    assert "ValueError: not c" in str(error)


def test_a_failure_further_down_names_the_source_item(engine: str) -> None:
    chain = Pipeline().add_map("a", lambda n: n, workers=1)
    chain.add_stage("s", rejects(7), workers=1).connect("a", "s")
    assert failure(chain, engine, *range(20)).position == "source item 7"
    expanding = one_stage(lambda n: [n, n + 1])
    expanding.add_stage("t", rejects(5), workers=1).connect("s", "t")
    assert failure(expanding, engine, 4).position == "an item from source item 0"


def test_an_exception_that_cannot_be_pickled_is_reported_in_text(engine: str) -> None:
    def fn(item: int) -> None:
        raise RuntimeError("broken", threading.Lock())

    error = failure(one_stage(fn), engine, 1)
    assert "RuntimeError: ('broken', <unlocked _thread.lock" in error.args[0]


def test_sys_exit_in_a_function_fails_the_item(engine: str) -> None:
    error = failure(one_stage(lambda item: exit(3)), engine, 1)
    assert error.args[0] == "stage 's' (worker 0) failed on source item 0: SystemExit: 3"


def test_skip_counts_and_logs_the_item_and_goes_on(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = one_stage(rejects(1, 3), on_error="skip")
    with caplog.at_level(logging.WARNING, "mpipe"):
        results, stats = finish(pipeline, engine, *range(5))
    assert results == [0, 2, 4]
    stage = stats.stages["s"]
    assert (stage.processed, stage.failed, stage.dead_lettered) == (3, 2, 0)
    says = [f"stage 's' (worker 0) failed on source item {n}: ValueError: not {n}" for n in (1, 3)]
    logged = [record.getMessage() for record in caplog.records]
    assert logged == says


def test_dead_letters_hold_the_item_and_why(engine: str) -> None:
    (letter,) = letters(one_stage(rejects("x"), on_error="dead_letter", retries=2), engine, "x")
    assert (letter.stage, letter.item, letter.attempts) == ("s", "x", 3)
    assert (letter.error, letter.position) == ("ValueError: not x", "source item 0")
    assert "in fn" in letter.traceback


def test_dead_letters_are_given_once_and_counted(engine: str) -> None:
    pipeline = one_stage(rejects(1, 3), on_error="dead_letter")
    with pipeline.start(engine, results=True) as run:
        run.push(*range(5))
        run.close()
        assert list(run.results()) == [0, 2, 4]
        stats = run.drain(PATIENCE_S)
        assert [letter.item for letter in run.dead_letters()] == [1, 3]
        assert list(run.dead_letters()) == []
    assert (stats.stages["s"].failed, stats.stages["s"].dead_lettered) == (2, 2)


def test_an_item_that_fails_midway_keeps_the_outputs_it_gave(engine: str) -> None:
    def fn(n: int) -> Iterator[int]:
        yield n
        if n == 2:
            raise ValueError
        yield n * 10

    assert finish(one_stage(fn, on_error="skip"), engine, 1, 2, 3)[0] == [1, 10, 2, 3, 30]


def test_a_retried_generator_gives_every_output_once(engine: str) -> None:
    class Moody(mpipe.Stage):
        tries = 0

        def process(self, item: int) -> Iterator[int]:
            self.tries += 1
            for i in range(4):
                if self.tries == i + 1:
                    raise OSError
                yield i

    results, stats = finish(one_stage(Moody(), retries=5, retry_delay=0.001), engine, 1)
    assert results == [0, 1, 2, 3]
    assert (stats.stages["s"].retried, stats.stages["s"].failed) == (4, 0)


def test_retries_are_used_up_before_an_item_fails(engine: str) -> None:
    error = failure(one_stage(rejects(1), retries=2), engine, 1)
    assert error.attempts == 3
    assert error.args[0] == (
        "stage 's' (worker 0) failed on source item 0 after 3 attempts: ValueError: not 1"
    )


# Items that cannot travel.

UNSENDABLE = "an item of type _thread.lock cannot be sent: it cannot be pickled: cannot pickle "
TOO_LARGE = "an item of type bytes cannot be sent: pickled it takes "


def test_an_unpicklable_output_fails_its_item(engine: str) -> None:
    pipeline = one_stage(lambda n: [n, threading.Lock()] if n == 1 else [n])
    error = failure(pipeline, engine, 0, 1, 2, results=True)
    assert error.position == "source item 1"
    assert UNSENDABLE in error.args[0]
    assert isinstance(error.__cause__, mpipe.ItemError)


def test_an_unpicklable_output_is_skipped_with_its_item(engine: str) -> None:
    pipeline = one_stage(lambda n: [n, threading.Lock()] if n == 1 else [n], on_error="skip")
    results, stats = finish(pipeline, engine, 0, 1, 2)
    assert results == [0, 1, 2]
    assert (stats.stages["s"].processed, stats.stages["s"].failed) == (2, 1)


def test_an_unpicklable_output_makes_a_dead_letter_of_its_item(engine: str) -> None:
    chain = one_stage(lambda n: [threading.Lock()], on_error="dead_letter", retries=3)
    chain.add_stage("t", lambda n: None, workers=1).connect("s", "t")
    (letter,) = letters(chain, engine, 7)
    assert (letter.item, letter.attempts) == (7, 1)
    assert UNSENDABLE in letter.error


def test_outputs_that_go_nowhere_need_not_be_picklable(engine: str) -> None:
    pipeline = one_stage(lambda n: [threading.Lock()])
    with pipeline.start(engine) as run:
        stats = push_and_drain(run, 1)
    assert (stats.stages["s"].processed, stats.stages["s"].emitted) == (1, 1)


def test_an_output_over_the_size_limit_fails_its_item(engine: str) -> None:
    pipeline = one_stage(lambda n: [b"x" * n])
    error = failure(pipeline, engine, 100, 50_000, results=True, max_item_bytes=10_000)
    assert error.position == "source item 1"
    assert TOO_LARGE in error.args[0]
    assert "over the limit of 10,000" in error.args[0]


@pytest.mark.parametrize(
    ("item", "says"), [(threading.Lock(), UNSENDABLE), (b"x" * 50_000, TOO_LARGE)]
)
def test_pushing_what_cannot_travel_raises_and_the_run_goes_on(
    engine: str, item: Any, says: str
) -> None:
    pipeline = one_stage(lambda n: [n])
    with pipeline.start(engine, results=True, max_item_bytes=10_000) as run:
        with pytest.raises(mpipe.ItemError) as caught:
            run.push(1, item, 2)
        assert str(caught.value).startswith(f"push to stage 's': item 1 of 3: {says}")
        run.push(3)
        run.close()
        assert list(run.results()) == [1, 3]
        assert_drained(run.drain(PATIENCE_S), pipeline)


def test_pushing_what_cannot_travel_is_counted_and_logged_under_skip(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mpipe"):
        results, stats = finish(
            one_stage(lambda n: [n], on_error="skip"), engine, 1, threading.Lock(), 2
        )
    stage = stats.stages["s"]
    assert results == [1, 2]
    assert (stage.received, stage.processed, stage.failed) == (3, 2, 1)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"stage 's' skipped source item 1: {UNSENDABLE}")


def test_pushing_what_cannot_travel_makes_a_dead_letter(engine: str) -> None:
    lock = threading.Lock()
    pipeline = one_stage(lambda n: [n], on_error="dead_letter")
    (letter,) = letters(pipeline, engine, 1, lock, 2)
    assert (letter.stage, letter.item, letter.position) == ("s", lock, "source item 1")
    assert letter.error.startswith(f"ItemError: {UNSENDABLE}")


def test_an_item_that_was_refused_keeps_its_place_in_the_source(engine: str) -> None:
    pipeline = one_stage(rejects("x"), on_error="dead_letter")
    found = letters(pipeline, engine, "x", threading.Lock(), "x")
    assert sorted(letter.position for letter in found) == [f"source item {n}" for n in range(3)]


def test_a_dead_letter_whose_item_cannot_travel_says_that_it_is_lost(engine: str) -> None:
    def fn(item: list[Any]) -> None:
        item.append(threading.Lock())
        raise ValueError("no")

    (letter,) = letters(one_stage(fn, on_error="dead_letter"), engine, [1])
    assert letter.item is None
    assert letter.error.startswith("ValueError: no (the item is lost: it cannot be pickled: ")


def test_pushing_what_cannot_travel_to_several_sources_raises_if_one_says_so(engine: str) -> None:
    two = Pipeline().add_stage("a", lambda n: [n], on_error="skip")
    two.add_stage("b", lambda n: [n]).add_stage("c", lambda n: [n])
    two.connect("a", "c").connect("b", "c")
    with two.start(engine) as run:
        with pytest.raises(mpipe.ItemError, match="push to stage 'b'"):
            run.push(threading.Lock())
        stats = run.drain(PATIENCE_S)
    assert [stage.received for stage in stats.stages.values()] == [0, 0, 0]


def test_an_item_that_cannot_be_unpickled_fails_the_run_at_the_stage_it_is_for(
    engine: str,
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    error = failure(one_stage(lambda n: [n]), engine, Trap())
    assert error.stage == "s"
    assert "could not unpickle" in error.args[0]
    assert "invalid literal for int()" in str(error)


# imap and run.


def test_imap_keeps_the_order_of_the_source(engine: str) -> None:
    assert list(mpipe.imap(lambda n: n * n, range(500), workers=3, engine=engine)) == [
        n * n for n in range(500)
    ]


def test_imap_unordered_gives_the_same_results(engine: str) -> None:
    outputs = mpipe.imap(lambda n: n * n, range(500), workers=3, ordered=False, engine=engine)
    assert Counter(outputs) == Counter(n * n for n in range(500))


def test_imap_keeps_order_around_items_that_are_skipped(engine: str) -> None:
    def fn(n: int) -> int:
        if n % 7 == 3:
            raise ValueError
        return n

    outputs = mpipe.imap(fn, range(200), workers=3, on_error="skip", engine=engine)
    assert list(outputs) == [n for n in range(200) if n % 7 != 3]
    assert outputs.stats().stages["map"].failed == len(range(3, 200, 7))


def test_run_streams_the_outputs_and_ends_drained(engine: str) -> None:
    chain = Pipeline().add_stage("a", lambda n: [n, n], workers=2)
    chain.add_map("b", lambda n: -n, workers=2).connect("a", "b")
    outputs = chain.run(range(100), engine)
    assert Counter(outputs) == Counter([-n for n in range(100)] * 2)
    assert_drained(outputs.stats(), chain)


def test_run_of_nothing_gives_nothing(engine: str) -> None:
    assert list(one_stage(lambda n: [n]).run([], engine)) == []


def test_run_pulls_an_endless_source_only_as_far_as_outputs_are_taken(engine: str) -> None:
    source = itertools.count()
    with one_stage(lambda n: [n], buffer_size=10).run(source, engine) as outputs:
        assert list(itertools.islice(outputs, 5)) == [0, 1, 2, 3, 4]
        time.sleep(0.3)  # time enough to run away
        assert next(source) < 5_000
    assert outputs.stats().state == "cancelled"


def test_outputs_come_while_the_source_waits_for_its_next_item(engine: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        if engine == "processes":
            assert answered.wait(PATIENCE_S)
        yield 2

    answered = threading.Event()
    outputs = one_stage(lambda n: [n * 10]).run(source(), engine)
    assert next(outputs) == 10
    answered.set()
    assert list(outputs) == [20]


def test_closing_outputs_early_tears_the_stages_down(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "diary"

    class Passing(Diary):
        def process(self, item: int) -> list[int]:
            return [item]

    with one_stage(Passing(path)).run(itertools.count(), engine) as outputs:
        assert next(outputs) == 0
    assert lines(path) == ["setup", "teardown"]
    assert list(outputs) == []


def test_outputs_never_begun_can_be_closed(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    one_stage(Diary(path)).run([], engine).close()
    assert lines(path).count("teardown") == lines(path).count("setup")


def test_an_exception_of_the_source_reaches_the_caller_and_cancels_the_run(engine: str) -> None:
    class SourceFailed(Exception):
        pass

    def source() -> Iterator[int]:
        yield 1
        raise SourceFailed

    outputs = one_stage(lambda n: [n]).run(source(), engine)
    with pytest.raises(SourceFailed):
        list(outputs)
    assert outputs.stats().state == "cancelled"


def test_an_exception_of_a_stage_ends_the_stream(engine: str) -> None:
    outputs = one_stage(rejects(3)).run(itertools.count(), engine)
    with pytest.raises(mpipe.StageError, match="failed on source item 3"):
        list(outputs)
    assert outputs.stats().state == "failed"


def test_a_stream_has_its_dead_letters(engine: str) -> None:
    outputs = one_stage(rejects(3), on_error="dead_letter").run(range(5), engine)
    assert list(outputs) == [0, 1, 2, 4]
    assert [letter.item for letter in outputs.dead_letters()] == [3]


# The life of a run.


def test_draining_twice_gives_the_same_stats(engine: str) -> None:
    with one_stage(lambda n: [n]).start(engine) as run:
        assert push_and_drain(run, 1) == run.drain(PATIENCE_S) == run.stats()


@pytest.mark.parametrize("end", [mpipe.Run.close, mpipe.Run.drain], ids=["close", "drain"])
def test_push_after_the_end_is_refused(engine: str, end: Callable[[mpipe.Run], Any]) -> None:
    with one_stage(lambda n: [n]).start(engine) as run:
        end(run)
        with pytest.raises(mpipe.Closed) as caught:
            run.push(1)
        assert str(caught.value) == "this run takes no more items: it was closed or drained"
        assert run.drain(PATIENCE_S).stages["s"].received == 0


def test_closing_twice_is_closing_once(engine: str) -> None:
    with one_stage(lambda n: [n]).start(engine) as run:
        run.push(1)
        run.close()
        run.close()
        assert run.drain(PATIENCE_S).stages["s"].processed == 1


def test_results_can_be_read_after_the_drain(engine: str) -> None:
    with one_stage(lambda n: [n]).start(engine, results=True) as run:
        push_and_drain(run, 1, 2, 3)
        assert list(run.results()) == [1, 2, 3]
        assert list(run.results()) == []


def test_cancel_stops_the_run_and_says_so(engine: str) -> None:
    pipeline = one_stage(lambda n: [n])
    with pipeline.start(engine, results=True) as run:
        run.push(1)
        run.cancel()
        run.cancel()
        calls = (lambda: run.push(2), run.drain, lambda: list(run.results()))
        for call in calls:
            with pytest.raises(mpipe.Cancelled) as caught:
                call()
            assert str(caught.value) == "the run was cancelled: cancel() was called"
    assert run.stats().state == "cancelled"
    assert_conserved(run.stats(), pipeline)


def test_cancel_after_the_drain_changes_nothing(engine: str) -> None:
    with one_stage(lambda n: [n]).start(engine) as run:
        stats = push_and_drain(run, 1)
        run.cancel()
        assert run.drain(PATIENCE_S) == stats
        assert stats.state == "drained"


def test_leaving_the_block_by_an_exception_cancels_and_keeps_the_exception(
    engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "diary"

    def leave() -> None:
        with one_stage(Diary(path)).start(engine) as run:
            runs.append(run)
            run.push(1)
            raise KeyError("mine")

    runs: list[mpipe.Run] = []
    with pytest.raises(KeyError, match="mine"):
        leave()
    assert runs[0].stats().state == "cancelled"
    assert "finish" not in lines(path)


def keep_pushing(run: mpipe.Run) -> None:
    for _ in range(100_000):
        run.push(0.001)


def test_the_deadline_cancels_the_run(engine: str) -> None:
    pipeline = one_stage(time.sleep, buffer_size=1)
    run = pipeline.start(engine, deadline=0.5)
    for call in (lambda: keep_pushing(run), run.drain):
        with pytest.raises(mpipe.Cancelled) as caught:
            call()
        assert str(caught.value) == "the run was cancelled: its deadline of 0.5 s passed"
    assert run.stats().state == "cancelled"
    assert_conserved(run.stats(), pipeline)


def test_the_cancel_event_cancels_the_run(engine: str) -> None:
    event = threading.Event()
    run = one_stage(time.sleep, buffer_size=1).start(engine, cancel=event)
    run.push(0.001)
    threading.Timer(0.1, event.set).start()
    for call in (lambda: keep_pushing(run), run.drain):
        with pytest.raises(mpipe.Cancelled) as caught:
            call()
        assert str(caught.value) == "the run was cancelled: its cancel event was set"


def test_an_idle_run_is_cancelled_too(engine: str) -> None:
    event = threading.Event()
    run = one_stage(lambda n: [n]).start(engine, cancel=event)
    event.set()
    wait_until(lambda: run.stats().state == "cancelled")
    with pytest.raises(mpipe.Cancelled):
        run.push(1)


def test_waiting_for_results_ends_when_the_run_is_cancelled(engine: str) -> None:
    event = threading.Event()
    run = one_stage(lambda n: [n]).start(engine, results=True, cancel=event)
    run.push(1)
    results = run.results()
    assert next(results) == 1
    threading.Timer(0.1, event.set).start()
    with pytest.raises(mpipe.Cancelled):
        next(results)


def test_runs_of_one_pipeline_are_independent(engine: str) -> None:
    pipeline = one_stage(lambda n: [n])
    with pipeline.start(engine) as first, pipeline.start(engine) as second:
        first.push(1, 2)
        second.push(3)
        first.cancel()
        assert second.drain(PATIENCE_S).stages["s"].received == 1


# What is seen.


def test_stats_count_while_the_run_goes_on(engine: str) -> None:
    pipeline = one_stage(lambda n: [n])
    with pipeline.start(engine) as run:
        assert run.stats().state == "running"
        run.push(1, 2, 3)
        assert run.stats().stages["s"].received == 3
        wait_until(lambda: run.stats().stages["s"].processed == 3)
        assert_conserved(run.stats(), pipeline)


def test_stats_measure_every_item_and_name_the_bottleneck(engine: str) -> None:
    def slow(n: int) -> list[int]:
        time.sleep(0.005)
        return [n]

    chain = Pipeline("measured").add_stage("quick", lambda n: iter([n]), workers=1)
    chain.add_stage("slow", slow, workers=1).connect("quick", "slow")
    _, stats = finish(chain, engine, *range(10))
    stage = stats.stages["slow"]
    assert (stats.name, stats.bottleneck) == ("measured", "slow")
    assert (stage.latency.count, stage.wait.count, stats.latency.count) == (10, 10, 10)
    assert 0.005 <= stage.latency.p50 <= stage.latency.p99 <= stage.latency.max
    assert stats.latency.mean >= 0.005
    assert stage.throughput == pytest.approx(10 / stats.elapsed)
    assert 0 < stage.busy <= 1
    assert stage.busy + stage.idle + stage.blocked <= 1 + 1e-6


def test_stats_can_be_pickled_and_compared(engine: str) -> None:
    _, stats = finish(one_stage(lambda n: [n]), engine, 1)
    assert pickle.loads(pickle.dumps(stats)) == stats
