"""The checks of features.py; each is one small program: python checks.py CHECK TOOL SCRATCH.

A check prints one line, its verdict. Whoever runs it limits its time and calls it hung after that.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import processes
import psutil
from counted import Counted

PATIENCE_S = 15.0


@contextmanager
def patience(verdict: Callable[[], str]) -> Iterator[None]:
    """Leave with `verdict()` when the block takes longer than `PATIENCE_S`."""
    timer = threading.Timer(PATIENCE_S, lambda: leave(verdict()))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def endless_source() -> Counted:
    """0, 1, 2, ..., ten thousand a second at most."""

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            time.sleep(1e-4)
            yield number

    return Counted(numbers())


_kept: list[Any] = []


def keep(outputs: Iterator[Any]) -> Iterator[Any]:
    """Not closed before the verdict is said: some tools hang there, `stops_early` tells which."""
    _kept.append(outputs)
    return outputs


def same(item: Any) -> Any:
    return item


def bounded_source(tool: Any) -> str:
    """Take one result of an endless source, then wait: is the source still being pulled?"""
    source = endless_source()
    with patience(lambda: f"no: no result after {source.pulled:,} items"):
        outputs = keep(iter(tool.stream(same, source)))
        next(outputs)
    time.sleep(2.0)
    before = source.pulled
    time.sleep(2.0)
    if source.pulled > before:
        return f"no: {source.pulled:,} items ahead and growing"
    return f"yes ({before:,} ahead)"


def first_stage(item: Any) -> str:
    time.sleep(0.001)
    return str(os.getpid())


def second_stage(first_pid: str) -> tuple[int, int]:
    time.sleep(0.02)
    return int(first_pid), os.getpid()


def two_stages(tool: Any, source: Any) -> Iterator[tuple[int, int]]:
    if hasattr(tool, "two_stages"):
        return iter(tool.two_stages(first_stage, second_stage, source))
    return iter(tool.stream(second_stage, tool.stream(first_stage, source)))


def pool_per_stage(tool: Any) -> str:
    """Two stages of two workers: does each have processes of its own?"""
    pairs = list(two_stages(tool, range(200)))
    firsts, seconds = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(pairs) != 200:
        return f"no: {len(pairs)} of 200 items arrived"
    if firsts & seconds or os.getpid() in firsts | seconds:
        return "no: stages share processes"
    how = "yes" if hasattr(tool, "two_stages") else "by hand: two pools"
    return how if (len(firsts), len(seconds)) == (2, 2) else f"{how} ({len(firsts)}+{len(seconds)})"


def bounded_between_stages(tool: Any) -> str:
    """A fast stage before a slow one, and an eager reader: how far does the source run ahead?"""
    source = endless_source()
    with patience(lambda: f"no: no result after {source.pulled:,} items"):
        outputs = keep(two_stages(tool, source))
        next(outputs)
    ahead = []
    start, taken = time.monotonic(), 1
    while time.monotonic() < start + 4.0:
        next(outputs)
        taken += 1
        ahead.append(source.pulled - taken)
    half = len(ahead) // 2
    growing = max(ahead[half:]) > 1.3 * max(ahead[:half]) + 10
    return (
        f"no: {ahead[-1]:,} items ahead and growing" if growing else f"yes ({max(ahead):,} ahead)"
    )


def stops_early(tool: Any) -> str:
    """The caller closes the outputs after 5 results: has all ended 5 s later?"""
    outputs = tool.stream(same, range(100_000))
    for _ in range(5):
        next(outputs)
    outputs.close()
    deadline = time.monotonic() + 5.0
    while left := workers():
        if time.monotonic() > deadline:
            return f"no: {len(left)} processes left"
        time.sleep(0.05)
    return "yes"


def workers() -> list[psutil.Process]:
    """Descendants that are there for this tool, not helpers of Python that stay for the next."""
    return [c for c in psutil.Process().children(recursive=True) if not processes.tidies(c)]


def kill_once(item: int) -> int:
    if item == 50:
        try:
            (Path(os.environ["SCRATCH"]) / "killed").touch(exist_ok=False)
        except FileExistsError:
            return item
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def killed_worker(tool: Any) -> str:
    """A worker is killed by SIGKILL on item 50 of 200, once."""
    results: list[int] = []
    try:
        results.extend(tool.stream(kill_once, range(200)))
    except Exception as error:
        return f"fails: {type(error).__name__}"
    if not (Path(os.environ["SCRATCH"]) / "killed").exists():
        return "not verified: no worker was killed"
    if sorted(results) == list(range(200)):
        return "recovers, all results once"
    return f"no error, {len(results)} of 200 results"


def endless(item: int) -> Iterator[int]:
    yield from itertools.count()


def lazy_expansion(tool: Any) -> str:
    """A generator that never ends, one input: do its first outputs arrive?"""
    expand = getattr(tool, "expand", tool.stream)
    try:
        with patience(lambda: "no: waits for the generator's end"):
            outputs = list(itertools.islice(expand(endless, [0]), 5))
    except Exception as error:
        return f"no: {type(error).__name__}"
    return "yes" if outputs == list(range(5)) else f"no: {outputs}"


def expansion(tool: Any) -> str:
    """A generator of three outputs per item."""
    if not hasattr(tool, "expand"):
        return "no"
    outputs = sorted(tool.expand(three, range(10)))
    return "yes" if outputs == sorted(3 * list(range(10))) else f"no: {outputs}"


def three(item: int) -> Iterator[int]:
    yield from (item, item, item)


def dawdle(item: int) -> int:
    time.sleep(random.Random(item).random() * 0.02)
    return item


def ordered(tool: Any) -> str:
    """Items that take from 0 to 20 ms each."""
    outputs = list(tool.ordered(dawdle, range(100)))
    return "yes" if outputs == list(range(100)) else "no"


def raises_here(item: int) -> int:
    if item == 50:
        raise ValueError("bad item")
    return item


def exception(tool: Any) -> str:
    """The function raises ValueError: what does the caller get, with the worker's traceback?"""
    try:
        results = list(tool.stream(raises_here, range(200)))
    except Exception as error:
        remote = "raises_here" in traceback.format_exc()
        trace = "with" if remote else "without"
        return f"{type(error).__name__} {trace} the worker's traceback"
    return f"no error, {len(results)} of 200 results"


def sleep_2_ms(item: int) -> int:
    time.sleep(0.02 if item % 20 == 0 else 0.002)
    return item


def percentiles(tool: Any) -> str:
    """Service times of 2 ms, and of 20 ms for one item in twenty: what is told?"""
    if not hasattr(tool, "percentiles"):
        return "no"
    told = tool.percentiles(sleep_2_ms, range(1000))
    return f"yes ({', '.join(f'{name} {1e3 * told[name]:.1f}' for name in told)} ms)"


CHECKS: dict[str, Callable[[Any], str]] = {
    check.__name__: check
    for check in (
        bounded_source,
        pool_per_stage,
        bounded_between_stages,
        expansion,
        lazy_expansion,
        ordered,
        stops_early,
        killed_worker,
        exception,
        percentiles,
    )
}


def leave(verdict: str) -> None:
    """Say the verdict and end at once, whatever the tool's threads and processes are doing."""
    print(verdict, flush=True)
    os._exit(0)


if __name__ == "__main__":
    leave(CHECKS[sys.argv[1]](importlib.import_module(f"peers.{sys.argv[2]}")))
