"""Stages with `snapshot` and `restore`: what they remember survives their workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import killing
from reference import assert_conserved
from test_failures import once

import mpipe


class Running(mpipe.Stage):
    """Emits running sums, which depend on every item before; `size` makes its state large."""

    def __init__(self, marks: Path | None = None, size: int = 0) -> None:
        self.marks = marks
        self.padding = bytes(size)

    def setup(self) -> None:
        self.total = self.count = 0

    def process(self, item: int) -> list[tuple[int, int]]:
        self.count += 1
        self.total += item
        if self.marks and item % 20 == 7 and once(self.marks / str(item)):
            os.kill(os.getpid(), signal.SIGKILL)
        return [(item, self.total)] * (item % 3)

    def finish(self) -> list[tuple[str, int, int]]:
        if self.marks and once(self.marks / "finish"):
            os.kill(os.getpid(), signal.SIGKILL)
        return [("end", self.count, self.total)]

    def snapshot(self) -> tuple[int, int, bytes]:
        return self.count, self.total, self.padding

    def restore(self, state: tuple[int, int, bytes]) -> None:
        self.count, self.total, self.padding = state


def expected(items: range) -> list[Any]:
    total, outputs = 0, []
    for item in items:
        total += item
        outputs += [(item, total)] * (item % 3)
    return [*outputs, ("end", len(items), total)]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_a_state_survives_kills_in_process_and_finish_exactly(
    tmp_path: Path, size: int, ordered: bool
) -> None:
    pipeline = mpipe.Pipeline()
    stage = Running(tmp_path, size)
    pipeline.add_stage("sum", stage, workers=1, ordered=ordered, buffer_size=30)
    outputs = pipeline.run(range(400))
    assert list(outputs) == expected(range(400))
    stats = outputs.stats()
    assert stats.stages["sum"].restarts == 21
    assert_conserved(stats, pipeline)


def test_states_of_several_workers_survive_kills_at_random() -> None:
    pipeline = mpipe.Pipeline().add_stage("spread", lambda x: [x, x + 1], workers=2)
    pipeline.add_stage("sum", Running, workers=3, buffer_size=25, max_crashes=10**6)
    pipeline.connect("spread", "sum")
    outputs = pipeline.run(range(4000))
    with killing(outputs, "sum") as kills:
        ends = [out for out in outputs if out[0] == "end"]
    assert kills
    assert len(ends) == 3
    assert sum(count for _, count, _ in ends) == 8000
    assert sum(total for _, _, total in ends) == sum(x + x + 1 for x in range(4000))
    assert_conserved(outputs.stats(), pipeline)


def test_frames_are_kept_while_a_large_state_is_not_saved() -> None:
    """A state that takes longer to save than a frame to handle is not saved after each frame."""

    class Counted(Running):
        saved = 0

        def snapshot(self) -> Any:
            self.saved += 1
            return super().snapshot()

        def finish(self) -> list[Any]:
            return [self.saved]

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("sum", Counted(size=20_000_000), workers=1, buffer_size=4)
    outputs = list(pipeline.run(range(0, 3000, 3)))
    assert 1 <= outputs[-1] < 300


def test_a_worker_without_a_snapshot_fails_the_run_and_says_what_to_define() -> None:
    class Forgetful(mpipe.Stage):
        stateful = True

        def process(self, item: int) -> list[int]:
            os._exit(1)

    pipeline = mpipe.Pipeline().add_stage("sum", Forgetful, workers=1)
    with pytest.raises(mpipe.WorkerDied, match=r"'sum'.*define snapshot\(\) and restore\(state\)"):
        list(pipeline.run(range(3)))


@pytest.mark.parametrize(("defined", "missing"), [("snapshot", "restore"), ("restore", "snapshot")])
def test_half_of_the_two_methods_is_an_error(defined: str, missing: str) -> None:
    body = {defined: lambda self, *_: None, "process": lambda self, item: [item]}
    half = type("Half", (mpipe.Stage,), body)
    with pytest.raises(mpipe.OptionError, match=rf"'half'.*must define {missing}\("):
        mpipe.Pipeline().add_stage("half", half)
    with pytest.raises(mpipe.StageError, match=rf"'half'.*must define {missing}\("):
        list(mpipe.Pipeline().add_stage("half", lambda: half(), workers=1).run(range(3)))


def test_a_state_that_cannot_be_saved_fails_the_run_with_its_traceback() -> None:
    class Open(mpipe.Stage):
        def process(self, item: int) -> list[int]:
            return [item]

        def snapshot(self) -> Any:
            return (i for i in range(3))

        def restore(self, state: Any) -> None: ...

    pipeline = mpipe.Pipeline().add_stage("open", Open, workers=1)
    with pytest.raises(mpipe.StageError, match=r"'open'.*failed in snapshot\(\).*generator"):
        list(pipeline.run(range(3)))
