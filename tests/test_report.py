"""From sums to Stats: what is derived, and from what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpipe import EdgeStats, Latency, WorkerStats
from mpipe.engines.report import StageSums, Times, build_stats
from mpipe.policy import histogram

WORKER = WorkerStats(pid=1, restarts=2, recycled=1, cpu=0.5, memory=1 << 20, state="idle")
SECOND = 1_000_000_000


def build(*stages: StageSums, elapsed: float = 10.0) -> dict[str, Any]:
    """The stats of the last stage, and the bottleneck."""
    stats = build_stats("p", "running", elapsed, stages, (), Times(), 0.0)
    return {**vars(stats.stages[stages[-1].name]), "bottleneck": stats.bottleneck}


def test_in_flight_is_what_was_received_and_is_not_settled() -> None:
    assert build(StageSums("a", received=10, processed=6, failed=1))["in_flight"] == 3


def test_throughput_counts_processed_and_failed_items_per_second() -> None:
    assert build(StageSums("a", received=50, processed=30, failed=10))["throughput"] == 4.0


def test_shares_are_of_the_time_of_all_workers() -> None:
    stage = build(
        StageSums(
            "a",
            busy_ns=10 * SECOND,
            idle_ns=6 * SECOND,
            blocked_ns=4 * SECOND,
            workers=(WORKER, WORKER),
        )
    )
    assert (stage["busy"], stage["idle"], stage["blocked"]) == (0.5, 0.3, 0.2)


def test_shares_stay_between_0_and_1() -> None:
    stage = build(StageSums("a", busy_ns=99 * SECOND, idle_ns=-SECOND, workers=(WORKER,)))
    assert (stage["busy"], stage["idle"]) == (1.0, 0.0)


def test_no_time_has_passed_yet() -> None:
    stage = build(StageSums("a", processed=5, busy_ns=SECOND), elapsed=0.0)
    assert (stage["throughput"], stage["busy"]) == (0.0, 0.0)


def test_restarts_are_those_of_all_workers() -> None:
    assert build(StageSums("a", workers=(WORKER, WORKER)))["restarts"] == 4


@pytest.mark.parametrize(
    ("busy", "workers", "bottleneck"),
    [((5, 4), (1, 1), "a"), ((5, 4), (2, 1), "b"), ((0, 0), (1, 1), None), ((3, 3), (1, 1), "a")],
)
def test_the_bottleneck_has_the_busiest_workers(
    busy: tuple[int, int], workers: tuple[int, int], bottleneck: str | None
) -> None:
    stages = [
        StageSums(name, busy_ns=time_ns, workers=(WORKER,) * count)
        for name, time_ns, count in zip("ab", busy, workers, strict=True)
    ]
    assert build(*stages)["bottleneck"] == bottleneck


@pytest.mark.parametrize(("alone", "bottleneck"), [(6, "b"), (9, "c")])
def test_workers_of_several_stages_are_as_busy_as_all_of_these_make_them(
    alone: int, bottleneck: str
) -> None:
    pair = (WORKER,) * 2
    stages = [
        StageSums("a", "a", busy_ns=6, workers=pair),
        StageSums("b", "a", busy_ns=8, workers=pair),
        StageSums("c", busy_ns=alone, workers=(WORKER,)),
    ]
    assert build(*stages)["bottleneck"] == bottleneck


def test_times_become_latencies_in_seconds() -> None:
    counts = np.zeros(histogram.BUCKETS, np.uint64)
    histogram.record(counts, [SECOND] * 3)
    times = Times(counts, 3 * SECOND, SECOND)
    edge = EdgeStats(None, "a", 3, 3, 0)
    stages = [StageSums("a", service=times)]
    stats = build_stats("p", "drained", 3.0, stages, [edge], times, 1.5)
    assert stats.latency == stats.stages["a"].latency
    assert (stats.latency.count, stats.latency.mean, stats.latency.max) == (3, 1.0, 1.0)
    assert stats.latency.p50 == pytest.approx(1.0, rel=0.016)
    assert stats.stages["a"].wait == Latency()
    assert (stats.edges, stats.cpu, stats.state, stats.elapsed) == ((edge,), 1.5, "drained", 3.0)
