"""Single runs of bench.py: each a program of its own in a cell, its results checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import peers
from bench_case import Case
from cells import Cell
from records import read
from ways import LIMITS
from workloads import Workload

LIMIT_S = 45.0
"""What has not ended by then hangs, or is of no use."""
LONG_S = 6.0
"""About the longest serial loop. A tool that would take longer for all items gets fewer of them."""
FLOOD_S = 4.0
TRIAL = 8
"""A trial has so many times fewer items."""

Expected = Callable[[Case], str]
"""The digest of the results that a case must have."""


class Failed(Exception):
    """A run did not give the right results, or none in time."""


def once(case: Case) -> dict[str, Any]:
    """Run a case to its end; what it took."""
    with Cell("bench_case.py", json.dumps(asdict(case)), alone=True) as cell:
        ended = cell.wait(LIMIT_S)
        if not cell.said:
            raise Failed(last_line(cell.errors) if ended else f"no end within {LIMIT_S:g} s")
        took: dict[str, Any] = json.loads(last_line(cell.said))
        return took


def last_line(text: str) -> str:
    return text.strip().split("\n")[-1]


def rate(case: Case, expected: Expected) -> dict[str, Any]:
    took = once(case)
    if took["digest"] != expected(case):
        raise Failed("wrong results")
    return {"wall": took["wall"], "cpu": took["cpu"], "items": case.items}


def latency(case: Case, expected: Expected) -> dict[str, Any]:
    """Percentiles of the delays, without those of the first quarter: processes start meanwhile."""
    took = once(case)
    delays = dict(took["kept"])
    if sorted(number for number, _ in took["kept"]) != list(range(case.items)):
        raise Failed(f"wrong results: {len(delays):,} of {case.items:,} items, or others")
    late = sorted(delays[number] for number in range(case.items // 4, case.items))
    marks = [late[round(q / 1000 * (len(late) - 1))] / 1e3 for q in range(1001)]
    return {"delays_us": marks, "cpu": took["cpu"], "items": case.items}


def memory(case: Case, expected: Expected) -> dict[str, Any]:
    """Let a case run for a time: the memory of all its processes, and how far its source is."""
    with Cell("bench_case.py", json.dumps(asdict(case))) as cell:
        cell.wait(LIMIT_S, lambda: cell.has_ended or (cell.scratch / "ahead").exists())
        cell.wait(FLOOD_S)
        ahead = [event.what for event in read(cell.scratch, "ahead")]
        if not ahead:
            raise Failed(last_line(cell.errors) or f"no output within {LIMIT_S:g} s")
        numbers = {number for _, number in ahead}
        if len(numbers) < len(ahead) or not numbers <= set(range(case.items)):
            raise Failed("wrong results: items came twice, or others")
        return {"pss": cell.pss, "ahead": max(count for count, _ in ahead), "outputs": len(ahead)}


MEASURES = {"rate": rate, "latency": latency, "memory": memory}


def prepared(case: Case, workload: Workload, quick: bool) -> Case:
    """With the best length of lists, and no more items than can be run in `LONG_S`.

    Without trials where these would tell nothing: items differ, or are the same as elsewhere.
    """
    if not peers.is_installed(case.peer):
        raise Failed("it could not be installed here")
    if workload.measure != "rate" or case.peer in LIMITS:
        return case
    tries = workload.batches if peers.load(case.peer).TRIES else (1,)
    if quick or workload.workers or not workload.equal:
        return replace(case, batch=tries[0])
    trial = replace(case, items=max(1, case.items // TRIAL))
    walls = {batch: once(replace(trial, batch=batch))["wall"] for batch in tries}
    best = min(walls, key=walls.__getitem__)
    case = replace(case, batch=best)
    if walls[best] * TRIAL < LONG_S:
        return case
    return replace(case, items=fitting(case, trial.items, walls[best]))


def fitting(case: Case, tried: int, wall: float) -> int:
    """How many items can be run in `LONG_S`, where `tried` took `wall`, starting included."""
    fewer = tried // 4
    each = max(0.0, wall - once(replace(case, items=fewer))["wall"]) / (tried - fewer)
    items = case.items
    while items > tried and wall + each * items > LONG_S:
        items //= 2
    return items
