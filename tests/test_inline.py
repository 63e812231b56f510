"""What only the inline engine promises: one thread, failures where they are caused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from reference import assert_drained

import mpipe
from mpipe import Pipeline


def chain(*functions: Any, **options: Any) -> Pipeline:
    """Stages a, b, ... one after the other."""
    pipeline = Pipeline("p")
    for name, fn in zip("abcdef", functions, strict=False):
        pipeline.add_stage(name, fn, **options)
        if name != "a":
            pipeline.connect(chr(ord(name) - 1), name)
    return pipeline


def test_functions_run_in_the_callers_process_and_thread() -> None:
    seen: list[tuple[int, int]] = []

    def note(item: int) -> list[int]:
        seen.append((os.getpid(), threading.get_ident()))
        return [item]

    with chain(note, note).start("inline") as run:
        run.push(1)
        assert seen == [(os.getpid(), threading.get_ident())] * 2


def test_push_returns_when_the_item_has_gone_all_the_way() -> None:
    order: list[str] = []

    def noting(name: str) -> Any:
        def fn(item: int) -> Iterator[int]:
            order.append(f"{name}{item}")
            yield item
            yield item + 1

        return fn

    with chain(noting("a"), noting("b")).start("inline") as run:
        run.push(1)
        assert order == ["a1", "b1", "b2"]
        run.push(5)
        assert order[3:] == ["a5", "b5", "b6"]


def test_an_endless_stage_does_not_pile_up_before_the_next_one() -> None:
    def endless(item: int) -> Iterator[int]:
        while True:
            yield item

    def enough(item: int) -> list[int]:
        taken.append(item)
        if len(taken) == 1000:
            raise LookupError
        return []

    taken: list[int] = []
    with pytest.raises(mpipe.StageError, match=r"stage 'b'.*LookupError"):
        chain(endless, enough).start("inline").push(1)
    assert len(taken) == 1000


def test_a_failure_is_raised_by_the_push_that_caused_it_with_the_original_traceback() -> None:
    def fn(item: int) -> list[int]:
        return [1 // item]

    with chain(lambda n: [n], fn).start("inline") as run:
        run.push(1)
        with pytest.raises(mpipe.StageError, match="ZeroDivisionError") as caught:
            run.push(0)
        run.cancel()
    cause = caught.value.__cause__
    assert cause is not None
    traceback = cause.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback is not None
    assert traceback.tb_frame.f_locals["item"] == 0  # what a debugger would show


def test_a_failure_downstream_is_not_taken_for_one_of_the_stage_above() -> None:
    calls: list[int] = []

    def above(item: int) -> Iterator[int]:
        calls.append(item)
        yield item

    def below(item: int) -> list[int]:
        raise ValueError

    pipeline = Pipeline().add_stage("a", above, retries=5, on_error="skip")
    pipeline.add_stage("b", below).connect("a", "b")
    with pytest.raises(mpipe.StageError, match="stage 'b'"):
        pipeline.start("inline").push(1)
    assert calls == [1]


def test_one_worker_stands_for_all_that_were_asked_for() -> None:
    with chain(lambda n: [n], workers=7).start("inline") as run:
        (worker,) = run.stats().stages["a"].workers
    assert (worker.pid, worker.restarts, worker.state) == (os.getpid(), 0, "idle")
    assert worker.memory > 0


def test_nothing_is_dropped_or_refused_because_nothing_waits() -> None:
    pipeline = chain(lambda n: [n] * 50, lambda n: None, buffer_size=1, drop_on_full=True)
    with pipeline.start("inline") as run:
        run.push(*range(100), timeout=0)
        stats = run.drain()
    assert_drained(stats, pipeline)
    assert stats.stages["b"].processed == 5000


def test_stages_already_set_up_are_torn_down_when_a_later_one_cannot_be() -> None:
    calls: list[str] = []

    def stage(name: str, breaks: bool) -> Any:
        class Noted(mpipe.Stage):
            def setup(self) -> None:
                calls.append(f"set up {name}")
                if breaks:
                    raise OSError

            def teardown(self) -> None:
                calls.append(f"tear down {name}")

        return lambda: Noted()

    with pytest.raises(mpipe.StageError, match=r"stage 'b' .* could not be set up"):
        chain(stage("a", False), stage("b", True), stage("c", False)).start("inline")
    assert calls == ["set up a", "set up b", "tear down a", "tear down b"]


def test_ctrl_c_in_a_function_passes_through_and_ends_the_run() -> None:
    def interrupted(item: int) -> list[int]:
        raise KeyboardInterrupt

    run = chain(interrupted).start("inline")
    with pytest.raises(KeyboardInterrupt):
        run.push(1)
    with pytest.raises(mpipe.Cancelled, match="interrupted by KeyboardInterrupt"):
        run.push(2)
    assert run.stats().stages["a"].in_flight == 1


def test_a_function_that_pushes_into_its_own_run_is_told_that_it_cannot() -> None:
    runs: list[mpipe.Run] = []
    pipeline = chain(lambda n: runs[0].push(n))
    runs.append(pipeline.start("inline"))
    with pytest.raises(mpipe.StageError, match="cannot push into, or close, its own inline run"):
        runs[0].push(1)


def test_a_function_may_cancel_its_own_run() -> None:
    handled: list[int] = []

    def fn(item: int) -> list[int]:
        handled.append(item)
        runs[0].cancel()
        return [item]

    runs = [chain(fn).start("inline")]
    with pytest.raises(mpipe.Cancelled, match=r"cancel\(\) was called"):
        runs[0].push(1, 2)
    assert (handled, runs[0].stats().state) == ([1], "cancelled")


def test_cancel_is_seen_before_the_next_item_that_a_stage_is_given() -> None:
    handled: list[int] = []

    def fn(item: int) -> None:
        handled.append(item)
        runs[0].cancel()

    runs = [chain(lambda n: [n] * 100, fn).start("inline")]
    with pytest.raises(mpipe.Cancelled):
        runs[0].push(1)
    assert handled == [1]


def test_cancel_is_seen_before_the_next_output_of_an_endless_stage() -> None:
    def endless(item: int) -> Iterator[int]:
        while True:
            given.append(item)
            runs[0].cancel()
            yield item

    given: list[int] = []
    runs = [chain(endless).start("inline")]
    with pytest.raises(mpipe.Cancelled):
        runs[0].push(1)
    assert given == [1]


def test_results_wait_for_another_thread_to_push() -> None:
    results: list[int] = []
    run = chain(lambda n: [n]).start("inline", results=True)
    reader = threading.Thread(target=lambda: results.extend(run.results()))
    reader.start()
    run.push(1)
    run.push(2)
    run.drain()
    reader.join(60)
    assert results == [1, 2]


def test_several_threads_may_push() -> None:
    pipeline = chain(lambda n: [n], lambda n: [n, n])
    with pipeline.start("inline") as run:
        threads = [threading.Thread(target=run.push, args=range(100)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stats = run.drain()
    assert_drained(stats, pipeline)
    assert stats.stages["b"].emitted == 800


ENTERED, LEAVE = threading.Event(), threading.Event()


def held(item: int) -> list[int]:
    ENTERED.set()
    assert LEAVE.wait(60)
    return [item]


def test_stats_do_not_wait_for_the_item_in_hand() -> None:
    run = chain(held).start("inline")
    pusher = threading.Thread(target=run.push, args=(1,))
    pusher.start()
    assert ENTERED.wait(60)
    try:
        stage = run.stats().stages["a"]
        assert (stage.received, stage.processed, stage.in_flight) == (1, 0, 1)
        assert stage.workers[0].state == "busy"
    finally:
        LEAVE.set()
        pusher.join(60)
    assert run.drain().stages["a"].processed == 1
