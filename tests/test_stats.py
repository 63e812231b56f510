"""The numbers of a run agree with an oracle that keeps every sample, live and at the end."""

from __future__ import annotations

import os
import random
import time
from itertools import pairwise

import numpy as np
import pytest

import mpipe
from mpipe.engines.snapshot import snapshot
from mpipe.graph import Graph
from mpipe.plan import make_plan
from mpipe.schema import make_spec
from mpipe.transport import counters, memory
from mpipe.transport.channel import Channel, create_channel
from mpipe.transport.counters import Board, Row, SeatCounters
from mpipe.transport.layout import ChannelLayout


def make_board() -> Board:
    """A board of three seats; its memory goes with the last reference."""
    fd = memory.create_file(counters.board_bytes(seats=3, stages=1))
    board = Board(fd, range(3), 1)
    os.close(fd)
    return board


def test_percentiles_over_all_workers_are_within_two_percent_of_every_sample_kept() -> None:
    board = make_board()
    rng = np.random.default_rng(7)
    samples: list[int] = []
    for seat in range(3):
        worker = SeatCounters(board, seat)
        for frame in range(200):
            size = int(rng.integers(1, 60))
            times = rng.lognormal(11 + seat, 1.5, size).astype(np.int64).tolist()
            samples += times
            worker.record(counters.SERVICE, times)
            old = worker.row
            row = old._replace(
                processed=old.processed + size,
                service_ns=old.service_ns + sum(times),
                service_max_ns=max(old.service_max_ns, *times),
            )
            worker.commit(frame + 1 << 24, row)
    spec = make_spec("work", abs, "map", {"workers": 3})
    plan = make_plan(Graph("p", (spec,), ()), cores=2)
    fds = create_channel(ChannelLayout(10, 3, 1, 1 << 20))
    with Channel(fds) as channel:
        latency = snapshot(plan, board, [channel], "running", 1.0).stages["work"].latency
    for fd in fds.all():
        os.close(fd)
    exact = np.array(sorted(samples)) * 1e-9
    assert latency.count == len(samples)
    assert latency.max == pytest.approx(exact[-1])
    assert latency.mean == pytest.approx(exact.mean())
    for got, share in ((latency.p50, 0.5), (latency.p90, 0.9), (latency.p99, 0.99)):
        assert got == pytest.approx(exact[int(np.ceil(share * len(exact))) - 1], rel=0.02)


def test_a_frame_is_counted_once_however_often_it_is_committed_half_way() -> None:
    board = make_board()
    first = SeatCounters(board, 0)
    first.commit(1 << 24, Row(processed=5))
    assert board.row(0) == Row(processed=5)
    assert first.is_committed(1 << 24)
    assert not first.is_committed(2 << 24)
    dying = SeatCounters(board, 0)
    index = dying._start + counters._ROWS  # the row that is not in use: a commit that was cut off
    other = index + (0 if board.get(0, counters.COMMITTED) & counters.ATTEMPT_ONE else len(Row()))
    board.words[other] = 99
    assert board.row(0) == Row(processed=5)
    replacement = SeatCounters(board, 0)
    replacement.commit(2 << 24, Row(processed=8))
    assert board.row(0) == Row(processed=8)


def test_live_stats_keep_the_bounds_and_grow_to_the_exact_end() -> None:
    pipeline = mpipe.Pipeline("live")
    pipeline.add_stage("a", lambda x: [x, x], workers=2, buffer_size=20)
    pipeline.add_map("b", lambda x: (time.sleep(0.0005), x)[1], workers=2, buffer_size=10)
    pipeline.connect("a", "b")
    outputs = pipeline.run(range(1500))
    looks = []
    for count, _ in enumerate(outputs):
        if count % 50 == 0:
            looks.append(outputs.stats())
    for earlier, later in pairwise(looks):
        for name in ("a", "b"):
            assert earlier.stages[name].processed <= later.stages[name].processed
            assert later.stages[name].in_flight >= 0
            assert later.stages[name].queued <= {"a": 20, "b": 10}[name]
    final = outputs.stats()
    assert final.state == "drained"
    assert final.bottleneck == "b"
    assert (final.stages["a"].processed, final.stages["b"].processed) == (1500, 3000)
    assert [(e.emitted, e.received, e.dropped) for e in final.edges] == [
        (1500, 1500, 0),
        (3000, 3000, 0),
    ]
    assert final.latency.count == 3000
    assert final.stages["b"].wait.count == 3000


def test_the_service_time_of_a_stage_is_what_its_function_takes() -> None:
    random.seed(3)
    naps = [random.choice([0.002, 0.004, 0.01]) for _ in range(120)]

    def nap(seconds: float) -> float:
        began = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - began

    outputs = mpipe.Pipeline().add_map("nap", nap, workers=2).run(naps)
    measured = sorted(outputs)
    latency = outputs.stats().stages["nap"].latency
    assert latency.p50 == pytest.approx(measured[59], rel=0.05)
    assert latency.mean == pytest.approx(sum(measured) / 120, rel=0.05)
