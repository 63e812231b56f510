"""When a worker process is used up: it has handled so many items, or holds so much memory."""

from __future__ import annotations

import contextlib
import ctypes
import os

from ..errors import OptionError
from ..stage import StageSpec, loses_memory

_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None)


def own_memory(pid: int | str = "self") -> int:
    """Resident memory that a process does not share with others, in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb", 0) as file:
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


class Wear:
    """Of this process, against the limits of its stage."""

    def __init__(self, spec: StageSpec) -> None:
        self._max_items = spec.max_items
        self._max_memory = spec.max_memory
        self.items = 0
        """Handled by this process so far."""

    def check(self, stateful: bool) -> None:
        """Raise `OptionError` if a new process, set up, cannot keep the limits."""
        used = own_memory() if self._max_memory is not None else 0
        if self._max_memory is not None and used > self._max_memory:
            raise OptionError(
                f"max_memory is {self._max_memory:,} bytes, but {used:,} are in use before the "
                f"first item"
            )
        if stateful and (self._max_memory or self._max_items) is not None:
            raise OptionError(loses_memory("max_memory" if self._max_memory else "max_items"))

    def add(self, items: int) -> bool:
        """Count handled items; returns whether the process is used up."""
        self.items += items
        if self._max_items is not None and self.items >= self._max_items:
            return True
        if self._max_memory is None or own_memory() <= self._max_memory:
            return False
        with contextlib.suppress(AttributeError):  # not glibc
            _libc.malloc_trim(0)  # what is free, but kept for the next item, does not count
        return own_memory() > self._max_memory
