"""A fixed log-linear histogram of times: 32 buckets per octave, relative error under 1.6 %.

The layout is that of HdrHistogram with 5 bits of precision: bucket `32 * octave + k` holds the
times from `16 * 2**octave * (1 + k / 32)` nanoseconds on. The first bucket also takes all that is
shorter than 16 ns, the last all that is longer than 73 minutes.

Numpy is imported when there is much to record at a time: a run of slow items never waits for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import MutableSequence, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..stats import Latency

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BUCKETS = 38 * 32

_MANY = 64
"""From so many times on, numpy is quicker than a loop."""


def bucket(nanoseconds: int) -> int:
    """Index of the bucket that holds one time."""
    exponent = nanoseconds.bit_length()
    if exponent < 5:
        return 0
    index = (exponent - 5) * 32 + ((nanoseconds << 5) >> (exponent - 1)) - 32
    return min(index, BUCKETS - 1)


def buckets(nanoseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of the buckets that hold the times, all at once."""
    import numpy as np

    fraction, exponent = np.frexp(nanoseconds.astype(np.float64))
    index = (exponent.astype(np.int64) - 5) * 32 + (fraction * 64).astype(np.int64) - 32
    return np.clip(index, 0, BUCKETS - 1)


def record(counts: MutableSequence[int] | memoryview, nanoseconds: Sequence[int]) -> None:
    """Add times to `counts`, which has `BUCKETS` elements."""
    if len(nanoseconds) < _MANY:
        for value in nanoseconds:
            counts[bucket(value)] += 1
        return
    import numpy as np

    found, added = np.unique(buckets(np.array(nanoseconds, np.int64)), return_counts=True)
    for index, count in zip(found.tolist(), added.tolist(), strict=True):
        counts[index] += count


def summarise(counts: Sequence[int], total_ns: int, max_ns: int) -> Latency:
    """Mean and percentiles of what was recorded; `total_ns` and `max_ns` are exact."""
    cumulative = list(accumulate(counts))
    count = int(cumulative[-1])
    if count == 0:
        return Latency()

    def percentile(share: float) -> float:
        index = bisect_left(cumulative, max(1, -int(-share * count // 1)))
        middle = 16 * 2.0 ** (index // 32) * (1 + (index % 32 + 0.5) / 32)
        return min(middle, max_ns) * 1e-9

    return Latency(
        count=count,
        mean=total_ns / count * 1e-9,
        p50=percentile(0.50),
        p90=percentile(0.90),
        p99=percentile(0.99),
        max=max_ns * 1e-9,
    )
