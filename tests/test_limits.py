"""`max_items` and `max_memory`: workers make way for new ones, and nothing is lost with them."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mpipe
from mpipe.runtime.wear import Wear, own_memory
from mpipe.schema import make_spec

MIB = 1 << 20


class Counted(mpipe.Stage):
    """Notes each setup and teardown in a directory; returns its process with each item."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def setup(self) -> None:
        (self.notes / f"up-{os.getpid()}").touch()

    def process(self, item: int) -> list[tuple[int, int]]:
        return [(item, os.getpid())]

    def teardown(self) -> None:
        (self.notes / f"down-{os.getpid()}").touch()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_after_max_items_a_worker_is_torn_down_and_another_goes_on(
    tmp_path: Path, start_method: str
) -> None:
    pipeline = mpipe.Pipeline()
    pipeline.add_stage("work", Counted(tmp_path), workers=2, max_items=25, buffer_size=8)
    outputs = pipeline.run(range(200), start_method=start_method)
    handled = list(outputs)
    assert sorted(item for item, _ in handled) == list(range(200))
    stats = outputs.stats().stages["work"]
    per_process = Counter(pid for _, pid in handled)
    assert max(per_process.values()) < 25 + 8  # the frame that reaches it is finished
    assert stats.recycled >= 200 // (25 + 8) - 2
    assert stats.restarts == 0
    assert stats.received == stats.processed == 200
    names = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names["up"] == names["down"] == stats.recycled + 2


def test_no_worker_handles_more_than_twice_its_max_items_however_quick_they_are() -> None:
    pipeline = mpipe.Pipeline().add_map("first", abs, workers=1)
    pipeline.add_map("pid", lambda x: os.getpid(), workers=2, max_items=500)
    pipeline.connect("first", "pid")
    beside = mpipe.Pipeline().add_filter("other", lambda x: False, workers=1)
    beside.add_map("pid", lambda x: os.getpid(), workers=2, max_items=500)
    beside.add_map("join", abs, workers=1).connect("other", "join").connect("pid", "join")
    for graph in (pipeline, beside):
        handled = Counter(graph.run(range(20_000)))
        assert sum(handled.values()) == 20_000
        assert max(handled.values()) < 1000


def test_a_leaking_worker_is_replaced_between_frames_and_no_item_is_blamed() -> None:
    leaked: list[bytes] = []

    def leak(x: int) -> int:
        leaked.append(b"x" * MIB)
        return x

    outputs = (
        mpipe.Pipeline()
        .add_map("leak", leak, workers=1, max_memory=100 * MIB, max_crashes=1, buffer_size=20)
        .run(range(400))
    )
    assert sorted(outputs) == list(range(400))
    stats = outputs.stats().stages["leak"]
    assert stats.recycled + stats.restarts >= 3
    assert stats.failed == 0


def test_an_item_that_takes_too_much_memory_by_itself_is_failed_alone() -> None:
    def work(x: int) -> int:
        if x == 7:
            huge = b"x" * (300 * MIB)
            time.sleep(60)
            del huge
        return x

    outputs = (
        mpipe.Pipeline()
        .add_map(
            "work", work, workers=1, max_memory=200 * MIB, max_crashes=2, on_error="dead_letter"
        )
        .run(range(50))
    )
    assert sorted(outputs) == [x for x in range(50) if x != 7]
    (letter,) = outputs.dead_letters()
    assert (letter.item, letter.position) == (7, "source item 7")
    assert "bytes of memory, over its max_memory of 209,715,200)" in letter.error


def test_items_before_it_may_be_to_blame_for_memory_so_an_item_is_tried_in_a_new_worker() -> None:
    """With `max_crashes=1` the item that crosses the limit would be failed if it were blamed."""
    kept: list[bytes] = []

    def work(x: int) -> int:
        kept.append(b"x" * (90 * MIB))
        time.sleep(0.3)  # longer than it takes to be seen
        return x

    outputs = (
        mpipe.Pipeline()
        .add_map("work", work, workers=1, max_memory=150 * MIB, max_crashes=1, on_error="skip")
        .run(range(5))
    )
    assert sorted(outputs) == list(range(5))
    stats = outputs.stats().stages["work"]
    assert stats.failed == 0
    assert stats.restarts >= 2


def test_a_limit_that_no_worker_can_keep_fails_the_run_at_once() -> None:
    pipeline = mpipe.Pipeline().add_map("work", abs, workers=1, max_memory=1000)
    with pytest.raises(mpipe.StageError) as error:
        list(pipeline.run([1]))
    assert error.value.args[0].startswith(
        "stage 'work' (worker 0) cannot keep its limits: mpipe.errors.OptionError: max_memory is "
        "1,000 bytes, but "
    )


class Total(mpipe.Stage):
    def process(self, item: int) -> None:
        pass

    def finish(self) -> list[int]:
        return [1]


@pytest.mark.parametrize("option", ["max_items", "max_memory"])
def test_a_factory_of_a_stage_with_state_is_refused_by_its_first_worker(option: str) -> None:
    options: dict[str, Any] = {option: 10**10}
    pipeline = mpipe.Pipeline().add_stage("total", lambda: Total(), workers=1, **options)
    with pytest.raises(mpipe.StageError, match=f"OptionError: {option} replaces workers, and what"):
        list(pipeline.run([1]))


def test_a_crash_while_making_way_loses_nothing(tmp_path: Path) -> None:
    class Fragile(Counted):
        def teardown(self) -> None:
            os._exit(5)

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("work", Fragile(tmp_path), workers=1, max_items=10, buffer_size=8)
    outputs = pipeline.run(range(50))
    assert sorted(item for item, _ in outputs) == list(range(50))
    stats = outputs.stats().stages["work"]
    assert stats.restarts >= 3
    assert stats.processed == 50


@pytest.mark.parametrize("ordered", [False, True])
def test_a_stage_that_can_say_what_it_remembers_keeps_it_when_its_worker_makes_way(
    ordered: bool,
) -> None:
    class Sums(mpipe.Stage):
        def __init__(self) -> None:
            self.total = 0

        def process(self, x: int) -> list[tuple[int, int]]:
            self.total += x
            return [(x, self.total)]

        def finish(self) -> list[tuple[int, int]]:
            return [(-1, self.total)]

        def snapshot(self) -> int:
            return self.total

        def restore(self, total: int) -> None:
            self.total = total

    pipeline = mpipe.Pipeline().add_map("spread", lambda x: x, workers=2, buffer_size=20)
    pipeline.add_stage("sums", Sums, workers=1, max_items=30, buffer_size=20, ordered=ordered)
    outputs = pipeline.connect("spread", "sums").run(range(300))
    *sums, last = outputs
    assert last == (-1, sum(range(300)))
    assert sorted(x for x, _ in sums) == list(range(300))
    assert all(b - a == x for (_, a), (x, b) in itertools.pairwise(sums))
    assert outputs.stats().stages["sums"].recycled >= 4
    if ordered:
        assert [x for x, _ in sums] == list(range(300))


def test_memory_that_is_free_but_kept_for_the_next_item_uses_no_worker_up() -> None:
    def work(x: int) -> tuple[int, bool]:
        before = own_memory()
        chunks = [b"x" * (20 * MIB) for _ in range(5)]
        del chunks
        spec = make_spec("s", abs, "map", {"max_memory": before + 50 * MIB})
        return own_memory() - before, Wear(spec).add(1)

    ((kept, used_up),) = mpipe.imap(work, [1], workers=1)
    assert kept > 50 * MIB
    assert not used_up
