"""The programs of faults.py: python fault_programs.py FAULT TOOL, in a cell.

Each runs one tool over items, two workers, one fault. It does not judge: it writes down what
happens, and when, as it happens, so that the record is there whatever becomes of the program.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import peers
import records
from counted import Counted
from records import note

ITEMS = 1000
VICTIM = 300
"""The item that a fault befalls."""
ITEM_S = 0.001
LIMIT_S = 2.0
"""What an item may take, where it hangs."""
FEW = 20
SLOW_ITEMS = 50_000
SLOW_BYTES = 8192
SLOW_READ_S = 0.02
SLOW_RUN_S = 6.0
MIB = 1 << 20


def first_time() -> bool:
    """Whether the fault did not happen before; also notes that it happens now."""
    try:
        (records.scratch() / "befallen").touch(exist_ok=False)
    except FileExistsError:
        return False
    note("fault", os.getpid())
    return True


# What the workers run.


def work(item: int) -> int:
    time.sleep(ITEM_S)
    return item


def killed_once(item: int) -> int:
    if item == VICTIM and first_time():
        os.kill(os.getpid(), signal.SIGKILL)
    return work(item)


def exits(item: int) -> int:
    if item == VICTIM:
        first_time()
        os._exit(3)
    return work(item)


def crashes(item: int) -> int:
    if item == VICTIM:
        first_time()
        ctypes.string_at(0)
    return work(item)


def hangs(item: int) -> int:
    if item == VICTIM:
        first_time()
        time.sleep(3600)
    return work(item)


def raises(item: int) -> int:
    if item == VICTIM:
        first_time()
        raise ValueError(f"bad item {item}")
    return work(item)


class Homebound:
    """Cannot be pickled, by any pickler."""

    def __reduce__(self) -> str:
        first_time()
        raise TypeError("cannot pickle 'Homebound' object")


def returns_homebound(item: int) -> Any:
    return Homebound() if item == VICTIM else work(item)


def same(item: Any) -> Any:
    return item


# What the caller runs: a tool over items.

Program = Callable[[Any], Any]
"""Takes a tool, returns its outputs."""


def stream(fn: Callable[[int], Any]) -> Program:
    """Every item shall come through: a tool as it runs by default."""
    return lambda tool: tool.stream(fn, range(ITEMS))


def skipping(fn: Callable[[int], Any], source: Iterable[Any] = range(ITEMS)) -> Program:
    """One item must fail: a tool told to go on with the others, where it can be."""
    return lambda tool: getattr(tool, "skipping", tool.stream)(fn, source)


def limited(tool: Any) -> Any:
    if hasattr(tool, "limited"):
        return tool.limited(hangs, range(ITEMS), LIMIT_S)
    return skipping(hangs)(tool)


def homebound_item(tool: Any) -> Any:
    source = (Homebound() if item == VICTIM else item for item in range(ITEMS))
    return skipping(work, source)(tool)


def nothing(tool: Any) -> Any:
    first_time()
    return stream(work)(tool)


def huge(size: int) -> Callable[[Any], Iterator[Any]]:
    """Small items with a huge one among them, there and back."""

    def run(tool: Any) -> Iterator[Any]:
        payload = b"mpipe" * (size // 5)
        source = ((item, payload if item == FEW // 2 else b"") for item in range(FEW))
        first_time()
        for item, data in getattr(tool, "large", tool.stream)(same, source):
            yield item if data == (payload if item == FEW // 2 else b"") else "garbage"

    return run


def slow_consumer(tool: Any) -> Iterator[Any]:
    """The caller reads slowly: how far is the source pulled beyond what it has read?"""
    filler = os.urandom(SLOW_BYTES - 8)
    source = Counted(item.to_bytes(8, "big") + filler for item in range(SLOW_ITEMS))
    start = time.monotonic()
    for read, data in enumerate(tool.stream(same, source), 1):
        note("ahead", source.pulled - read)
        yield int.from_bytes(data[:8], "big")
        if time.monotonic() > start + SLOW_RUN_S:
            break
        time.sleep(SLOW_READ_S)


PROGRAMS: dict[str, Program] = {
    "nothing": nothing,
    "kill_worker": stream(killed_once),
    "kill_caller": stream(work),
    "exit": skipping(exits),
    "crash": skipping(crashes),
    "hang": limited,
    "exception": skipping(raises),
    "interrupt_caller": stream(work),
    "interrupt_group": stream(work),
    "unpicklable_item": homebound_item,
    "unpicklable_result": skipping(returns_homebound),
    "huge_256_mib": huge(256 * MIB),
    "huge_2150_mib": huge(2150 * MIB),
    "slow_consumer": slow_consumer,
}


def record(program: Program, tool: Any) -> None:
    """Read all outputs, and write down each, what is told of failed items, and the end."""
    try:
        outputs = program(tool)
        letters = getattr(outputs, "dead_letters", tuple)
        for output in outputs:
            note("results", output)
            for letter in letters():
                note("told", letter.error)
        for letter in letters():
            note("told", letter.error)
        note("outcome", {"error": None})
    except BaseException as error:
        note("outcome", {"error": type(error).__name__, "text": str(error)})
        raise


def main(fault: str, tool: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off in background
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    record(PROGRAMS[fault], peers.load(tool))


if __name__ == "__main__":
    main(*sys.argv[1:])
