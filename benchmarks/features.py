"""What mpipe and its peers do, found by running them: writes docs/comparison.md.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install -e . -r benchmarks/requirements-peers.txt
    /tmp/peers/bin/python benchmarks/features.py [--tools pool,mpipe] [--checks exception]

Each cell of the table is the verdict of one small program (see checks.py) with one tool (see
peers/), run in a process of its own and called hung after `TIMEOUT_S`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import machine
import psutil
from rich.console import Console

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "comparison.md"
TIMEOUT_S = 30.0

TOOLS = {
    "mpipe": "mpipe",
    "pool": "multiprocessing.Pool",
    "executor": "ProcessPoolExecutor",
    "joblib": "joblib",
    "mpire": "mpire",
    "pypeln": "pypeln (process)",
    "spdl": "SPDL (process pools)",
    "ray_data": "Ray Data",
}

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
        return [str(HERE / "check_lambda.py"), check.removeprefix("lambda_"), tool]
    return [str(HERE / "checks.py"), check, tool]


def verdict(check: str, tool: str) -> str:
    """Run one check with one tool, for `TIMEOUT_S` at most; leave none of its processes behind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        said, errors = Path(scratch, "said"), Path(scratch, "errors")
        with said.open("w") as out, errors.open("w") as err:
            running = subprocess.Popen(
                [sys.executable, *program(check, tool)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "SCRATCH": scratch},
            )
            try:
                running.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return f"hangs (over {TIMEOUT_S:g} s)"
            finally:
                end_all(scratch)
                running.wait()
        lines = said.read_text().split("\n")
        return lines[-2] if len(lines) > 1 else f"not verified: {_last_line(errors)}"


def _last_line(file: Path) -> str:
    return file.read_text().strip().split("\n")[-1]


def end_all(scratch: str) -> None:
    """Kill every process with this check's mark in its environment, orphans too."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SCRATCH") == scratch:
                process.kill()


def column(tool: str) -> str:
    """A tool's name and version."""
    package = importlib.import_module(f"peers.{tool}").PACKAGE
    return f"{TOOLS[tool]} {machine.version(package)}" if package else TOOLS[tool]


def page(table: dict[str, dict[str, str]], tools: list[str]) -> str:
    """The table as a page of documentation; the details stay in the cells."""
    known = machine.facts()
    head = ["", *map(column, tools)]
    rows = [[CHECKS[check], *(cells[tool] for tool in tools)] for check, cells in table.items()]
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return PAGE_TEXT.format(
        python=known["python"],
        kernel=known["kernel"],
        cores=known["cores"],
        date=known["date"][:10],
        commit=known["commit"][:12],
        timeout=TIMEOUT_S,
        table="\n".join(f"| {line} |" for line in lines),
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
    given = options()
    tools, checks = given.tools.split(","), given.checks.split(",")
    console = Console(highlight=False, soft_wrap=True)
    table: dict[str, dict[str, str]] = {}
    for check in checks:
        console.print(f"[bold]{CHECKS[check]}[/]")
        table[check] = {}
        for tool in tools:
            table[check][tool] = verdict(check, tool)
            console.print(f"    {TOOLS[tool]}: {table[check][tool]}")
    if set(tools) == set(TOOLS) and set(checks) == set(CHECKS):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(table, tools))
        console.print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
