"""What benchmarks/ says about tools is what was seen: nothing left of a cell, no fault unseen."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import bench
import bench_page
import bench_run
import fault_verdicts
import faults
import ideal
import limits
import peers
import psutil
import pytest
import recovery
import scale
import tables
import ways
import workloads
from bench_case import Case
from cells import Cell
from fault_verdicts import Record, Remains, Seen, facts
from helpers import assert_gone
from measure import Sample
from records import Event

ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_cell_finds_a_process_that_outlives_its_program_and_ends_it() -> None:
    with Cell("-c", ORPHAN) as cell:
        assert cell.wait(20.0)
        (orphan,) = cell.survey()
        assert cell.said.split() == [str(orphan.pid)]
        assert cell.peak_pss > 1 << 20
    assert_gone([orphan.pid])
    assert not cell.scratch.exists()


NAMED = """
import os
with open(f"/dev/shm/test-{os.getpid()}", "w"):
    pass
"""


def test_a_cell_removes_what_it_left_in_shared_memory() -> None:
    with Cell("-c", NAMED) as cell:
        assert cell.wait(20.0)
        (name,) = cell.shared_names()
        assert name.exists()
    assert not name.exists()


def test_a_cell_ends_what_is_over_its_time() -> None:
    with Cell("-c", "import time; time.sleep(600)") as cell:
        assert not cell.wait(0.1)
        assert psutil.pid_exists(cell.pid)
    assert_gone([cell.pid])


DUE = range(4)
FAULT = Event(10.0, None)


def seen(results: list[int], error: str | None = None, **given: Any) -> Seen:
    """The facts of a run that got `results`, one each tenth of a second after the fault."""
    events = [Event(10.1 + i / 10, item) for i, item in enumerate(results)]
    outcome = Event(12.0, {"error": error, "text": "why"} if error else {"error": None})
    known = {"told": [], "ahead": [], "log": "", "end": 13.0, "starved": False}
    record = Record(**{"results": events, "fault": FAULT, "outcome": outcome, **known, **given})
    return facts(record, DUE, 2, Remains(), peak=0)


@pytest.mark.parametrize(
    ("run", "verdict"),
    [
        (seen([0, 1, 2, 3]), "all items once"),
        (seen([0, 1, 3]), "no exception, 1 item missing"),
        (seen([0, 1, 2, 2, 3, 3]), "2 items twice"),
        (seen([0, 1, 2, 3, 9]), "1 wrong output"),
        (seen([0], "ValueError"), "fails: ValueError"),
        (seen([0], "ValueError", end=None), "fails: ValueError, then hangs"),
        (seen([0], outcome=None, end=None), "hangs"),
        (seen([0], outcome=None), "ends without a word"),
        (seen([0, 1, 2, 3], fault=None), "not verified: the fault did not happen"),
        (seen([0], starved=True), "uses up the memory"),
    ],
)
def test_a_verdict_tells_what_came_and_what_did_not(run: Seen, verdict: str) -> None:
    assert fault_verdicts.of_items(run, spoils=False) == verdict


def test_a_spoiled_item_must_be_told_of() -> None:
    silent, logged, told = (
        seen([0, 1, 2, 3], **given)
        for given in ({}, {"log": "bad item"}, {"told": [Event(10.5, "bad item")]})
    )
    words = [fault_verdicts.of_items(run, spoils=True) for run in (silent, logged, told)]
    assert words == [
        "the others once, item not told of",
        "the others once, logs it",
        "the others once, tells of it",
    ]
    assert (silent.noticed_s, told.noticed_s) == (pytest.approx(0.3), pytest.approx(0.5))


def test_a_page_keeps_all_but_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- t: begin -->\nold\n<!-- t: end -->\nafter\n")
    for _ in range(2):
        tables.put(page, "t", tables.markdown(["a", "b"], [["1", tables.cell("2 | 3")]]))
    table = "| a | b |\n| --- | --- |\n| 1 | 2 \\| 3 |"
    assert page.read_text() == (f"before\n<!-- t: begin -->\n\n{table}\n\n<!-- t: end -->\nafter\n")
    with pytest.raises(SystemExit, match="no lines"):
        tables.put(page, "other", "")


@pytest.mark.parametrize(
    ("fault", "tool", "verdict"),
    [
        ("nothing", "pool", "all items once"),
        ("kill_worker", "executor", "fails: BrokenProcessPool"),
        ("exception", "executor", "fails: ValueError"),
        ("kill_caller", "executor", "2 processes left"),
    ],
)
def test_a_fault_shows_what_is_known_of_a_tool(
    fault: str, tool: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "GRACE_S", 0.5)
    assert faults.FAULTS[fault].kind.judge(faults.run(fault, tool)) == verdict


SMALL = {"tiny_ints": 20_000, "json_records": 200, "frames": 3, "stdlib_files": 3}
TOOLS = ("ideal", "mpipe", "mpipe_auto", "pool", "queues", "queues_batched")
"""Those that need no installing."""


def small(workload: str, way: ways.Way, batch: int = 1) -> Case:
    return Case(workload, way.peer, way.mode, way.workers, SMALL[workload], 1, batch)


@pytest.mark.parametrize(
    ("workload", "tool"),
    [
        *(("json_records", tool) for tool in TOOLS),
        *(("tiny_ints", "executor"), ("frames", "mpipe"), ("stdlib_files", "ideal")),
    ],
)
def test_every_way_gives_the_results_of_the_serial_loop(workload: str, tool: str) -> None:
    loop = bench_run.once(small(workload, ways.Way("serial", "fused")))
    known = workloads.load(workload)
    for way in ways.ways(known, [tool]):
        for batch in {1, known.batches[-1]}:
            took = bench_run.once(small(workload, way, batch))
            assert took["digest"] == loop["digest"], way.title
            assert took["cpu"] >= 0 < took["wall"]


def test_wrong_results_have_no_figure() -> None:
    case = small("tiny_ints", ways.Way("pool", "map"))
    with pytest.raises(bench_run.Failed, match="wrong results"):
        bench_run.rate(case, lambda case: "what it should be")


def test_what_hangs_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "LIMIT_S", 0.05)
    with pytest.raises(bench_run.Failed, match="no end within"):
        bench_run.once(small("tiny_ints", ways.Way("pool", "map")))


def test_a_tool_that_is_not_installed_is_left_out_and_told_of() -> None:
    entries = bench.bench("json_records", ["serial", "no_such_tool"], None, quick=True)
    assert [len(entry.runs) for entry in entries] == [1, 0]
    told = {entry.way.key: entry.told({}) for entry in entries}
    told_of = "no_such_tool did not do it: it could not be installed here"
    assert told_of in bench_page.section("json_records", told)


def test_options_name_workloads_and_tools_by_their_beginnings() -> None:
    known = ("cpu_1ms", "cpu_10us", "pool", "pool_unbounded")
    assert bench.names(known, "pool,cpu") == ["cpu_1ms", "cpu_10us", "pool"]
    with pytest.raises(argparse.ArgumentTypeError, match="no 'x'; there are: cpu_1ms, "):
        bench.names(known, "pool,x")


def test_a_digest_is_that_of_the_results_in_any_order_and_of_no_others() -> None:
    results = [(1, "a"), (2, "b"), (2, "b")]
    assert workloads.digest(results) == workloads.digest(results[::-1])
    for other in (results[1:], [*results, (1, "a")], [(1, "a"), (1, "b"), (2, "b")]):
        assert workloads.digest(other) != workloads.digest(results)


def test_an_ideal_run_does_all_the_work_in_as_many_processes() -> None:
    took = ideal.shares(lambda share: [(item, os.getpid()) for item in share], range(10), 3)
    assert sorted(item for item, _ in took.outputs) == list(range(10))
    assert len({pid for _, pid in took.outputs} - {os.getpid()}) == 3


def entry(peer: str, *speed_ups: float, **case: Any) -> dict[str, Any]:
    """What is known of a tool that ran 100 items as often as there are figures."""
    runs = [
        {"speed_up": s, "wall": 1 / s, "cpu": 1.0, "items": 100, "cpu_ratio": 1.0}
        for s in speed_ups
    ]
    known = {"peer": peer, "workers": None, "items": 100, "batch": 8, **case}
    return {"title": peers.title(peer), "case": known, "runs": runs, "failed": "", "machine": {}}


def test_the_page_compares_mpipe_with_the_best_other_tool() -> None:
    report = {
        "cpu_1ms": {
            "serial": entry("serial", 1.0),
            "ideal": entry("ideal", 2.0),
            "mpipe": entry("mpipe", 1.7, 1.9, 1.8),
            "pool": entry("pool", 1.5),
            "executor": entry("executor", 1.6),
            "queues": {**entry("queues"), "failed": "wrong results"},
        }
    }
    cells = [
        *("1 ms items", "2.00 x, 10,000.00 us", "1.60 x, 10,000.00 us: ProcessPoolExecutor"),
        *(f"1.80 x, 10,000.00 us: {peers.title('mpipe')}", "1.12", "0.90"),
    ]
    assert bench_page.summary(report).splitlines()[2:] == [f"| {' | '.join(cells)} |"]
    section = bench_page.section("cpu_1ms", report["cpu_1ms"])
    rows = [line.split(" | ")[:3] for line in section.splitlines() if line.startswith("| **mpipe")]
    assert rows == [[f"| **{peers.title('mpipe')}**", "1.80 (1.70..1.90)", "90%"]]
    assert "multiprocessing.Queue by hand did not do it: wrong results" in section


@pytest.mark.parametrize("name", limits.LENGTHS)
def test_a_loop_that_pickles_what_passes_a_connection_gives_what_the_serial_loop_gives(
    name: str,
) -> None:
    workload, loops = workloads.load(name), limits.loops(name)
    given = [loop(workload.stages, workload.source(6, 1)) for loop in loops.values()]
    digests = [workloads.digest([workload.keep(output) for output in one]) for one in given]
    assert len(digests) > 1
    assert set(digests) == {digests[0]}


@pytest.mark.parametrize("relay", [limits.pass_bytes_on, limits.pass_item_on])
def test_relays_pass_on_every_message_and_end(relay: limits.Relay) -> None:
    assert len(limits.relayed(relay, pickle.dumps((1, 2)), 3, items=5)) == 5


def test_the_cost_of_an_item_is_what_a_run_takes_beyond_one_without_items() -> None:
    row = scale.row(scale.Shape(1, 2, 10), [Sample(3.0, 2.0)], [Sample(1.0, 0.5)])
    costs = (row["start_s"], row["start_cpu_s"], row["hop_us"], row["hop_cpu_us"])
    assert [cost.median for cost in costs] == [1.0, 0.5, 1e5, 0.75e5]


def test_recovery_is_the_time_from_each_kill_to_its_replacements_first_item() -> None:
    deaths = recovery.see_deaths(10_000, workers=2, kills=2)
    assert len(deaths.items) == 4
    firsts = sorted(times[0] for times in deaths.items)[2:]  # told again, with the result
    seen = list(zip(deaths.kills, deaths.replaced, firsts, strict=True))
    assert all(kill < replaced <= first for kill, replaced, first in seen)
    assert deaths.replaced[0] < deaths.kills[1]
    assert deaths.recoveries() == [replaced - kill for kill, replaced, _ in seen]


def test_the_longest_gap_is_that_of_the_workers_that_live_on() -> None:
    lives_on, dies = [0.0, 0.9, 0.95, 1.03, 1.04, 2.0], [0.0, 0.8, 0.99]
    deaths = recovery.Deaths([1.0], [1.02], [lives_on, dies])
    assert deaths.longest_gaps(-0.1) == [pytest.approx(0.08)]
    assert deaths.longest_gaps(0.0) == [pytest.approx(0.96)]


def test_wrong_results_have_no_recovery() -> None:
    with pytest.raises(SystemExit, match="wrong results"):
        recovery.check([recovery.Done(1, 0, 0.0)], 2)
