"""The same faults against mpipe and what people use instead: writes a part of docs/reliability.md.

    scripts/peers benchmarks/faults.py [--tools pool,mpipe] [--faults kill_worker,hang]

Each cell is a program (fault_programs.py) with one tool (peers/), alone in a process of its own
(cells.py). All that is measured is merged into results/faults.json; the tables are made of that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fault_programs as programs
import fault_verdicts as verdicts
import machine
import peers
import psutil
import records
import tables
from cells import Cell, end_politely
from fault_verdicts import Record, Remains, Seen
from measure import RESULTS, save
from records import Event
from rich.console import Console

PAGE = machine.ROOT / "docs" / "reliability.md"
LIMIT_S = 30.0
"""What takes longer is said to hang: it is a second of work, and some seconds of starting."""
HUGE_LIMIT_S = 120.0
GRACE_S = 5.0
HUGE_FREE = 16 << 30
"""Free memory, in bytes, without which the largest item is not tried."""

TROUBLE = re.compile(r"Error|Exception|Broken|died|killed", re.IGNORECASE)
"""What a line that is printed about an error has in it."""

TOOLS = (
    *("mpipe", "pool", "executor", "joblib", "mpire", "pypeln", "pypeln_unbounded"),
    *("spdl", "spdl_strict", "ray_data", "dask_distributed"),
)

ALL = range(programs.ITEMS)
OTHERS = tuple(item for item in ALL if item != programs.VICTIM)
FEW = range(programs.FEW)


@dataclass(frozen=True)
class Kind:
    """How the cells of a fault are judged, and what is told of them beside the verdict."""

    judge: Callable[[Seen], str]
    columns: dict[str, Callable[[Seen], str]]


@dataclass(frozen=True)
class Fault:
    """How a fault is brought about; its program has the same name."""

    title: str
    says: str
    """What happens, for the reader of the table."""
    kind: Kind
    due: Collection[int] = OTHERS
    """The items that must come out."""
    victim: int = programs.VICTIM
    strike: Callable[[int], None] | None = None
    """What is done to the caller, by its process id, when it has had `VICTIM` results."""
    limit_s: float = LIMIT_S


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def memory(seen: Seen) -> str:
    return f"{seen.peak_bytes >> 20:,} MiB"


def words(text: str) -> str:
    """The first line, without where this checkout happens to be."""
    lines = text.replace(f"{machine.ROOT}/", "").strip().split("\n")
    return tables.cell(lines[0], 160)


COUNTS: dict[str, Callable[[Seen], str]] = {
    "missing": lambda seen: f"{seen.lost:,}",
    "twice": lambda seen: f"{seen.twice:,}",
    "noticed after": lambda seen: seconds(seen.noticed_s),
    "processes left": lambda seen: str(seen.left),
    "says": lambda seen: words(seen.text or seen.told or seen.log),
}
ALL_THROUGH = Kind(lambda seen: verdicts.of_items(seen, spoils=False), COUNTS)
OTHERS_THROUGH = Kind(lambda seen: verdicts.of_items(seen, spoils=True), COUNTS)
HUGE = Kind(ALL_THROUGH.judge, {**COUNTS, "memory": memory})
ENDS = Kind(
    verdicts.of_end,
    {
        "caller ended after": lambda seen: seconds(seen.ended_s),
        "its last process after": lambda seen: seconds(verdicts.all_ended_s(seen)),
        "processes left": COUNTS["processes left"],
        "names left in shared memory": lambda seen: str(seen.names),
    },
)
READING = Kind(
    verdicts.of_reading,
    {"most items ahead": lambda seen: f"{seen.ahead:,}", "memory": memory},
)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def interrupt(pid: int) -> None:
    os.kill(pid, signal.SIGINT)


def interrupt_group(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


FAULTS = {
    "kill_worker": Fault(
        "A worker is killed",
        f"The worker that has item {programs.VICTIM} in hand gets SIGKILL, once.",
        ALL_THROUGH,
        ALL,
    ),
    "exit": Fault(
        "An item ends its worker",
        f"The function calls `os._exit(3)` on item {programs.VICTIM}, every time.",
        OTHERS_THROUGH,
    ),
    "crash": Fault(
        "An item crashes its worker",
        f"The function reads address 0 on item {programs.VICTIM}: a segmentation fault.",
        OTHERS_THROUGH,
    ),
    "hang": Fault(
        "An item hangs",
        f"The function sleeps for an hour on item {programs.VICTIM}. Tools with a limit of time "
        f"for an item, a result or a run have it set to {programs.LIMIT_S:g} s.",
        OTHERS_THROUGH,
    ),
    "exception": Fault(
        "The function raises",
        f"`ValueError` on item {programs.VICTIM}, every time.",
        OTHERS_THROUGH,
    ),
    "unpicklable_item": Fault(
        "An item cannot be pickled",
        f"The source yields it in place {programs.VICTIM}.",
        OTHERS_THROUGH,
    ),
    "unpicklable_result": Fault(
        "A result cannot be pickled",
        f"The function returns it for item {programs.VICTIM}.",
        OTHERS_THROUGH,
    ),
    "kill_caller": Fault(
        "The caller is killed",
        f"The calling process gets SIGKILL after {programs.VICTIM} results.",
        ENDS,
        strike=kill,
    ),
    "interrupt_caller": Fault(
        "Ctrl-C, to the caller alone",
        f"The calling process gets SIGINT after {programs.VICTIM} results.",
        ENDS,
        strike=interrupt,
    ),
    "interrupt_group": Fault(
        "Ctrl-C, in a terminal",
        f"Its whole process group gets SIGINT after {programs.VICTIM} results.",
        ENDS,
        strike=interrupt_group,
    ),
    "huge_256_mib": Fault(
        "An item of 256 MiB",
        "`bytes`, there and back.",
        HUGE,
        FEW,
        programs.FEW // 2,
        limit_s=HUGE_LIMIT_S,
    ),
    "huge_2150_mib": Fault(
        "An item of 2.1 GiB",
        "`bytes`, there and back: more than a signed 32-bit length can say.",
        HUGE,
        FEW,
        programs.FEW // 2,
        limit_s=HUGE_LIMIT_S,
    ),
    "slow_consumer": Fault(
        "A slow reader",
        f"The caller takes a result every {1e3 * programs.SLOW_READ_S:g} ms for "
        f"{programs.SLOW_RUN_S:g} s; the source has {programs.SLOW_ITEMS:,} items of "
        f"{programs.SLOW_BYTES / 1024:g} KiB, {programs.SLOW_ITEMS * programs.SLOW_BYTES >> 20} "
        f"MiB together.",
        READING,
    ),
    "nothing": Fault("Nothing", "No fault: a check of the harness.", ALL_THROUGH, ALL),
}


def run(name: str, tool: str) -> Seen:
    """Run one cell and gather its facts."""
    fault = FAULTS[name]
    with Cell("fault_programs.py", name, tool) as cell:
        struck = None
        if fault.strike:
            cell.wait(LIMIT_S, lambda: cell.has_ended or enough_results(cell.scratch))
            if not cell.has_ended:
                cell.survey()
                struck = Event(time.monotonic(), None)
                fault.strike(cell.pid)
        end = time.monotonic() if cell.wait(fault.limit_s) else None
        left = Remains() if end is None else remains(cell, end)
        record = recorded(cell, struck, end)
        return verdicts.facts(record, fault.due, fault.victim, left, cell.peak_pss)


def recorded(cell: Cell, struck: Event | None, end: float | None) -> Record:
    """What the program wrote down; the fault may have been done to it from here."""
    results, told, ahead, faults, outcomes = (
        records.read(cell.scratch, name)
        for name in ("results", "told", "ahead", "fault", "outcome")
    )
    fault, outcome = (events[0] if events else None for events in (faults, outcomes))
    log = next((line for line in reversed(cell.errors.split("\n")) if TROUBLE.search(line)), "")
    return Record(results, fault or struck, told, outcome, ahead, log, end, cell.starved)


def enough_results(scratch: Path) -> bool:
    return len(records.read(scratch, "results")) >= programs.VICTIM


def remains(cell: Cell, end: float) -> Remains:
    """What outlives the program by `GRACE_S`."""
    gone = cell.wait(GRACE_S, lambda: not cell.survey())
    gone_s = time.monotonic() - end if gone else None
    return Remains(len(cell.survey()), len(cell.shared_names()), gone_s)


# The page.


def page(report: dict[str, Any]) -> str:
    cells = {name: {t: Seen(**s["seen"]) for t, s in of.items()} for name, of in report.items()}
    tools = [tool for tool in TOOLS if any(tool in of for of in cells.values())]
    faults = [name for name in FAULTS if name in cells and name != "nothing"]
    head = ["", *(peers.name(tool) for tool in tools)]
    rows = [
        [FAULTS[name].title, *(word(name, cells[name].get(tool)) for tool in tools)]
        for name in faults
    ]
    parts = [tables.markdown(head, rows), conditions(report)]
    parts += [f"### {FAULTS[name].title}\n\n{details(name, cells[name])}" for name in faults]
    return "\n\n".join(parts)


def word(name: str, seen: Seen | None) -> str:
    return tables.cell(FAULTS[name].kind.judge(seen)) if seen else "not run"


def conditions(report: dict[str, Any]) -> str:
    """Where and when the cells were run."""
    known = [cell["machine"] for of in report.values() for cell in of.values()]
    versions = sorted({cell["title"] for of in report.values() for cell in of.values()})
    commits = sorted({machine.commit(m) for m in known})
    days = sorted({m["date"][:10] for m in known})
    return (
        f"{known[-1]['cpu']}, {known[-1]['cores']} cores, {known[-1]['kernel']}, Python "
        f"{known[-1]['python']}; {', '.join(versions)}; mpipe at commit {', '.join(commits)}; "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}. A tool without a version comes with "
        f"Python."
    )


def details(name: str, cells: dict[str, Seen]) -> str:
    fault = FAULTS[name]
    rows = [
        [peers.title(tool), word(name, cells[tool])]
        + [tell(cells[tool]) for tell in fault.kind.columns.values()]
        for tool in TOOLS
        if tool in cells
    ]
    return f"{fault.says}\n\n{tables.markdown(['', 'what it did', *fault.kind.columns], rows)}"


# The command.


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", default=",".join(TOOLS), help="some of: %(default)s")
    parser.add_argument("--faults", default=",".join(FAULTS), help="some of: %(default)s")
    parser.add_argument("--json", type=Path, default=RESULTS / "faults.json", help="the report")
    return parser.parse_args()


def main() -> None:
    end_politely()
    given = options()
    console = Console(highlight=False, soft_wrap=True)
    report = json.loads(given.json.read_text()) if given.json.exists() else {}
    known = machine.facts()
    for name in filter(None, given.faults.split(",")):
        console.print(f"[bold]{FAULTS[name].title}[/]")
        for tool in given.tools.split(","):
            if name == "huge_2150_mib" and psutil.virtual_memory().available < HUGE_FREE:
                console.print("    not run: too little free memory")
                break
            seen = run(name, tool)
            cell = {"title": peers.title(tool), "machine": known, "seen": asdict(seen)}
            report.setdefault(name, {})[tool] = cell
            save(report, given.json)
            console.print(f"    {cell['title']}: {word(name, seen)}", markup=False)
    tables.put(PAGE, "faults", page(report))
    console.print(f"written to {given.json} and {PAGE}")


if __name__ == "__main__":
    main()
