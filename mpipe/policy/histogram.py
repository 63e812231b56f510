"""A fixed log-linear histogram of times: 32 buckets per octave, relative error under 1.6 %.

The layout is that of HdrHistogram with 5 bits of precision: bucket `32 * octave + k` holds the
times from `16 * 2**octave * (1 + k / 32)` nanoseconds on. The first bucket also takes all that is
shorter than 16 ns, the last all that is longer than 73 minutes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, MutableSequence, Sequence
from itertools import accumulate

BUCKETS = 38 * 32


def bucket(nanoseconds: int) -> int:
    """Index of the bucket that holds one time."""
    exponent = nanoseconds.bit_length()
    if exponent < 5:
        return 0
    index = (exponent - 5) * 32 + ((nanoseconds << 5) >> (exponent - 1)) - 32
    return min(index, BUCKETS - 1)


def record(counts: MutableSequence[int] | memoryview, nanoseconds: Sequence[int]) -> None:
    """Add times to `counts`, which has `BUCKETS` elements."""
    for value in nanoseconds:
        counts[bucket(value)] += 1


def percentiles(counts: Sequence[int], shares: Iterable[float]) -> list[float]:
    """Times that so large `shares` (0 to 1) of what was recorded do not exceed, in nanoseconds.

    There must be something in `counts`.
    """
    cumulative = list(accumulate(counts))
    found = []
    for share in shares:
        index = bisect_left(cumulative, max(1, -int(-share * cumulative[-1] // 1)))
        found.append(16 * 2.0 ** (index // 32) * (1 + (index % 32 + 0.5) / 32))
    return found
