"""Where the processes of a run look for modules: where the caller does, or did.

To be imported with mpipe: it notes the directory that relative entries stood for.
"""

from __future__ import annotations

import os
import sys


def module_path() -> list[str]:
    """This process's path, with what its relative entries stood for; mpipe is found in any case."""
    path = [os.fspath(entry) for entry in sys.path if isinstance(entry, (str, os.PathLike))]
    moved = _directory() != _FIRST_DIRECTORY
    before = [os.path.join(_FIRST_DIRECTORY, entry) for entry in path if not os.path.isabs(entry)]
    return [*path, *(before if moved else ()), _ROOT]


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


_FIRST_DIRECTORY = _directory()
_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
