"""What a test may leave behind: processes, descriptors, threads, shared memory, temporary files.

A *resource* is a hashable identity with a description; a leak is a resource that is there after
a test and was not before. Other processes of a shared machine do not count: ours are the
descendants of this process, and those that carry the mark in their environment, which they keep
when their parent dies and they are handed to init.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

MARK = f"MPIPE_TEST_{os.getpid()}"
"""Environment variable that every process started by this one inherits."""

Resources = dict[Hashable, str]


def mark_children() -> None:
    """From now on, let processes that this one starts be known as ours."""
    os.environ[MARK] = "1"


def resources() -> Resources:
    """Everything that could leak and is there now."""
    return {**_processes(), **_descriptors(), **_threads(), **_files()}


def leaks(before: Resources, within: float = 5.0) -> list[str]:
    """Describe what is new since `before`; give it `within` seconds to go away first."""
    deadline = time.monotonic() + within
    while new := _new(before):
        if time.monotonic() > deadline:
            return sorted(new)
        gc.collect()
        time.sleep(0.02)
    return []


def _new(before: Resources) -> list[str]:
    return [what for key, what in resources().items() if key not in before]


def _processes() -> Resources:
    return {
        ("process", process.pid, process.create_time()): _describe(process)
        for process in our_processes()
    }


def our_processes() -> list[psutil.Process]:
    """This process's descendants, and the orphans among the processes it has marked."""
    ours = {*psutil.Process().children(recursive=True), *_marked()}
    return sorted((p for p in ours if p.pid != os.getpid()), key=lambda p: p.pid)


def _marked() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it ended, or belongs to another user
            if MARK in process.environ():
                yield process


def _describe(process: psutil.Process) -> str:
    try:
        facts = process.as_dict(["status", "name", "cmdline"])
    except psutil.NoSuchProcess:
        return f"process {process.pid} (just ended)"
    command = " ".join(facts["cmdline"] or [facts["name"]])
    return f"process {process.pid} ({facts['status']}): {command}"


def _descriptors() -> Resources:
    found: Resources = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one that listed the directory
        found["descriptor", number, target] = f"descriptor {number} -> {target}"
    return found


def _threads() -> Resources:
    return {
        ("thread", thread.ident): f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread.name.startswith("mpipe")
    }


def _files() -> Resources:
    temporary = [path for path in _listing(tempfile.gettempdir()) if "mpipe" in path.name]
    shared = [path for path in _listing("/dev/shm") if "mpipe" in path.name]
    return {("file", str(path)): f"file {path}" for path in (*temporary, *shared)}


def _listing(folder: str) -> list[Path]:
    return list(Path(folder).iterdir()) if os.path.isdir(folder) else []
