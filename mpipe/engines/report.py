"""From raw sums to the `Stats` that a run reports; pure, shared by the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..policy import histogram
from ..stats import BreakerStats, EdgeStats, Latency, StageStats, Stats, WorkerStats


@dataclass
class Times:
    """Measured times summed up: counts as `policy.histogram` keeps them, and exact totals."""

    counts: list[int] = field(default_factory=lambda: [0] * histogram.BUCKETS)
    total_ns: int = 0
    max_ns: int = 0


@dataclass
class StageSums:
    """What one stage did since the start, all workers added up; field names as in `StageStats`.

    `busy_ns`, `idle_ns` and `blocked_ns` are summed over the workers, in nanoseconds. Stages with
    the same `pool`, if that is given, have the same workers.
    """

    name: str
    pool: str = ""
    received: int = 0
    queued: int = 0
    processed: int = 0
    failed: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    retried: int = 0
    emitted: int = 0
    service: Times = field(default_factory=Times)
    wait: Times = field(default_factory=Times)
    busy_ns: int = 0
    idle_ns: int = 0
    blocked_ns: int = 0
    workers: tuple[WorkerStats, ...] = ()
    breaker: BreakerStats | None = None


def build_stats(
    name: str,
    state: str,
    elapsed: float,
    stages: Sequence[StageSums],
    edges: Sequence[EdgeStats],
    e2e: Times,
    cpu: float,
) -> Stats:
    """Make the snapshot of a run; `stages` in topological order, `elapsed` and `cpu` in seconds."""
    return Stats(
        name=name,
        state=state,
        elapsed=elapsed,
        stages={sums.name: _stage(sums, elapsed) for sums in stages},
        edges=tuple(edges),
        latency=summarise(e2e),
        bottleneck=_bottleneck(stages),
        cpu=cpu,
    )


def _stage(sums: StageSums, elapsed: float) -> StageStats:
    handled = sums.processed + sums.failed
    available_ns = max(1, len(sums.workers)) * elapsed * 1e9

    def share(spent_ns: int) -> float:
        return min(1.0, max(0.0, spent_ns / available_ns)) if available_ns > 0 else 0.0

    return StageStats(
        name=sums.name,
        received=sums.received,
        processed=sums.processed,
        emitted=sums.emitted,
        failed=sums.failed,
        dead_lettered=sums.dead_lettered,
        dropped=sums.dropped,
        retried=sums.retried,
        in_flight=sums.received - handled,
        queued=sums.queued,
        workers=sums.workers,
        restarts=sum(worker.restarts for worker in sums.workers),
        recycled=sum(worker.recycled for worker in sums.workers),
        throughput=handled / elapsed if elapsed > 0 else 0.0,
        latency=summarise(sums.service),
        wait=summarise(sums.wait),
        busy=share(sums.busy_ns),
        idle=share(sums.idle_ns),
        blocked=share(sums.blocked_ns),
        breaker=sums.breaker,
    )


def summarise(times: Times) -> Latency:
    """Count, mean and percentiles."""
    count = int(sum(times.counts))
    if not count:
        return Latency()
    p50, p90, p99 = (
        min(value, times.max_ns) * 1e-9
        for value in histogram.percentiles(times.counts, (0.50, 0.90, 0.99))
    )
    mean, longest = times.total_ns / count * 1e-9, times.max_ns * 1e-9
    return Latency(count, mean, p50, p90, p99, longest)


def _bottleneck(stages: Sequence[StageSums]) -> str | None:
    """Name of the busiest stage on the workers with the most function time, the first of equals."""
    spent: dict[str, float] = {}
    for sums in stages:
        pool, each_ns = sums.pool or sums.name, sums.busy_ns / max(1, len(sums.workers))
        spent[pool] = spent.get(pool, 0.0) + each_ns
    busiest = max(stages, key=lambda s: (spent[s.pool or s.name], s.busy_ns), default=None)
    return busiest.name if busiest and busiest.busy_ns > 0 else None
