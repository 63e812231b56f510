"""What a number given by the user must be; one meaning of "a number" for all options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST_SECONDS = 10**9
"""Some thirty years: more than that no clock of the system can wait for."""


def is_number(value: Any) -> bool:
    """Whether it is an int or float, and not a bool, an infinity or nan."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < float("inf")


def is_seconds(value: Any) -> bool:
    """Whether it is a time to wait, 0 or more."""
    return is_number(value) and 0 <= value <= MOST_SECONDS


def is_some_seconds(value: Any) -> bool:
    """Whether it is a time to wait, above 0."""
    return is_seconds(value) and value > 0


def is_whole(low: int, high: float = float("inf")) -> Callable[[Any], bool]:
    """A check for an int, and not a bool, from `low` to `high`."""
    return lambda value: is_number(value) and isinstance(value, int) and low <= value <= high
