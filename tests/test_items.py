"""What travels between processes: any picklable item, large ones without copies on reading."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mpipe


def through(item: Any, **options: Any) -> Any:
    """Send one item through a process and back."""
    pipeline = mpipe.Pipeline().add_map("copy", lambda x: x, workers=1)
    (out,) = pipeline.run([item], **options)
    return out


@dataclasses.dataclass
class Sample:
    label: str
    image: np.ndarray
    parts: dict[str, list[np.ndarray]]


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    "size", [0, 1, 100, 4096, 65_400, 65_536, 1_000_000, 33_554_433], ids="{:,}".format
)
def test_bytes_of_every_size_arrive_unchanged(size: int) -> None:
    item = os.urandom(size)
    assert through(item) == item


def test_an_item_of_a_gibibyte_arrives_unchanged() -> None:
    item = np.zeros(1 << 30, np.uint8)
    item[:: 1 << 20] = 7
    out = through(item, max_item_bytes=(1 << 30) + 4096)
    assert out.nbytes == 1 << 30
    assert np.array_equal(out, item)


@pytest.mark.parametrize("side", [3, 40, 200, 1500])
def test_arrays_arrive_unchanged_alone_nested_and_not_contiguous(side: int) -> None:
    image = np.arange(side * side, dtype=np.float64).reshape(side, side)
    item = Sample("x", image, {"a": [image.T, image[::2, ::3]], "b": [np.asfortranarray(image)]})
    out = through(item)
    assert out.label == "x"
    assert np.array_equal(out.image, image)
    assert np.array_equal(out.parts["a"][0], image.T)
    assert np.array_equal(out.parts["a"][1], image[::2, ::3])
    assert np.array_equal(out.parts["b"][0], image)


def test_named_tuples_lambdas_and_local_classes_are_items_too() -> None:
    class Local:
        value = 5

    assert through(Point(1, 2)) == Point(1, 2)
    assert through(lambda x: x + 1)(1) == 2
    assert through(Local()).value == 5


def test_a_worker_reads_large_arrays_from_shared_memory_and_may_change_them() -> None:
    def inspect(array: np.ndarray) -> list[tuple[bool, bool, float]]:
        owner = array
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        mapped = type(getattr(owner, "obj", owner)).__name__ == "mmap"
        array += 1
        return [(mapped, array.flags.writeable, float(array.sum()))]

    pipeline = mpipe.Pipeline().add_stage("inspect", inspect, workers=1)
    outputs = list(pipeline.run([np.zeros(200_000), np.ones(200_000)]))
    assert sorted(outputs) == [(True, True, 200_000.0), (True, True, 400_000.0)]


def test_arrays_that_user_code_keeps_stay_as_they_were() -> None:
    class Keeper(mpipe.Stage):
        stateful = True

        def setup(self) -> None:
            self.kept: list[np.ndarray] = []

        def process(self, array: np.ndarray) -> None:
            self.kept.append(array[1000:2000])

        def finish(self) -> list[list[float]]:
            return [sorted(float(a[0]) for a in self.kept if (a == a[0]).all())]

    pipeline = mpipe.Pipeline().add_stage("keep", Keeper, workers=1, buffer_size=2)
    (kept,) = pipeline.run(np.full(100_000, float(i)) for i in range(30))
    assert kept == [float(i) for i in range(30)]


def test_a_change_made_in_place_before_a_crash_is_not_seen_by_the_replacement(
    tmp_path: Path,
) -> None:
    def work(array: np.ndarray) -> list[float]:
        array += 1
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        return [float(array[0])]

    pipeline = mpipe.Pipeline().add_stage("work", work, workers=1)
    assert list(pipeline.run([np.zeros(100_000)])) == [1.0]


def test_results_own_their_memory() -> None:
    pipeline = mpipe.Pipeline().add_map("make", lambda n: np.full(300_000, float(n)), workers=1)
    arrays = list(pipeline.run(range(20)))
    assert sorted(float(a[0]) for a in arrays) == [float(n) for n in range(20)]
    assert all((a == a[0]).all() for a in arrays)


def test_an_output_over_the_limit_fails_naming_stage_and_type() -> None:
    pipeline = mpipe.Pipeline().add_map("grow", lambda n: bytes(n), workers=1)
    with pytest.raises(mpipe.StageError, match=r"'grow'.*type bytes cannot be sent.*limit"):
        list(pipeline.run([10, 1_000_000], max_item_bytes=100_000))


def test_an_output_that_cannot_be_pickled_is_skipped_alone_under_skip() -> None:
    def work(x: int) -> Any:
        return threading.Lock() if x % 10 == 3 else x

    pipeline = mpipe.Pipeline().add_map("work", work, workers=2, on_error="skip")
    outputs = pipeline.run(range(100))
    assert sorted(outputs) == [x for x in range(100) if x % 10 != 3]
    stats = outputs.stats().stages["work"]
    assert (stats.processed, stats.failed, stats.emitted) == (90, 10, 90)


def test_a_pushed_item_that_cannot_be_sent_is_refused_at_the_callers_line() -> None:
    with mpipe.Pipeline().add_map("copy", lambda x: x, workers=1).start() as run:
        with pytest.raises(mpipe.ItemError, match=r"'copy'.*item 1 of 3.*lock"):
            run.push(1, threading.Lock(), 3)
        run.push(2)
        assert run.drain().stages["copy"].processed == 2


def test_memory_of_large_frames_is_given_back() -> None:
    def shared_kib() -> int:
        with open("/proc/self/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss_Shmem"))

    pipeline = mpipe.Pipeline()
    pipeline.add_map("make", lambda n: bytes(n), workers=1, buffer_size=50)
    pipeline.add_map("look", lambda data: (len(data), shared_kib()), workers=1, buffer_size=50)
    pipeline.connect("make", "look")
    sizes = list(pipeline.run([4_000_000] * 200))
    assert [size for size, _ in sizes] == [4_000_000] * 200
    assert max(kib for _, kib in sizes) < 350_000, "200 frames of 4 MB pass through 50 slots"


def test_items_are_spread_over_all_workers() -> None:
    pipeline = mpipe.Pipeline().add_map("pid", lambda _: os.getpid(), workers=3, buffer_size=30)
    assert len(set(pipeline.run(range(3000)))) >= 2
