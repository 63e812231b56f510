"""When an item's time is up, and when it is worth looking again; pure, times in nanoseconds."""

from __future__ import annotations


def is_overdue(due: int, now: int) -> bool:
    """Whether an item whose allowance ends at `due` (0: there is no item) is out of time."""
    return 0 < due <= now


def next_look(due: int, now: int, allowed: int) -> int:
    """When to look at a worker again that is not overdue.

    Whatever it starts from now on, with an allowance of `allowed`, cannot be overdue before.
    """
    return due if due > now else now + allowed
