"""The examples do what they say, and a run's health is shown as it is."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import wait_until
from rich.console import Console

from mpipe import BreakerStats, Latency, StageStats, Stats, WorkerStats
from mpipe.cli import health

EXAMPLES = Path(__file__).parent.parent / "examples"
LIBRARY = Path(sysconfig.get_path("stdlib"))
FILES = 40

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)


def output_of(example: str, *arguments: str) -> str:
    """What an example prints; fails on an error status and on anything it complains about."""
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the lines that have a health table's width, by first cell; without the mark."""
    cells = (line.replace(" * ", "   ").split() for line in text.splitlines())
    return {row[0]: row[1:] for row in cells if len(row) == 1 + len(health.COLUMNS)}


def first_files() -> list[Path]:
    files = (path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))
    ours = [path for path in files if "-packages" not in str(path)]
    return [LIBRARY / path for path in sorted(ours)[:FILES]]


def trees() -> Iterator[ast.Module]:
    for path in first_files():
        yield ast.parse(path.read_bytes())


@pytest.fixture(scope="module")
def analysis() -> str:
    return output_of("stdlib_analysis.py", "--limit", str(FILES))


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_the_analysis_finds_every_function(analysis: str) -> None:
    functions = sum(isinstance(node, DEFS) for tree in trees() for node in ast.walk(tree))
    assert f"{functions:,} functions in {FILES} files" in analysis
    assert rows(analysis)["summarise"][1] == f"{functions:,}"


def test_the_analysis_equals_the_plain_loop(analysis: str) -> None:
    assert "The results are equal." in analysis
    assert re.search(r"Loop [\d.]+ s, pipeline [\d.]+ s: [\d.]+ times as fast", analysis)


def test_the_health_table_of_the_analysis_accounts_for_every_file(analysis: str) -> None:
    table = rows(analysis)
    assert table["read"][1:6] == [str(FILES), str(FILES), "0", "0", "0"]
    assert table["analyse"][1] == str(FILES)
    assert table["summarise"][2] == "1"


def test_the_complexity_shown_is_that_of_the_source(analysis: str) -> None:
    """Checks the functions without inner ones, for which it can be read off a flat walk."""
    pattern = r"^ +(\d+) +\d+ +\d+ +\d+ +\S+ +(\S+\.py):(\d+) *$"
    found = re.findall(pattern, analysis, re.MULTILINE)
    assert len(found) >= 10
    shown = [int(complexity) for complexity, _, _ in found]
    assert shown == sorted(shown, reverse=True)
    for complexity, file, line in found:
        nodes = list(ast.walk(function_at(LIBRARY / file, int(line))))
        if sum(isinstance(node, (*DEFS, ast.ClassDef)) for node in nodes) == 1:
            assert int(complexity) == 1 + sum(map(decisions, nodes)), f"{file}:{line}"


def function_at(path: Path, line: int) -> ast.AST:
    nodes = ast.walk(ast.parse(path.read_bytes()))
    (found,) = (node for node in nodes if isinstance(node, DEFS) and node.lineno == line)
    return found


def decisions(node: ast.AST) -> int:
    match node:
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
            return 1
        case ast.ExceptHandler() | ast.match_case():
            return 1
    return 0


def test_the_quickstart_reports_large_orders_and_loses_none() -> None:
    output = output_of("quickstart.py")
    large = {f"large order: saffron for {3.2 * n:,.2f}" for n in range(1000) if 3.2 * n > 3190}
    assert {line for line in output.splitlines() if line.startswith("large")} == large
    table = rows(output)
    assert {name: row[:3] for name, row in table.items() if name != "stage"} == {
        "parse": ["4", "3,000", "3,000"],
        "enrich": ["2", "3,000", "3,000"],
        "sink": ["1", "3,000", "0"],
    }


# The health table, from values made by hand.


def stage(name: str, **given: object) -> StageStats:
    zero = dict.fromkeys(StageStats.__dataclass_fields__, 0)
    times = {"latency": Latency(), "wait": Latency()}
    return StageStats(**{**zero, "name": name, "workers": (), **times, **given})  # type: ignore[arg-type]


SEATS = (WorkerStats(7, 1, 0, 0.5, 1 << 20, "busy"), WorkerStats(8, 0, 0, 0.5, 1 << 20, "idle"))
PARSE = stage(
    "parse",
    received=1_234_567,
    processed=98_765,
    emitted=98_764,
    queued=100,
    failed=3,
    dropped=12,
    throughput=12_345.6,
    latency=Latency(98_768, 2e-3, 0.5e-3, 2e-3, 0.0123, 1.0),
    busy=0.876,
    restarts=1,
    recycled=0,
    workers=SEATS,
)
STATS = Stats(
    name="[red]etl",
    state="running",
    elapsed=4.0,
    stages={"parse": PARSE, "sink": stage("sink")},
    edges=(),
    latency=Latency(10, 0.3, 0.25, 0.4, 150.0, 200.0),
    bottleneck="parse",
    cpu=6.0,
)


def rendered(stats: Stats, width: int = 120) -> str:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(health.table(stats))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_the_table_has_one_row_a_stage_and_marks_the_bottleneck() -> None:
    text = rendered(STATS)
    table = rows(text)
    assert list(table) == ["stage", "parse", "sink"]
    assert dict(zip(table["stage"], table["parse"], strict=True)) == {
        "workers": "2",
        "in": "1.23M",
        "out": "98,764",
        "queued": "100",
        "errors": "3",
        "dropped": "12",
        "items/s": "12,346",
        "p50": "500us",
        "p99": "12.3ms",
        "busy": "88%",
        "restarts": "1",
    }
    assert "parse *" in text
    assert "* bottleneck: parse" in text


def test_the_table_tells_what_holds_for_the_whole_run() -> None:
    text = rendered(STATS)
    assert "[red]etl (running)" in text
    assert "elapsed 4.00s; CPU 6.00s (1.5 cores); end to end p50 250ms, p99 2m30s" in text


def test_the_table_of_a_run_that_has_not_begun_shows_no_latency() -> None:
    idle = Stats("etl", "running", 0.0, {"sink": stage("sink")}, (), Latency(), None, 0.0)
    assert rows(rendered(idle))["sink"] == ["0"] * 6 + ["0.00", "-", "-", "0%", "0"]
    assert "bottleneck" not in rendered(idle)


def test_the_table_tells_of_circuit_breakers_that_have_tripped() -> None:
    broken = replace(PARSE, breaker=BreakerStats("half-open", 3, 1, 12.5))
    quiet = stage("sink", breaker=BreakerStats("closed", 0, 0, 0.0))
    stats = replace(STATS, stages={"parse": broken, "sink": quiet})
    text = rendered(stats)
    assert (
        "parse: circuit breaker half-open; it tripped 3 times and paused the stage for 12.5s"
        in text
    )
    assert "sink: circuit breaker" not in text
    assert "(12,346/s, 100 queued, 3 errors, breaker half-open)" in health.line(stats)


def test_eighty_columns_are_enough_for_every_figure() -> None:
    assert rows(rendered(STATS, width=80))["parse"] == rows(rendered(STATS))["parse"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0ns"), (850e-9, "850ns"), (99.96e-6, "100us"), (0.9999e-3, "1.00ms"), (1, "1.00s")],
)
def test_times_have_the_unit_that_suits_them(value: float, shown: str) -> None:
    assert health.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123, "0.12"), (99.96, "100"), (99_999, "99,999"), (999_600, "1.00M")]
)
def test_rates_have_three_digits_or_whole_items(value: float, shown: str) -> None:
    assert health.rate(value) == shown


def test_a_log_gets_lines_instead_of_a_live_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LINE_EVERY_S", 0.001)
    asked: list[Stats] = []
    with health.live(lambda: asked.append(STATS) or STATS):  # type: ignore[func-returns-value]
        wait_until(lambda: len(asked) > 3)
    lines = capsys.readouterr().out.splitlines()
    assert set(lines) == {health.line(STATS)}
    assert lines[0].startswith("[red]etl running 4.00s: parse 98,768 (12,346/s, 100 queued, 3 err")


def test_a_terminal_gets_a_live_table_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(health, "console", lambda: terminal)
    with health.live(lambda: STATS):
        wait_until(lambda: "bottleneck: parse" in screen.getvalue())
        hidden = screen.getvalue()
    after = screen.getvalue()[len(hidden) :]
    assert "\x1b[?25l" in hidden
    assert "\x1b[?25h" in after
    assert after.endswith("\x1b[1A\x1b[2K")
