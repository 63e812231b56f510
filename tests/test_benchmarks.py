"""What benchmarks/ says about tools is what was seen: nothing left of a cell, no fault unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fault_verdicts
import psutil
import pytest
import tables
from cells import Cell
from fault_verdicts import Record, Remains, Seen, facts
from helpers import assert_gone
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
