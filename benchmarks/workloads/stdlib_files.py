"""The analysis of Python's standard library of examples/, its own functions unchanged."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from . import Stage, Workload

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib_analysis.py"


def example() -> ModuleType:
    """The example as a module: all of it but its last line, which runs it."""
    tree = ast.parse(EXAMPLE.read_text())
    *tree.body, last = tree.body
    assert ast.unparse(last) == "main()", "the example ends in another way than it used to"
    module = sys.modules[EXAMPLE.stem] = ModuleType(EXAMPLE.stem)
    exec(compile(tree, EXAMPLE, "exec"), module.__dict__)
    return module


analysis = example()


def read(path: Path) -> list[tuple[str, str]]:
    """Nothing for the files that are not in the encoding they declare, on purpose."""
    try:
        return list(analysis.read(path))
    except (SyntaxError, UnicodeError):
        return []


def analyse(source: tuple[str, str]) -> list[Any]:
    """Nothing for the files that are not valid Python, on purpose."""
    try:
        return list(analysis.analyse(source))
    except (SyntaxError, ValueError):
        return []


def files(items: int, scale: int) -> Iterator[Path]:
    return iter(analysis.library_files()[:items])


WORKLOAD = Workload(
    title="Standard-library analysis",
    says="`examples/stdlib_analysis.py`: read files of Python's own library on one worker, "
    "find and measure its functions on two; the caller takes the records.",
    stages=(Stage("read", read, many=True), Stage("analyse", analyse, workers=2, many=True)),
    source=files,
    items=100,
    equal=False,
)
