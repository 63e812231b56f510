"""What a run reports: frozen values, every field with its unit; no behaviour beyond sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """A distribution of times, in seconds; percentiles are within 1.6 % of the exact ones.

    `count` is the number of samples; all other fields are 0.0 when there are none.
    """

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class WorkerStats:
    """One worker seat: what its process is and uses now."""

    pid: int
    """Process id, 0 when no process sits in the seat."""
    restarts: int
    """How often a dead worker was replaced in this seat."""
    recycled: int
    """How often a worker made way for a new one, at `max_items` or `max_memory`."""
    cpu: float
    """CPU time of all processes that sat here, in seconds."""
    memory: int
    """Resident memory of the process, in bytes."""
    state: str
    """`"starting"`, `"idle"`, `"busy"`, `"blocked"` (no room downstream), `"paused"` (its stage's
    circuit breaker is not closed), `"recycling"` (making way for a new process) or `"finished"`."""


@dataclass(frozen=True)
class BreakerStats:
    """What the circuit breaker of one stage does, and did since the start."""

    state: str
    """`"closed"` (the stage works), `"open"` (it pauses) or `"half-open"` (it tries some calls)."""
    trips: int
    """How often it opened because too many calls failed."""
    reopened: int
    """How often it opened again, because the calls tried after a pause failed too."""
    seconds_open: float
    """How long it was open in all, in seconds."""


@dataclass(frozen=True)
class StageStats:
    """Counters of one stage since the start, all workers added up; whole numbers of items.

    At every quiescent moment and at the end, `received = processed + failed + in_flight`.
    """

    name: str
    received: int
    """Items accepted into the stage's buffer, or refused at it because they cannot travel."""
    processed: int
    """Items the function handled to the end."""
    emitted: int
    """Items the function returned (each counted once, however many stages it goes to)."""
    failed: int
    """Items given up on after all retries."""
    dead_lettered: int
    """Those of `failed` that went to `run.dead_letters()`."""
    dropped: int
    """Items turned away at this stage's full buffer, because it says `drop_on_full`."""
    retried: int
    """Further attempts made on items that failed."""
    in_flight: int
    """Items accepted and neither processed nor failed yet: `queued` ones and those in hand."""
    queued: int
    """Items waiting in the stage's buffer, at most its `buffer_size`."""
    workers: tuple[WorkerStats, ...]
    """The stage's workers; stages that share processes have the same ones."""
    restarts: int
    """How many dead workers were replaced."""
    recycled: int
    """How many workers made way for new ones, at `max_items` or `max_memory`."""
    throughput: float
    """Items handled per second of the run so far."""
    latency: Latency
    """Service time: how long the function took for an item."""
    wait: Latency
    """Time from entering the stage's buffer to being taken by a worker; 0 where there is none,
    because the process that ran the stage before goes on with it."""
    busy: float
    """Share of the workers' time spent in the function, 0 to 1."""
    idle: float
    """Share of the workers' time spent waiting for input, 0 to 1; for all stages they run."""
    blocked: float
    """Share of the workers' time spent waiting for room downstream, 0 to 1; likewise."""
    breaker: BreakerStats | None
    """The stage's circuit breaker; None if it has none."""


@dataclass(frozen=True)
class EdgeStats:
    """One connection, from the caller if `source` is None. `emitted = received + dropped`."""

    source: str | None
    target: str
    emitted: int
    received: int
    dropped: int


@dataclass(frozen=True)
class Stats:
    """A snapshot of a run."""

    name: str
    """The pipeline's name."""
    state: str
    """`"running"`, `"drained"`, `"cancelled"` or `"failed"`."""
    elapsed: float
    """Seconds since the start, up to the end."""
    stages: dict[str, StageStats]
    """Per stage, by name, in topological order."""
    edges: tuple[EdgeStats, ...]
    """Per connection: those from the caller first, then as connected."""
    latency: Latency
    """End to end: from the source to the end of a terminal stage's function."""
    bottleneck: str | None
    """Name of the stage whose workers are busiest, `None` before anything was processed."""
    cpu: float
    """CPU time of the coordinator and all workers, in seconds."""


@dataclass(frozen=True)
class DeadLetter:
    """An item that a stage gave up on under `on_error="dead_letter"`.

    `item` is the stage's input (None where `error` says that it cannot be had), `position`
    its place in the source, `attempts` how often it was tried, `error` the exception in a line and
    `traceback` the worker's own.
    """

    stage: str
    item: Any
    error: str
    traceback: str
    attempts: int
    position: str
