"""When to try a failed item again: exponential backoff."""

from __future__ import annotations

_DAY_S = 86_400.0


def delay_before(attempt: int, first_delay: float) -> float:
    """Seconds to wait before attempt number `attempt` (the first retry is 2): doubles each time.

    Up to a day, or the first delay if that is more.
    """
    return min(first_delay * 2.0 ** min(attempt - 2, 64), max(first_delay, _DAY_S))
