"""Find the most complex functions of Python's own standard library, on all cores.

    paths --> read --> analyse --> summarise --> one Summary

`read` turns a path into source text, `analyse` a text into one record for each function in it,
`summarise` all records into one result. Then the very same functions run once more in a plain
loop: the results must be equal, and the times tell what the pipeline is worth.

Nothing here is prepared for other processes: no main guard, and the classes stay in this file.
"""

from __future__ import annotations

import argparse
import ast
import heapq
import io
import logging
import sys
import sysconfig
import time
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

import mpipe
from mpipe.cli import health

LIBRARY = Path(sysconfig.get_path("stdlib"))
INSTALLED_LATER = {"site-packages", "dist-packages"}
TOP = 20


class Function(NamedTuple):
    """What is known of one function; sorts by complexity."""

    complexity: int
    """McCabe's number: 1, and 1 more for every place where the way through the code forks."""
    nesting: int
    """Most blocks (`if`, `for`, `try`, ...) that stand in each other."""
    tokens: int
    lines: int
    """Lines of code: without comments and blank lines."""
    file: str
    line: int
    name: str


@dataclass(frozen=True)
class Summary:
    """What is known of all functions; `top` are the most complex ones."""

    functions: int
    branching: int
    """Number of functions with a complexity over 10, often taken as the limit of the readable."""
    complexity: int
    top: list[Function]


# The three stages.


def read(path: Path) -> Iterator[tuple[str, str]]:
    """A file's name and text; raises for one that is not in the encoding it declares."""
    with tokenize.open(path) as file:
        yield str(path.relative_to(LIBRARY)), file.read()


def analyse(source: tuple[str, str]) -> Iterator[Function]:
    """A record for each function in a file; raises for a file that is not valid Python."""
    file, text = source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old tests are full of invalid escapes
        tree = ast.parse(text)
    rows = code_rows(text)
    for name, node in functions_below(tree):
        start, end = node.lineno, node.end_lineno or node.lineno
        own_rows = rows[bisect_left(rows, start) : bisect_right(rows, end)]
        complexity, nesting = shape(node)
        yield Function(complexity, nesting, len(own_rows), len(set(own_rows)), file, start, name)


class Summarise(mpipe.Stage):
    """Remembers sums and the most complex functions; emits them at the end of the input."""

    def setup(self) -> None:
        self.functions = self.branching = self.complexity = 0
        self.top: list[Function] = []

    def process(self, function: Function) -> None:
        self.functions += 1
        self.branching += function.complexity > 10
        self.complexity += function.complexity
        if len(self.top) < TOP:
            heapq.heappush(self.top, function)
        else:
            heapq.heappushpop(self.top, function)

    def finish(self) -> list[Summary]:
        top = sorted(self.top, reverse=True)
        return [Summary(self.functions, self.branching, self.complexity, top)]


# What `analyse` is made of.

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)
FORKS = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While),
    *(ast.ExceptHandler, ast.match_case),
)
BLOCKS = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith),
    *(ast.Try, getattr(ast, "TryStar", ast.Try), ast.Match),
)
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_rows(text: str) -> list[int]:
    """The line numbers of all tokens that are code, in order."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.start[0] for token in tokens if token.type not in NOT_CODE]


def functions_below(
    node: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions and methods with their qualified names, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFS):
            yield prefix + child.name, child
        if isinstance(child, (*DEFS, ast.ClassDef)):
            yield from functions_below(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from functions_below(child, prefix)


def shape(function: ast.AST) -> tuple[int, int]:
    """Complexity and nesting of a function, without those that are defined inside it."""
    complexity, nesting = 1, 0
    todo = [(child, 0) for child in ast.iter_child_nodes(function)]
    while todo:
        node, depth = todo.pop()
        if isinstance(node, (*DEFS, ast.ClassDef)):
            continue
        complexity += forks(node)
        inside = depth + isinstance(node, BLOCKS)
        nesting = max(nesting, inside)
        todo += [
            (child, depth if is_elif(child, node) else inside)
            for child in ast.iter_child_nodes(node)
        ]
    return complexity, nesting


def forks(node: ast.AST) -> int:
    """How many ways a node adds to those through its function."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, FORKS))


def is_elif(node: ast.AST, parent: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(parent, ast.If) and parent.orelse == [node]


# Two ways to run the stages. Files that are broken on purpose (tests of the parser) are skipped
# and counted.


def run_pipeline(paths: Sequence[Path], workers: int | None) -> tuple[Summary, mpipe.Stats]:
    pipeline = mpipe.Pipeline("standard library")
    pipeline.add_stage("read", read, workers=1, buffer_size=100, on_error="skip")
    pipeline.add_stage("analyse", analyse, workers=workers, buffer_size=20, on_error="skip")
    pipeline.add_stage("summarise", Summarise, workers=1)
    pipeline.connect("read", "analyse").connect("analyse", "summarise")

    with pipeline.run(paths) as outputs, health.live(outputs.stats):
        (summary,) = outputs
    return summary, outputs.stats()


def run_loop(paths: Sequence[Path]) -> tuple[Summary, int]:
    summarise, done = Summarise(), 0
    summarise.setup()
    for path in paths:
        with suppress(Exception):
            for source in read(path):
                for function in analyse(source):
                    summarise.process(function)
            done += 1
    (summary,) = summarise.finish()
    return summary, len(paths) - done


# What people see.


def library_files() -> list[Path]:
    """Every Python file that came with this interpreter."""
    found = (path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))
    return [LIBRARY / path for path in sorted(found) if INSTALLED_LATER.isdisjoint(path.parts)]


def top_table(top: Sequence[Function]) -> Table:
    table = Table(title=f"The {len(top)} most complex functions", title_justify="left", box=None)
    for column in ("complexity", "nesting", "tokens", "lines"):
        table.add_column(column, justify="right")
    table.add_column("function", style="bold", overflow="fold")
    table.add_column("where", style="dim", overflow="fold")
    for *figures, file, line, name in top:
        table.add_row(*map(str, figures), name, f"{file}:{line}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, help="processes that analyse (default: all cores)")
    parser.add_argument("--limit", type=int, metavar="FILES", help="only the first so many files")
    options = parser.parse_args()

    logging.getLogger("mpipe").setLevel(logging.ERROR)  # skipped files are counted below
    console = health.console()
    paths = library_files()[: options.limit]
    console.print(f"Analysing {len(paths):,} files in {LIBRARY} ...")

    start = time.perf_counter()
    summary, stats = run_pipeline(paths, options.workers)
    parallel = time.perf_counter() - start
    skipped = sum(stage.failed for stage in stats.stages.values())

    console.print(top_table(summary.top), "")
    mean = summary.complexity / max(1, summary.functions)
    console.print(
        f"{summary.functions:,} functions in {len(paths) - skipped:,} files; "
        f"complexity {mean:.1f} on average, above 10 in {summary.branching:,}.\n"
        f"Skipped {skipped:,} files that do not decode or parse.\n"
    )
    health.show(stats)
    console.print(f"\nThe same in a plain loop, about {health.seconds(stats.cpu)} ...")

    start = time.perf_counter()
    expected = run_loop(paths)
    serial = time.perf_counter() - start
    if (summary, skipped) != expected:
        sys.exit("The results differ!")
    console.print(
        f"The results are equal. Loop {serial:.2f} s, pipeline {parallel:.2f} s: "
        f"{serial / parallel:.2f} times as fast."
    )


main()
