"""Items that kill or hang their worker are failed alone; what is around them comes through once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from functions import exits, hangs_deaf_to_signals, hangs_with_the_interpreter_locked, segfaults
from helpers import wait_until

import mpipe

POISONS: list[tuple[Callable[[Any], None], str]] = [
    (exits, "exit code 3"),
    (segfaults, "killed by SIGSEGV"),
    (hangs_deaf_to_signals, "killed at its timeout of 0.2 s"),
    (hangs_with_the_interpreter_locked, "killed at its timeout of 0.2 s"),
]
SPEAKING = (segfaults, hangs_with_the_interpreter_locked)
"""Those whose worker can still say where it was."""


def says_where(poison: Callable[[Any], None], trace: str) -> bool:
    return f"in {poison.__name__}\n" in trace if poison in SPEAKING else trace == ""


def in_one_frame(
    pipeline: mpipe.Pipeline,
    items: list[Any],
    meanwhile: Callable[[mpipe.Run], None] | None = None,
    **options: Any,
) -> tuple[list[Any], mpipe.Stats, list[mpipe.DeadLetter]]:
    """Run `items` through in one frame, after enough zeros for the frame sizes to grow."""
    with pipeline.start(results=True, **options) as run:
        source: Any = run._engine
        names = pipeline.graph.sources
        while source._source.frame_items(names) < len(items):
            run.push(0)
            time.sleep(0.001)
        run.push(*items)
        if meanwhile is not None:
            meanwhile(run)
        run.close()
        outputs = list(run.results())
        stats = run.drain()
        letters = list(run.dead_letters())
    return [output for output in outputs if output != 0], stats, letters


@pytest.mark.parametrize("on_error", ["skip", "dead_letter"])
@pytest.mark.parametrize(("poison", "how"), POISONS, ids=[fn.__name__ for fn, _ in POISONS])
def test_poison_items_anywhere_in_a_frame_are_failed_alone(
    poison: Callable[[Any], None], how: str, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = (1, 7, 16)  # the first, one in the middle, the last

    def work(x: int) -> int:
        if x in bad:
            poison(x)
        return x

    pipeline = mpipe.Pipeline().add_map(
        "work", work, workers=1, on_error=on_error, max_crashes=2, timeout=0.2
    )
    outputs, stats, letters = in_one_frame(pipeline, list(range(1, 17)))
    assert sorted(outputs) == [x for x in range(1, 17) if x not in bad]
    work_stats = stats.stages["work"]
    assert (work_stats.failed, work_stats.restarts) == (3, 6)
    assert work_stats.received == work_stats.processed + work_stats.failed
    reason = f"it killed its worker 2 times (worker 0; the last time: {how})"
    if on_error == "skip":
        logged = [record.getMessage() for record in caplog.records]
        assert len(logged) == 3
        assert all("stage 'work' (worker 0) failed on source item" in line for line in logged)
        assert all(reason in line for line in logged)
    else:
        first = stats.edges[0].emitted - 16
        assert [(letter.item, letter.position) for letter in letters] == [
            (x, f"source item {first + x - 1}") for x in bad
        ]
        assert {letter.error for letter in letters} == {f"WorkerDied: {reason}"}
        assert all(says_where(poison, letter.traceback) for letter in letters)
        assert {(letter.stage, letter.attempts) for letter in letters} == {("work", 2)}


@pytest.mark.parametrize(("poison", "how"), POISONS, ids=[fn.__name__ for fn, _ in POISONS])
def test_under_raise_a_poison_item_fails_the_run_by_its_name(
    poison: Callable[[Any], None], how: str
) -> None:
    pipeline = mpipe.Pipeline().add_map(
        "work", lambda x: poison(x) if x == 5 else x, workers=1, max_crashes=2, timeout=0.2
    )
    with pytest.raises(mpipe.WorkerDied) as died:
        list(pipeline.run(range(10)))
    assert died.value.args[0] == (
        f"a worker of stage 'work' (worker 0) died, {how}: an item is to blame, it killed its "
        f"worker 2 times; it was working on source item 5"
    )
    assert (died.value.stage, died.value.worker) == ("work", 0)
    assert died.value.position == "source item 5"
    assert says_where(poison, died.value.remote_traceback)
    assert died.value.remote_traceback in str(died.value)
    assert died.value.exitcode == {"exit": 3, "SIGS": -11, "at i": -9}.get(
        how.removeprefix("killed ").removeprefix("by ")[:4], 0
    )


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_more_poison_items_than_harmless_ones_in_a_frame(start_method: str) -> None:
    pipeline = mpipe.Pipeline().add_map(
        "work",
        lambda x: (x % 5 and exits(x)) or x,
        workers=1,
        on_error="dead_letter",
        max_crashes=1,
    )
    items = list(range(1, 21))
    outputs, stats, letters = in_one_frame(pipeline, items, start_method=start_method)
    assert sorted(outputs) == [5, 10, 15, 20]
    assert [letter.item for letter in letters] == [x for x in items if x % 5]
    assert stats.stages["work"].restarts == 16


@pytest.mark.parametrize("poison", [exits, hangs_deaf_to_signals])
def test_outputs_of_a_poison_item_that_are_out_stay_out_and_are_counted(
    poison: Callable[[Any], None],
) -> None:
    def expand(x: int) -> Iterator[tuple[int, int]]:
        for i in range(4):
            time.sleep(0.003)  # long enough for each output to be sent on by itself
            yield (x, i)
            if x == 3 and i == 2:
                poison(x)

    pipeline = mpipe.Pipeline()
    pipeline.add_stage(
        "expand", expand, workers=2, on_error="skip", max_crashes=2, timeout=0.2, buffer_size=100
    )
    for name in ("left", "right"):
        pipeline.add_map(name, lambda y, name=name: (name, y), workers=1).connect("expand", name)
    outputs = pipeline.run(range(12))
    whole = {(x, i) for x in range(12) for i in range(4)} - {(3, 3)}
    assert Counter(outputs) == Counter((name, y) for name in ("left", "right") for y in whole)
    stats = outputs.stats()
    assert stats.stages["expand"].emitted == len(whole)
    assert [edge.received for edge in stats.edges if edge.source == "expand"] == [len(whole)] * 2
    assert stats.stages["expand"].failed == 1


def test_an_output_that_only_one_of_two_stages_had_counts_as_dropped_at_the_other(
    tmp_path: Path,
) -> None:
    opened, tried = tmp_path / "open", tmp_path / "tried"

    def expand(x: int) -> Iterator[int]:
        if x == 1 and tried.exists():
            os._exit(1)
        if x == 1:
            tried.touch()
        yield x

    def wait(x: int) -> int:
        while not opened.exists():
            time.sleep(0.01)
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("expand", expand, workers=1, on_error="skip", max_crashes=1)
    pipeline.add_map("quick", lambda x: x, workers=1).connect("expand", "quick")
    pipeline.add_map("slow", wait, workers=1, buffer_size=1).connect("expand", "slow")
    with pipeline.start() as run:
        run.push(0)
        wait_until(lambda: run.stats().stages["slow"].workers[0].state == "busy")
        run.push(0)
        wait_until(lambda: run.stats().stages["quick"].processed == 2)
        run.push(1)  # its output gets to "quick", and not to "slow"
        wait_until(lambda: run.stats().stages["quick"].processed == 3)
        wait_until(lambda: run.stats().stages["expand"].workers[0].state == "blocked")
        os.kill(run.stats().stages["expand"].workers[0].pid, signal.SIGKILL)
        wait_until(lambda: run.stats().stages["expand"].restarts == 2)
        opened.touch()
        run.push(0)
        stats = run.drain()
    assert stats.stages["expand"].emitted == 4
    assert [(e.received, e.dropped) for e in stats.edges[1:]] == [(4, 0), (3, 1)]
    assert (stats.stages["expand"].processed, stats.stages["expand"].failed) == (3, 1)


def test_an_item_that_kills_its_worker_in_a_retry_is_blamed() -> None:
    tries: list[int] = []

    def work(x: int) -> int:
        if x == 5:
            tries.append(x)
            if len(tries) == 2:
                os._exit(1)
            raise OSError("try again")
        return x

    pipeline = mpipe.Pipeline().add_map(
        "work", work, workers=1, on_error="dead_letter", retries=3, max_crashes=2
    )
    outputs, stats, letters = in_one_frame(pipeline, [1, 5, 9])
    assert sorted(outputs) == [1, 9]
    assert [letter.item for letter in letters] == [5]
    assert stats.stages["work"].restarts == 2


class Bomb:
    """Kills who unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exits, (0,)


def test_a_payload_that_kills_its_reader_fails_the_run_and_names_its_place() -> None:
    pipeline = mpipe.Pipeline().add_map("work", lambda x: x, workers=1, on_error="skip")
    run = pipeline.start()
    run.push(0, 0, 0)
    wait_until(lambda: run.stats().stages["work"].processed == 3)
    run.push(Bomb())
    with pytest.raises(mpipe.WorkerDied) as died:
        run.drain()
    assert str(died.value) == (
        "a worker of stage 'work' (worker 0) died, exit code 3: workers die again and again on the "
        "same items, outside of the stage's function (while they are unpickled, or what came of "
        "them is sent on); it was working on source item 3"
    )


def test_neighbours_of_a_poison_item_are_handled_at_most_twice(tmp_path: Path) -> None:
    """The replacement counts item by item, so later deaths do not repeat what is done."""

    def work(x: int) -> int:
        with (tmp_path / "calls").open("a") as calls:
            calls.write(f"{x}\n")
        if x % 4 == 2:
            os._exit(1)
        return x

    pipeline = mpipe.Pipeline().add_map(
        "work", work, workers=1, on_error="skip", max_crashes=3, buffer_size=100
    )
    outputs, _, _ = in_one_frame(pipeline, list(range(1, 21)))
    assert sorted(outputs) == [x for x in range(1, 21) if x % 4 != 2]
    calls = Counter(map(int, (tmp_path / "calls").read_text().split()))
    assert max(calls[x] for x in range(1, 21) if x % 4 != 2) <= 2


def test_a_crash_in_setup_fails_the_run_with_its_signal_and_where_it_was() -> None:
    class Broken(mpipe.Stage):
        def setup(self) -> None:
            segfaults(None)

    pipeline = mpipe.Pipeline().add_stage("broken", Broken, workers=1)
    with pytest.raises(mpipe.WorkerDied, match=r"'broken'.*SIGSEGV.*while they are set up") as died:
        list(pipeline.run([1]))
    assert "in segfaults\n" in died.value.remote_traceback
    assert "in setup\n" in died.value.remote_traceback


def test_an_exception_in_setup_of_a_replacement_fails_the_run_with_its_traceback(
    tmp_path: Path,
) -> None:
    class Flaky(mpipe.Stage):
        def setup(self) -> None:
            if (tmp_path / "died").exists():
                raise ConnectionError("no more licences")

        def process(self, x: int) -> list[int]:
            (tmp_path / "died").touch()
            os._exit(1)

    pipeline = mpipe.Pipeline().add_stage("flaky", Flaky, workers=1)
    with pytest.raises(mpipe.StageError, match=r"'flaky'.*could not be set up") as error:
        list(pipeline.run([1]))
    assert "ConnectionError: no more licences" in error.value.remote_traceback


class Counting(mpipe.Stage):
    """Numbers its items; passes each through `fn`."""

    def __init__(self, fn: Callable[[int], int]) -> None:
        self.fn = fn
        self.count = 0

    def process(self, x: int) -> list[int]:
        self.count += x > 0
        return [self.fn(x)]

    def snapshot(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state


@pytest.mark.parametrize("kind", ["map", "snapshot"])
def test_an_item_that_was_handled_before_is_not_failed_for_later_deaths_on_it(
    kind: str, tmp_path: Path
) -> None:
    """What came of it and of those behind it is out; to fail it would double all of that."""

    def work(x: int) -> int:
        late, again = tmp_path / "late", tmp_path / f"again {len(os.listdir(tmp_path))}"
        if x == 40 and not late.exists():
            late.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 3 and late.exists() and not again.name.endswith("4"):
            again.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def slow(x: int) -> int:
        time.sleep(0.004)
        return x

    pipeline = mpipe.Pipeline()
    options: dict[str, Any] = {"workers": 1, "on_error": "skip", "max_crashes": 2}
    if kind == "map":
        pipeline.add_map("work", work, **options)
    else:
        pipeline.add_stage("work", Counting(work), **options)
    pipeline.add_map("slow", slow, workers=1).connect("work", "slow")
    outputs, stats, _ = in_one_frame(pipeline, list(range(1, 65)))
    assert Counter(outputs) == Counter(range(1, 65))
    assert (stats.stages["work"].failed, stats.stages["work"].restarts) == (0, 4)
    assert len(os.listdir(tmp_path)) == 4


def test_what_a_poison_item_had_given_is_told_from_what_comes_after_it_also_with_snapshots(
    tmp_path: Path,
) -> None:
    late = tmp_path / "late"

    def work(x: int) -> int:
        if x == 3:
            os._exit(1)
        if x == 60 and not late.exists():
            late.touch()
            os._exit(1)
        return x

    def slow(x: int) -> int:
        time.sleep(0.004)
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("work", Counting(work), workers=1, on_error="skip", max_crashes=2)
    pipeline.add_map("slow", slow, workers=1).connect("work", "slow")
    outputs, stats, _ = in_one_frame(pipeline, list(range(1, 65)))
    assert Counter(outputs) == Counter({*range(1, 65)} - {3})
    assert stats.stages["work"].failed == 1


def test_an_item_that_one_of_two_stages_has_got_past_is_not_failed_for_later_deaths_on_it(
    tmp_path: Path,
) -> None:
    """One stage has all outputs of the frame when its worker dies waiting for room at the other."""
    first = tmp_path / "first"

    def work(x: int) -> int:
        if x == 1 and not first.exists():
            first.touch()
        elif x == 3 and first.stat().st_size and len(os.listdir(tmp_path)) < 3:
            (tmp_path / f"again {len(os.listdir(tmp_path))}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def slow(x: int) -> int:
        time.sleep(0.01)
        return x

    pipeline = mpipe.Pipeline().add_map("work", work, workers=1, on_error="skip", max_crashes=2)
    pipeline.add_map("quick", lambda x: x, workers=1).connect("work", "quick")
    pipeline.add_map("slow", slow, workers=1, buffer_size=2).connect("work", "slow")

    def kill(run: mpipe.Run) -> None:
        wait_until(first.exists)
        wait_until(lambda: run.stats().edges[1].received > 64)
        wait_until(lambda: run.stats().stages["work"].workers[0].state == "blocked")
        first.write_text("killed")
        os.kill(run.stats().stages["work"].workers[0].pid, signal.SIGKILL)

    outputs, stats, _ = in_one_frame(pipeline, list(range(1, 65)), kill)
    assert Counter(outputs) == Counter([*range(1, 65)] * 2)
    assert [edge.dropped for edge in stats.edges] == [0, 0, 0]
    assert (stats.stages["work"].failed, stats.stages["work"].restarts) == (0, 3)


def test_a_poison_item_is_failed_alone_though_frames_before_it_are_not_counted_yet() -> None:
    """Snapshots that take long are taken after several frames; what came of those is out."""

    class Slow(Counting):
        def snapshot(self) -> int:
            time.sleep(0.02)
            return super().snapshot()

    def work(x: int) -> int:
        time.sleep(0.007)
        if x == 27:
            os._exit(3)
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("work", Slow(work), workers=1, on_error="skip", max_crashes=2)
    outputs = pipeline.run(range(40))
    assert Counter(outputs) == Counter({*range(40)} - {27})
    stage = outputs.stats().stages["work"]
    assert (stage.failed, stage.restarts) == (1, 2)
