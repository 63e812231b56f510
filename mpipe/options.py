"""The options of stages and runs, for type checkers and editors to know.

What they mean is told by `Pipeline.add_stage` and `Pipeline.start`, which check the values.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict

from .breaker import CircuitBreaker


class Event(Protocol):
    """What `start(cancel=...)` takes: an event of `threading`, `multiprocessing` or the like."""

    def is_set(self) -> bool: ...


class MapOptions(TypedDict, total=False):
    """Of a stage, where the call has parameters of its own for `workers` and `ordered`."""

    buffer_size: int
    buffer_bytes: int
    drop_on_full: bool
    on_error: Literal["raise", "skip", "dead_letter"]
    retries: int
    retry_delay: float
    max_crashes: int
    timeout: float | None
    max_items: int | None
    max_memory: int | None
    breaker: CircuitBreaker | None


class StageOptions(MapOptions, total=False):
    """Of a stage."""

    workers: int | None
    ordered: bool


class StreamOptions(TypedDict, total=False):
    """Of a run whose results are read as they come."""

    deadline: float | None
    cancel: Event | None
    start_method: Literal["fork", "spawn"]
    max_item_bytes: int


class StartOptions(StreamOptions, total=False):
    """Of a run."""

    results: bool


class ImapOptions(MapOptions, StreamOptions, total=False):
    """Of `imap`: those of its stage and those of its run."""
