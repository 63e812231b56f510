"""What every engine promises of a run: its results, its ends, its numbers."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import (
    PATIENCE_S,
    Diary,
    finish,
    lines,
    one_stage,
    push_and_drain,
    rejects,
)
from helpers import wait_until
from reference import assert_conserved, assert_drained

import mpipe
from mpipe import Pipeline

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
        assert caught.value.items == (1,)
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
