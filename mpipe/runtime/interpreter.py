"""Command lines of further interpreters like this one."""

from __future__ import annotations

import subprocess
import sys

from .modulepath import module_path


def interpreter(code: str, *args: str) -> list[str]:
    """Command line of a fresh interpreter with this one's flags and module search path."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-c", code, *args, *module_path()]
