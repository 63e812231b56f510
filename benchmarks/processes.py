"""Processes that belong to one run: found again by a mark, measured, and ended."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def marked(name: str, value: str) -> set[psutil.Process]:
    """Those with `name=value` in their environment, orphans too, and all that descend from them.

    Some tools write a title over a process's environment; its parent tells whose it is.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(name) == value:
                found.update([process, *process.children(recursive=True)])
    return found


def alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that have not ended; one that nobody has reaped yet has."""
    return set(_alive(processes))


def _alive(processes: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        with suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def tidies(process: psutil.Process) -> bool:
    """Whether it is the helper of Python's that removes the shared memory of ended processes."""
    with suppress(psutil.Error):
        return "resource_tracker" in " ".join(process.cmdline())
    return False


def end_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def own_tree() -> list[int]:
    """This process and its descendants."""
    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def pss(pids: Iterable[int]) -> int:
    """Bytes of memory that the processes use together, pages they share counted once."""
    return sum(map(_pss, pids))


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
