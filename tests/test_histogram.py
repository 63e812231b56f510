"""The histogram against an oracle that keeps every sample."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest

from mpipe import Latency
from mpipe.engines.report import Times, summarise
from mpipe.policy.histogram import BUCKETS, bucket, record

RANDOM = np.random.default_rng(20240607)

DISTRIBUTIONS: dict[str, Any] = {
    "lognormal": RANDOM.lognormal(12, 2, 20_000),
    "uniform": RANDOM.uniform(1_000, 1_000_000, 20_000),
    "exponential": RANDOM.exponential(3e6, 20_000),
    "two peaks": np.concatenate([RANDOM.normal(1e4, 1e2, 9_000), RANDOM.normal(1e8, 1e6, 1_000)]),
    "heavy tail": np.minimum((RANDOM.pareto(1.1, 20_000) + 1) * 1e4, 1e12),
    "constant": np.full(1_000, 123_456),
    "few": RANDOM.uniform(1e3, 1e9, 3),
    "one": np.array([777_777]),
}


def histogram(samples: Any, chunk: int) -> Any:
    counts = np.zeros(BUCKETS, np.uint64)
    values = samples.astype(np.int64).tolist()
    for start in range(0, len(values), chunk):
        record(counts, values[start : start + chunk])
    return counts


def oracle(samples: Any, share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed, in seconds."""
    values = sorted(samples.astype(np.int64).tolist())
    return float(values[max(0, ceil(share * len(values)) - 1)] * 1e-9)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_percentiles_are_within_1_6_percent_of_every_sample_kept(name: str, chunk: int) -> None:
    samples = DISTRIBUTIONS[name]
    total, most = int(samples.astype(np.int64).sum()), int(samples.max())
    latency = summarise(Times(histogram(samples, chunk), total, most))
    for share, value in ((0.5, latency.p50), (0.9, latency.p90), (0.99, latency.p99)):
        assert value == pytest.approx(oracle(samples, share), rel=0.016)
    assert latency.count == len(samples)
    assert latency.mean == pytest.approx(total / len(samples) * 1e-9, rel=1e-12)
    assert latency.max == most * 1e-9


def test_percentiles_never_exceed_the_maximum_and_are_in_order() -> None:
    for samples in DISTRIBUTIONS.values():
        values = samples.astype(np.int64)
        latency = summarise(Times(histogram(samples, 1000), int(values.sum()), int(values.max())))
        assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.max


def test_buckets_rise_with_time_and_use_the_whole_range() -> None:
    values = np.unique(np.geomspace(1, 2**44, 50_000).astype(np.int64))
    found = np.array([bucket(value) for value in values.tolist()])
    assert bool(np.all(np.diff(found) >= 0))
    assert (int(found[0]), int(found[-1])) == (0, BUCKETS - 1)
    assert set(range(32 * 3, BUCKETS)) <= set(found.tolist())


def test_times_outside_the_range_go_to_the_ends() -> None:
    assert [bucket(n) for n in (0, 1, 15, 2**60)] == [0, 0, 0, BUCKETS - 1]


def test_nothing_recorded_gives_an_empty_latency() -> None:
    assert summarise(Times()) == Latency()
