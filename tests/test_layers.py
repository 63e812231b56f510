"""Imports point one way, the public names are pinned, and importing mpipe costs little."""

from __future__ import annotations

import ast
import importlib.resources
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mpipe

ROOT = Path(mpipe.__file__).parent
LAYERS = (
    {
        *("errors", "stats", "checks", "stage", "schema", "breaker", "options"),
        *("graph", "plan", "routes"),
    },
    {"policy"},
    {"transport"},
    {"runtime"},
    {"engines"},
    {"pipeline", "run"},
    {"cli", "__main__"},
)
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

PUBLIC = {
    "BreakerStats",
    "Cancelled",
    "CircuitBreaker",
    "Closed",
    "CoordinatorDied",
    "DeadLetter",
    "EdgeStats",
    "Full",
    "GraphError",
    "ItemError",
    "Latency",
    "MPipeError",
    "OptionError",
    "Outputs",
    "Pipeline",
    "Run",
    "Stage",
    "StageError",
    "StageStats",
    "Stats",
    "Timeout",
    "WorkerDied",
    "WorkerStats",
    "imap",
}


def layer(name: str) -> int:
    """Index in `LAYERS` of a module or package directly below mpipe; low ones are at the bottom."""
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"mpipe.{name} has no layer; give it one here and in mpipe/__init__.py"
    return found[0]


def imports(module: Path) -> Iterator[str]:
    """Absolute names of all that a module of mpipe imports, wherever the import stands."""
    package = ("mpipe", *module.parent.parts)
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_imports_are_found_wherever_they_stand() -> None:
    assert "mpipe.engines.inline.InlineEngine" in set(imports(Path("engines/__init__.py")))
    assert "mpipe.graph.Graph" in set(imports(Path("plan.py")))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down_or_sideways(module: Path) -> None:
    if module == Path("__init__.py"):
        return  # the map of the package: it may import all
    own = layer(module.parts[0].removesuffix(".py"))
    for name in imports(module):
        top, *below = name.split(".")
        if top == "mpipe" and below and below[0] != "__version__":
            assert layer(below[0]) <= own, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "policy"], ids=str)
def test_policy_has_no_processes_and_no_clock(module: Path) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    assert not tops & {"os", "time", "threading", "multiprocessing", "subprocess", "signal"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_uses_named_shared_memory(module: Path) -> None:
    """What has no name cannot be left behind; /dev/shm may also be as small as 64 MB."""
    assert not [name for name in imports(module) if name.startswith("multiprocessing.shared")]


def test_public_names_are_pinned() -> None:
    assert set(mpipe.__all__) == PUBLIC
    assert {name for name in PUBLIC if getattr(mpipe, name).__name__ == name} == PUBLIC
    named = {
        name
        for name, value in vars(mpipe).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert named == PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        mpipe.Pipelines  # noqa: B018


def test_importing_mpipe_imports_no_heavy_dependency() -> None:
    heavy = ["cloudpickle", "numpy", "psutil", "rich"]
    program = (
        f"import json, mpipe, sys; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stderr, json.loads(run.stdout)) == ("", [])


def test_a_coordinator_imports_only_what_every_run_needs() -> None:
    """Each of these is some milliseconds of every start."""
    spared = ["cloudpickle", "dataclasses", "inspect", "logging", "mpipe.stats", "subprocess"]
    program = f"import sys, mpipe.runtime.service; print([m for m in {spared} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stderr, run.stdout) == ("", "[]\n")


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("mpipe").joinpath("py.typed").is_file()
