"""Running a pipeline on one engine or the other, and checking what holds of every run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import assert_conserved, assert_drained

import mpipe
from mpipe import Pipeline, Stats

PATIENCE_S = 60.0
"""How long a drain may take before a test counts it as a hang."""


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


def push_and_drain(run: mpipe.Run, *items: Any) -> Stats:
    run.push(*items)
    return run.drain(PATIENCE_S)
