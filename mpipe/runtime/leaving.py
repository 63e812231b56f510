"""How the processes of a run exit: at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

at_leave: list[Callable[[], object]] = []
"""What `leave` does first, in place of `atexit`."""


def leave(status: int) -> None:
    """End this process at once, with its output flushed, whatever threads user code left."""
    for act in at_leave:
        with contextlib.suppress(Exception):
            act()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
