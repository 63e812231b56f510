"""Bounds: nothing runs ahead of the buffers, and nothing is dropped unless the stage says so."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until

import mpipe
from mpipe.engines import reader


def gate(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def test_push_accepts_the_buffer_and_the_frames_in_hand_then_hands_back_the_rest(
    tmp_path: Path,
) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline().add_map("slow", lambda _: gate(opened), workers=2, buffer_size=10)
    with pipeline.start() as run:
        run.push(0, 1)
        wait_until(lambda: run.stats().stages["slow"].queued == 0)
        with pytest.raises(mpipe.Full) as full:
            run.push(*range(2, 20), timeout=0.2)
        assert full.value.items == tuple(range(12, 20))
        stats = run.stats().stages["slow"]
        assert (stats.received, stats.queued, stats.in_flight) == (12, 10, 12)
        opened.touch()
        run.push(*full.value.items)
        assert run.drain().stages["slow"].processed == 20


def test_a_buffer_of_one_holds_one_item(tmp_path: Path) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline().add_map("slow", lambda _: gate(opened), workers=1, buffer_size=1)
    with pipeline.start() as run:
        run.push(0)
        wait_until(lambda: run.stats().stages["slow"].queued == 0)
        run.push(1)
        with pytest.raises(mpipe.Full):
            run.push(2, timeout=0)
        opened.touch()


def test_an_iterable_is_pulled_only_as_far_as_the_buffers_allow(tmp_path: Path) -> None:
    opened, pulled = tmp_path / "open", []

    def source() -> Iterator[int]:
        for number in range(1000):
            pulled.append(number)
            yield number

    pipeline = mpipe.Pipeline()
    pipeline.add_map("first", lambda x: x, workers=1, buffer_size=5)
    pipeline.add_map("last", lambda x: (gate(opened), x)[1], workers=1, buffer_size=5)
    pipeline.connect("first", "last")
    with pipeline.run(source()) as outputs:
        results: list[int] = []
        reader = threading.Thread(target=lambda: results.extend(outputs))
        reader.start()

        def settled() -> bool:
            before = len(pulled)
            time.sleep(0.5)
            return before == len(pulled) and before > 0

        wait_until(settled, within=20)
        # two buffers of five, a frame in each worker's hand, one frame being cut by the source
        assert len(pulled) <= 5 + 5 + 2 * 2 + 3
        opened.touch()
        reader.join()
    assert sorted(results) == list(range(1000))


def test_drop_on_full_drops_and_counts_pushes(tmp_path: Path) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline()
    pipeline.add_map(
        "slow", lambda x: (gate(opened), x)[1], workers=1, buffer_size=4, drop_on_full=True
    )
    with pipeline.start(results=True) as run:
        run.push(*range(100))
        edge = run.stats().edges[0]
        assert edge.emitted == 100
        assert 100 - 4 - 4 <= edge.dropped <= 96
        opened.touch()
        run.close()
        outputs = list(run.results())
        stats = run.drain()
    assert len(outputs) == stats.stages["slow"].processed == 100 - stats.stages["slow"].dropped


def test_drop_on_full_drops_and_counts_what_an_upstream_stage_emits(tmp_path: Path) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline()
    pipeline.add_stage("expand", lambda n: range_list(n), workers=2, buffer_size=10)
    pipeline.add_map(
        "slow", lambda x: (gate(opened), x)[1], workers=1, buffer_size=4, drop_on_full=True
    )
    pipeline.add_map("all", lambda x: x, workers=1, buffer_size=4)
    pipeline.connect("expand", "slow").connect("expand", "all")
    with pipeline.start() as run:
        run.push(*[50] * 10)
        wait_until(lambda: run.stats().stages["all"].processed == 500)
        opened.touch()
        stats = run.drain()
    slow = stats.stages["slow"]
    assert slow.dropped >= 500 - 4 - 5
    assert slow.processed == slow.received == 500 - slow.dropped
    assert stats.stages["all"].dropped == 0


def range_list(count: int) -> list[int]:
    return list(range(count))


def test_one_item_that_expands_to_millions_runs_in_bounded_memory() -> None:
    def peak_kib(_: int) -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)

    def expand(count: int) -> Iterator[int]:
        before = peak_kib(0)
        yield from range(count)
        assert peak_kib(0) - before < 30_000, "the expansion was held in memory"

    pipeline = mpipe.Pipeline()
    pipeline.add_stage("expand", expand, workers=1)
    pipeline.add_filter("few", lambda x: x % 1_000_000 == 0, workers=1)
    pipeline.connect("expand", "few")
    outputs = pipeline.run([3_000_000])
    assert sorted(outputs) == [0, 1_000_000, 2_000_000]
    assert outputs.stats().stages["expand"].emitted == 3_000_000


def test_unread_results_make_drain_raise_rather_than_wait_for_ever() -> None:
    pipeline = mpipe.Pipeline().add_map("copy", lambda x: x, workers=1, buffer_size=100)
    run = pipeline.start(results=True)
    with pytest.raises(mpipe.Full):
        run.push(*range(5000), timeout=0.5)
    with pytest.raises(mpipe.MPipeError, match=r"nobody reads its results; iterate run.results"):
        run.drain()


def test_a_push_that_waits_for_unread_results_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = mpipe.Pipeline().add_map("copy", lambda x: x, workers=1, buffer_size=10)
    run = pipeline.start(results=True)
    with pytest.raises(mpipe.Full, match="because nobody reads the run's results"):
        run.push(*range(100), timeout=2.0)
    assert "because nobody reads the run's results; iterate run.results()" in caplog.text
    run.cancel()


def reject(x: int) -> int:
    if x >= 0:
        raise ValueError(x)
    time.sleep(2 * reader.UNREAD_S)
    return x


def rejecting() -> mpipe.Pipeline:
    options = {"on_error": "dead_letter", "buffer_size": 10}
    return mpipe.Pipeline().add_map("reject", reject, workers=1, **options)


def test_unread_dead_letters_fail_a_run_rather_than_hold_it_up_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "_MAX_LETTERS", 10)
    with pytest.raises(mpipe.MPipeError, match=r"nobody reads its dead letters; iterate dead_"):
        list(rejecting().run(range(5000)))


def test_as_many_dead_letters_as_are_kept_hold_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_LETTERS", 10)
    outputs = rejecting().run([*range(12), -1])
    assert list(outputs) == [-1]
    assert len(list(outputs.dead_letters())) == 12


def test_results_that_fit_their_buffer_stay_readable_after_drain() -> None:
    pipeline = mpipe.Pipeline().add_map("copy", lambda x: x, workers=1)
    run = pipeline.start(results=True)
    run.push(*range(500))
    assert run.drain().stages["copy"].emitted == 500
    assert sorted(run.results()) == list(range(500))


def test_a_full_stage_in_the_middle_holds_back_the_caller(tmp_path: Path) -> None:
    opened = tmp_path / "open"
    pipeline = mpipe.Pipeline()
    pipeline.add_map("first", lambda x: x, workers=1, buffer_size=3)
    pipeline.add_map("last", lambda _: gate(opened), workers=1, buffer_size=3)
    pipeline.connect("first", "last")
    with pipeline.start() as run:
        with pytest.raises(mpipe.Full) as full:
            run.push(*range(100), timeout=1.0)
        accepted = 100 - len(full.value.items)
        stats = run.stats()
        assert stats.stages["first"].queued <= 3
        assert stats.stages["last"].queued <= 3
        assert accepted <= 3 + 3 + 2 * 2
        assert stats.stages["first"].workers[0].state == "blocked"
        assert os.path.exists(opened) is False
        opened.touch()
