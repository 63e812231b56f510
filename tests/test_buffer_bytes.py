"""`buffer_bytes`: what waits in front of a stage is bounded in bytes too, and large items pass."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import killing, wait_until

import mpipe
from mpipe.policy.batching import FRAME_BYTES
from mpipe.transport.producer import Producer

MIB = 1 << 20


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def slow_length(item: bytes) -> int:
    time.sleep(0.0005)
    return len(item)


def shared_bytes() -> int:
    """Memory behind the anonymous files that this process holds: those of its runs."""
    sizes = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = Path("/proc/self/fd", name)
            if "memfd:mpipe" in str(path.readlink()):
                sizes[path.stat().st_ino] = path.stat().st_blocks * 512
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("options", "budget"), [({"buffer_bytes": 64 * MIB}, 64 * MIB), ({}, 8 * MIB)]
)
def test_push_waits_for_the_bytes_of_what_is_queued_and_hands_back_the_rest(
    tmp_path: Path, options: dict[str, int], budget: int
) -> None:
    pipeline = mpipe.Pipeline().add_map(
        "slow", lambda x: wait_for(tmp_path / "open"), workers=1, **options
    )
    items = [bytes(MIB) for _ in range(100)]
    with pipeline.start() as run:
        run.push(items[0])
        wait_until(lambda: run.stats().stages["slow"].queued == 0)
        with pytest.raises(mpipe.Full) as full:
            run.push(*items, timeout=0.5)
        queued = run.stats().stages["slow"].queued
        assert queued == 100 - len(full.value.items)
        assert budget * 0.8 <= queued * MIB <= budget
        assert shared_bytes() <= budget + 2 * MIB
        (tmp_path / "open").touch()
        run.push(*full.value.items)
        assert run.drain().stages["slow"].processed == 101


def test_a_stage_in_the_middle_holds_back_who_feeds_it(tmp_path: Path) -> None:
    pipeline = mpipe.Pipeline()
    pipeline.add_stage("expand", lambda n: (bytes(MIB) for _ in range(n)), workers=2)
    pipeline.add_map(
        "slow", lambda x: wait_for(tmp_path / "open"), workers=1, buffer_bytes=4 * MIB
    ).connect("expand", "slow")
    with pipeline.start() as run:
        run.push(50, 50)

        def all_blocked() -> bool:
            return all(w.state == "blocked" for w in run.stats().stages["expand"].workers)

        wait_until(all_blocked)
        time.sleep(0.3)
        assert run.stats().stages["slow"].received <= 4 + 1 + 2
        (tmp_path / "open").touch()
        assert run.drain().stages["slow"].processed == 100


@pytest.mark.parametrize("buffer_size", [1, 3, 1000])
def test_items_larger_than_the_buffer_pass_one_at_a_time(buffer_size: int) -> None:
    options = {"workers": 2, "buffer_size": buffer_size, "buffer_bytes": 1000}
    pipeline = mpipe.Pipeline()
    for name in "ab":
        pipeline.add_map(name, lambda x: x, **options)
    pipeline.connect("a", "b")
    sizes = [1, 300_000, 5, 2_000_000, 999, 1001] * 10
    assert sorted(map(len, pipeline.run(map(bytes, sizes)))) == sorted(sizes)


def test_large_items_are_dropped_where_there_is_no_room_and_small_ones_still_pass(
    tmp_path: Path,
) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline()
    pipeline.add_map("copy", lambda x: x, workers=2, buffer_size=10)
    pipeline.add_map(
        "slow",
        lambda x: (wait_for(opened), len(x))[1],
        workers=1,
        buffer_size=20,
        buffer_bytes=10_000,
        drop_on_full=True,
    ).connect("copy", "slow")
    with pipeline.start(results=True) as run:
        run.push(b"taken")
        wait_until(lambda: run.stats().stages["slow"].workers[0].state == "busy")
        for size in (6000, 6000, 6000):  # the first takes most of the room
            run.push(bytes(size))
            wait_until(lambda: run.stats().stages["copy"].in_flight == 0)
        for _ in range(6):
            run.push(b"small")
            wait_until(lambda: run.stats().stages["copy"].in_flight == 0)
        opened.touch()
        run.close()
        assert Counter(run.results()) == Counter({5: 7, 6000: 1})
        assert run.drain().stages["slow"].dropped == 2


def test_workers_killed_while_large_items_wait_for_room_change_nothing() -> None:
    pipeline = mpipe.Pipeline()
    for name in "abc":
        pipeline.add_map(
            name, lambda x: x, workers=2, buffer_size=50, buffer_bytes=400_000, max_crashes=10**6
        )
    pipeline.connect("a", "b").connect("b", "c")
    sizes = [random.Random(5).randrange(300_000) + n for n in range(300)]
    outputs = pipeline.run(bytes(size) for size in sizes)
    with killing(outputs, *"abc") as kills:
        assert Counter(map(len, outputs)) == Counter(sizes)
    assert kills
    stages = outputs.stats().stages.values()
    assert all(stage.received == stage.processed == 300 for stage in stages)


def test_unread_results_that_are_too_large_make_drain_raise_rather_than_wait_for_ever() -> None:
    pipeline = mpipe.Pipeline().add_map("copy", lambda n: bytes(n), workers=1, buffer_bytes=MIB)
    run = pipeline.start(results=True)
    run.push(*[600_000] * 10)
    with pytest.raises(mpipe.MPipeError, match=r"nobody reads its results"):
        run.drain()


def test_of_a_frame_with_a_large_item_first_nothing_is_dropped_when_only_the_rest_would_fit(
    tmp_path: Path,
) -> None:
    """Room is reckoned from the mean size in a frame; the part of it that fits may be heavier."""
    go = tmp_path / "go"

    def length(item: bytes) -> int:
        wait_for(go)
        return len(item)

    run = mpipe.Pipeline().add_map("length", length, workers=1).start(results=True)
    run.push(b"", *[bytes(MIB)] * 6)
    wait_until(lambda: run.stats().stages["length"].queued == 6)
    engine: Any = run._engine
    sizes = [3 * MIB, *[1000] * 15]
    frame = [bytes(size) for size in sizes]
    assert not isinstance(engine._source.send(frame, ("length",), 1 << 30, False), int)
    assert run.stats().edges[0].emitted == 7
    go.touch()
    run.push(*frame)
    stats = run.drain()
    assert Counter(run.results()) == Counter([0, *[MIB] * 6, *sizes])
    assert stats.edges[0].dropped == 0


def test_frames_of_items_of_very_different_sizes_lose_none_of_them_when_the_buffer_fills() -> None:
    sizes = random.Random(2).choices([100, 1000, 200_000, 3 * MIB], [20, 5, 3, 1], k=1500)
    outputs = mpipe.Pipeline().add_map("length", slow_length).run(bytes(size) for size in sizes)
    assert Counter(outputs) == Counter(sizes)
    assert outputs.stats().edges[0].dropped == 0


def test_frames_do_not_grow_heavy_when_small_items_are_followed_by_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are cut by the mean size of an item, which changes at once."""
    sizes: list[tuple[int, int]] = []
    publish = Producer.publish

    def note(self: Producer, payload: Any, tag: Any) -> None:
        sizes.append((payload.size, payload.items))
        publish(self, payload, tag)

    monkeypatch.setattr(Producer, "publish", note)

    def source() -> Iterator[Any]:
        yield from range(100_000)
        yield from (bytes(150_000) for _ in range(300))

    pipeline = mpipe.Pipeline().add_map("same", lambda x: x, workers=1)
    pipeline.add_map("length", lambda x: x if isinstance(x, int) else len(x), workers=1)
    outputs = Counter(pipeline.connect("same", "length").run(source()))
    assert outputs == Counter([*range(100_000), *[150_000] * 300])
    assert max(size for size, items in sizes if items > 1) < 2 * FRAME_BYTES + 10_000
    assert max(items for _, items in sizes) > 1000


class Heavy:
    """Counts how often it is pickled; arrives as its size."""

    pickles = 0

    def __reduce__(self) -> Any:
        Heavy.pickles += 1
        return len, (bytes(8 * MIB),)


def test_a_heavy_item_behind_many_small_ones_is_not_pickled_once_for_each_of_them() -> None:
    def source() -> Iterator[Any]:
        for _ in range(3):
            yield from range(50_000)
            yield Heavy()

    Heavy.pickles = 0
    pipeline = mpipe.Pipeline().add_map("same", lambda x: x, workers=1)
    assert sum(1 for _ in pipeline.run(source())) == 150_003
    assert Heavy.pickles < 200


@pytest.mark.parametrize("drops", [False, True])
def test_room_that_a_large_item_waited_for_in_vain_is_there_for_small_ones(
    drops: bool, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    pipeline = mpipe.Pipeline().add_stage(
        "wait",
        lambda _: wait_for(go),
        workers=1,
        buffer_size=100,
        buffer_bytes=4 * MIB,
        drop_on_full=drops,
    )
    with pipeline.start() as run:
        run.push(0)
        wait_until(lambda: run.stats().stages["wait"].workers[0].state == "busy")
        wait_until(lambda: run.stats().stages["wait"].queued == 0)
        run.push(0)
        with contextlib.suppress(mpipe.Full):
            run.push(bytes(4 * MIB), timeout=0.1)
        for x in range(5):
            run.push(x, timeout=0)
        assert run.stats().stages["wait"].queued == 6
        go.touch()
    assert run.stats().stages["wait"].dropped == drops


def test_a_small_buffer_beside_a_large_one_leaves_the_large_one_its_room(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pipeline = mpipe.Pipeline()
    pipeline.add_stage("large", lambda x: x if x is None else wait_for(go), workers=1)
    pipeline.add_stage("small", lambda x: None, workers=1, buffer_size=4)
    pipeline.add_stage("end", lambda x: None).connect("large", "end").connect("small", "end")
    with pipeline.start() as run:
        run.push(*[None] * 5000)
        run.push(0)
        with pytest.raises(mpipe.Full) as full:
            run.push(*range(3000), timeout=1.0)
        assert 3000 - len(full.value.items) > 500
        go.touch()
