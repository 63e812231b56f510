"""What mpipe and its peers do, found by running them: writes docs/comparison.md.

    scripts/peers benchmarks/features.py [--tools pool,mpipe] [--checks exception]

Each cell of the table is the verdict of one small program (see checks.py) with one tool (see
peers/), run in a process of its own (see cells.py) and called hung after `TIMEOUT_S`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine
import peers
import tables
from cells import Cell, end_politely
from rich.console import Console

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "comparison.md"
TIMEOUT_S = 30.0

TOOLS = ("mpipe", "pool", "executor", "joblib", "mpire", "pypeln", "spdl", "ray_data")

CHECKS = {
    "bounded_source": "Pulls an endless source only as far as needed",
    "pool_per_stage": "Stages, each with processes of its own",
    "bounded_between_stages": "Bounded between a fast stage and a slow one",
    "expansion": "One item to many",
    "lazy_expansion": "... from a generator that never ends",
    "ordered": "Results in source order",
    "stops_early": "The caller stops early: all processes end within 5 s",
    "killed_worker": "A worker is killed by SIGKILL",
    "exception": "The function raises `ValueError`; the caller gets",
    "lambda_fork": "Lambda, script without main guard, default start method",
    "lambda_spawn": "... processes started from fresh interpreters",
    "percentiles": "Latency percentiles per stage",
}


def program(check: str, tool: str) -> list[str]:
    if check.startswith("lambda_"):
        return ["check_lambda.py", check.removeprefix("lambda_"), tool]
    return ["checks.py", check, tool]


def verdict(check: str, tool: str) -> str:
    """Run one check with one tool, for `TIMEOUT_S` at most; leave none of its processes behind."""
    with Cell(*program(check, tool)) as cell:
        if not cell.wait(TIMEOUT_S):
            return f"hangs (over {TIMEOUT_S:g} s)"
        lines = cell.said.split("\n")
        return lines[-2] if len(lines) > 1 else f"not verified: {cell.errors.strip()[-100:]}"


def page(table: dict[str, dict[str, str]], tools: list[str]) -> str:
    """The table as a page of documentation; the details stay in the cells."""
    known = machine.facts()
    head = ["", *map(peers.title, tools)]
    rows = [[CHECKS[check], *(cells[tool] for tool in tools)] for check, cells in table.items()]
    return PAGE_TEXT.format(
        python=known["python"],
        kernel=known["kernel"],
        cores=known["cores"],
        date=known["date"][:10],
        commit=known["commit"][:12],
        timeout=TIMEOUT_S,
        table=tables.markdown(head, rows),
    )


PAGE_TEXT = """\
# What the tools do

Written by `benchmarks/features.py`, which runs a small program for each cell. Edit that, not this.

{table}

Python {python}, {kernel}, {cores} cores, {date}, mpipe at commit {commit}.

How to read it:

- Every tool runs on two processes a stage, set up as its documentation says and with small buffers
  where it has a setting (`benchmarks/peers/`). What each check does is in `benchmarks/checks.py`.
- "ahead": how many items of the source were pulled beyond those that the caller has taken.
- "hangs": no end within {timeout:g} s, for checks that take about a second of work.
- "by hand": the tool has no stages; two of its pools were chained, one reading the other.
- A tool without a version comes with Python.

What else was seen by running, with settings other than those of the table:

- pypeln with `maxsize=0`, its default, raises `ValueError` instead of hanging, but is unbounded; a
  killed worker hangs it all the same.
- SPDL drops what fails and goes on, unless `max_failures=0`: then `PipelineFailure` is raised, for
  an exception with the worker's traceback, and for a killed worker too.
- mpire (`get_insights`) and Ray Data (`stats`) report totals, means and extremes of times.
- Ray Data's `from_items` takes a list, so an endless source of the caller's never ends there; its
  own readers were not checked.
- joblib's calls share one pool, so that one reading the other has no worker left.
"""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", default=",".join(TOOLS), help="some of: %(default)s")
    parser.add_argument("--checks", default=",".join(CHECKS), help="some of: %(default)s")
    return parser.parse_args()


def main() -> None:
    end_politely()
    given = options()
    tools, checks = given.tools.split(","), given.checks.split(",")
    console = Console(highlight=False, soft_wrap=True)
    table: dict[str, dict[str, str]] = {}
    for check in checks:
        console.print(f"[bold]{CHECKS[check]}[/]")
        table[check] = {}
        for tool in tools:
            table[check][tool] = verdict(check, tool)
            console.print(f"    {peers.title(tool)}: {table[check][tool]}")
    if set(tools) == set(TOOLS) and set(checks) == set(CHECKS):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(table, tools))
        console.print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
