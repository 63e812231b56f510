"""What every engine promises of items that fail, and of those that cannot travel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from contract import (
    PATIENCE_S,
    failure,
    finish,
    letters,
    one_stage,
    push_and_drain,
    rejects,
)
from reference import assert_drained

import mpipe
from mpipe import Pipeline

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


def test_an_error_of_many_lines_is_told_by_its_type_and_its_first_line(engine: str) -> None:
    def fn(item: str) -> None:
        raise ValueError(f"3 things are wrong with {item}\n  the first\n  see https://example.org")

    told = "ValueError: 3 things are wrong with x"
    (letter,) = letters(one_stage(fn, on_error="dead_letter"), engine, "x")
    assert letter.error == told
    assert "see https" in letter.traceback
    assert failure(one_stage(fn), engine, "x").args[0].endswith(f"source item 0: {told}")


def test_an_error_of_any_length_in_any_script_is_told(engine: str) -> None:
    def fn(item: str) -> None:
        raise ValueError(f"bad record: {item}")

    error = failure(one_stage(fn), engine, "\u8a18\u9304" * 60_000)
    assert error.args[0].startswith("stage 's' (worker 0) failed on source item 0: ValueError: bad")
    assert "in fn" in failure(one_stage(fn), engine, "short").remote_traceback


def test_a_dead_letter_over_the_size_limit_comes_without_its_item_and_with_less_text(
    engine: str,
) -> None:
    def fn(item: str) -> None:
        raise ValueError(item)

    pipeline = one_stage(fn, on_error="dead_letter")
    with pipeline.start(engine, max_item_bytes=70_000) as run:
        run.push("x" * 60_000, "y")
        assert_drained(run.drain(PATIENCE_S), pipeline)
        first, second = run.dead_letters()
    assert (first.item, second.item) == (None, "y")
    assert first.error.startswith("ValueError: xxx")
    assert "the item is lost: pickled it takes" in first.error
    assert len(first.error) < 50_000
    assert "ValueError: xxx" in first.traceback or first.traceback.endswith("x\n")


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
        assert str(caught.value).startswith(
            f"push to stage 's': item 1 of 3 (source item 1): {says}"
        )
        run.push(3)
        run.close()
        assert list(run.results()) == [1, 3]
        assert_drained(run.drain(PATIENCE_S), pipeline)


def test_a_source_with_an_item_that_cannot_travel_fails_the_run(engine: str) -> None:
    pipeline = one_stage(lambda n: [n])
    for good in [0, 1, 2, 100] * 5:  # it is found by either of two threads
        outputs = pipeline.run([*range(good), threading.Lock(), *range(5)], engine=engine)
        with pytest.raises(mpipe.ItemError, match=rf"\(source item {good}\): {UNSENDABLE}"):
            list(outputs)


def test_the_failure_of_a_run_that_is_the_source_of_another_fails_that_too(engine: str) -> None:
    for bad in [0, 1, 5, 50] * 3:
        inner = one_stage(rejects(bad)).run(range(100), engine=engine)
        with pytest.raises(mpipe.StageError, match=f"source item {bad}: ValueError: not {bad}"):
            list(mpipe.imap(abs, inner, workers=1, engine=engine))


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
