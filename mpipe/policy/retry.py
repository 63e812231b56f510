"""When to try a failed item again: exponential backoff."""

from __future__ import annotations


def delay_before(attempt: int, first_delay: float) -> float:
    """Seconds to wait before attempt number `attempt` (the first retry is 2): doubles each time."""
    return float(first_delay * 2 ** (attempt - 2))
