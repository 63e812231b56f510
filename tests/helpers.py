"""Shared by the tests: waiting for a condition, for processes to be gone; killing workers."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import psutil

import mpipe
from mpipe.engines import standby

HANG_S = 180.0
terminal = 2


def not_hanging() -> None:
    """From now on, `HANG_S` seconds without another call end the session with all stacks.

    Called before each test; a test that has many parts calls it before each of them.
    """
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=terminal)


def wait_until(condition: Callable[[], object], within: float = 5.0) -> None:
    """Return as soon as `condition()` is true; fail when it is not, `within` seconds on."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"still not true after {within:g} s"
        time.sleep(0.01)


def tree(pid: int) -> list[int]:
    """The process `pid` and all its descendants, for `assert_gone` after it was killed."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def started(pipeline: mpipe.Pipeline, results: bool = False) -> tuple[mpipe.Run, list[int]]:
    """A run, and its processes, when they have all begun: the coordinator, then the workers."""
    run = pipeline.start(results=results)

    def states() -> list[str]:
        return [worker.state for stage in run.stats().stages.values() for worker in stage.workers]

    wait_until(lambda: "starting" not in states())
    pids = tree(run._engine._link.coordinator_pid)
    assert len(pids) == 1 + len(states())
    return run, pids


def assert_gone(pids: Collection[int], within: float = 5.0) -> None:
    """Fail unless all of `pids` have ended, and been reaped where that is up to this process."""
    deadline = time.monotonic() + within
    while left := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < deadline, f"still there after {within:g} s: processes {left}"
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie or process.ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


@contextmanager
def killing(outputs: mpipe.Outputs, *names: str) -> Iterator[list[int]]:
    """Kill workers, of all stages or those named, while the block runs; a bounded number of them.

    On a busy machine they would else be killed faster than they get on.
    """
    stop, kills = threading.Event(), []

    def kill() -> None:
        while len(kills) < 60 and not stop.wait(0.02):
            stages = [s for s in outputs.stats().stages.values() if not names or s.name in names]
            workers = [w for stage in stages for w in stage.workers if w.state != "starting"]
            pid = random.choice(workers).pid if workers else 0
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)
                except ProcessLookupError:
                    continue

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join()


def run_program(program: str, *flags: str, **options: object) -> str:
    """What a program prints that a fresh interpreter runs."""
    process = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    assert process.returncode == 0, process.stderr
    return str(process.stdout)


@contextmanager
def coordinator_with(code: str) -> Iterator[None]:
    """Let the coordinators of runs that are started in here run `code` first."""
    before = standby._COORDINATOR
    path, _, rest = before.partition("; from mpipe")
    standby._COORDINATOR = f"{path}\n{textwrap.dedent(code)}\nfrom mpipe{rest}"
    try:
        yield
    finally:
        standby._COORDINATOR = before
