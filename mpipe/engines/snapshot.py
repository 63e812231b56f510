"""Reading a run's `Stats` off the board and the channels; any process that maps them can."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import psutil

from ..plan import Plan
from ..stats import BreakerStats, EdgeStats, Stats, WorkerStats
from ..transport import counters
from ..transport.channel import Channel
from ..transport.counters import STATES, Board, Row, idle_and_blocked
from ..transport.gate import SharedGate
from ..transport.layout import DROPPED, PUBLISHED
from .report import StageSums, Times, build_stats


def snapshot(
    plan: Plan,
    board: Board,
    channels: Mapping[int, Channel],
    state: str,
    elapsed: float,
    coordinator: int = 0,
    gates: Mapping[int, SharedGate] | None = None,
) -> Stats:
    """The run's numbers now; what was handled is read first, so `in_flight` is never below 0.

    So of what a process does for several stages, that for the last one is read first.

    `coordinator` is the pid of the coordinator while it runs; `gates` are those that there are, by
    the index of their stage.
    """
    rows = {seat: board.row(seat) for seat in reversed(range(len(plan.leaders)))}
    edges = _edges(plan, board, channels, rows)
    stages = [_sums(plan, board, rows, edges, i) for i in range(len(plan.workers))]
    for index, gate in (gates or {}).items():
        stages[index].breaker = BreakerStats(*gate.facts())
    ends = plan.terminal_seats
    cpu = sum(worker.cpu for stage in plan.pools for worker in stages[stage].workers)
    return build_stats(
        plan.graph.name,
        state,
        elapsed,
        stages,
        edges,
        _times(
            board,
            ends,
            counters.END_TO_END,
            sum(rows[seat].end_to_end_ns for seat in ends),
            max(rows[seat].end_to_end_max_ns for seat in ends),
        ),
        cpu + max(0.0, usage(coordinator)[0] + board.coordinator_cpu_ns * 1e-9),
    )


def _edges(
    plan: Plan, board: Board, channels: Mapping[int, Channel], rows: Mapping[int, Row]
) -> list[EdgeStats]:
    """Per connection what was published and dropped, the caller's first."""
    edges = []
    for name in plan.graph.sources:
        stage = plan.place[name]
        published, dropped = _sent(channels[stage], range(1))
        published += board.refused(stage)[0]
        edges.append(EdgeStats(None, name, published + dropped, published, dropped))
    for source, target in plan.graph.edges:
        stage = plan.place[target]
        seats = plan.seats_of(plan.place[source])
        if stage not in plan.pools:  # it gets all, there and then
            emitted = sum(rows[seat].emitted for seat in seats)
            edges.append(EdgeStats(source, target, emitted, emitted, dropped=0))
            continue
        indices = [i for i, seat in enumerate(plan.producers_of(stage)) if seat in seats]
        published, dropped = _sent(channels[stage], indices)
        edges.append(EdgeStats(source, target, published + dropped, published, dropped))
    return edges


def _sent(channel: Channel, producers: Sequence[int]) -> tuple[int, int]:
    """Items published and dropped by some of a channel's producers."""
    starts = [channel.layout.producer(producer) for producer in producers]
    words = channel.words
    return (
        sum(words[start + PUBLISHED] for start in starts),
        sum(words[start + DROPPED] for start in starts),
    )


def _sums(
    plan: Plan, board: Board, all_rows: Mapping[int, Row], edges: Sequence[EdgeStats], stage: int
) -> StageSums:
    name = plan.graph.stages[stage].name
    seats = plan.seats_of(stage)
    rows = [all_rows[seat] for seat in seats]
    refused, refused_letters = board.refused(stage)
    total = Row(*map(sum, zip(*rows, strict=True)))
    into = [edge for edge in edges if edge.target == name]
    failed = total.failed + refused
    received = sum(edge.received for edge in into)
    received = max(received, total.processed + failed)  # a frame may be handled before it is noted
    holding = sum(board.get(seat, counters.HOLDING) for seat in seats)
    waiting = received - total.processed - failed - holding  # or in a hand that has not noted it
    now = time.perf_counter_ns()
    has_buffer, leaders = stage in plan.pools, plan.leaders[seats.start : seats.stop]
    waits = [idle_and_blocked(board, seat, all_rows[seat], now) for seat in leaders]
    return StageSums(
        name=name,
        pool=plan.graph.stages[plan.heads[stage]].name,
        received=received,
        queued=min(max(0, waiting), plan.graph.stages[stage].buffer_size) if has_buffer else 0,
        processed=total.processed,
        failed=failed,
        dead_lettered=total.dead_lettered + refused_letters,
        dropped=sum(edge.dropped for edge in into),
        retried=total.retried,
        emitted=total.emitted,
        service=_times(
            board,
            seats,
            counters.SERVICE,
            total.service_ns,
            max(row.service_max_ns for row in rows),
        ),
        wait=_times(
            board, seats, counters.WAIT, total.wait_ns, max(row.wait_max_ns for row in rows)
        ),
        busy_ns=total.service_ns,
        idle_ns=sum(idle for idle, _ in waits),
        blocked_ns=sum(blocked for _, blocked in waits),
        workers=tuple(_worker(board, seat) for seat in leaders),
    )


def _worker(board: Board, seat: int) -> WorkerStats:
    pid = board.get(seat, counters.PID)
    cpu, memory = usage(pid)
    return WorkerStats(
        pid=pid,
        restarts=board.get(seat, counters.RESTARTS),
        recycled=board.get(seat, counters.RECYCLED),
        cpu=board.get(seat, counters.CPU_NS) * 1e-9 + cpu,
        memory=memory,
        state=STATES[board.get(seat, counters.STATE)],
    )


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process; nothing if it has ended, or for pid 0."""
    if not pid:
        return 0.0, 0
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    except (psutil.Error, OSError):  # the latter without a descriptor to look with
        return 0.0, 0


def _times(board: Board, seats: Sequence[int], which: int, total_ns: int, max_ns: int) -> Times:
    counts = [
        sum(bucket) for bucket in zip(*(board.times(seat, which) for seat in seats), strict=True)
    ]
    return Times(counts, total_ns, max_ns)
