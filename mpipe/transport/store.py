"""A seat's store: records in shared memory that a replacement finds as the dead worker left them.

    head   | two roots of `ROOT_WORDS` words | the landing, for what is read off a pipe
    heap   | extents, one after the other, up to a header of 0:
           |     header: size in units and a bit "in use" | bytes | kind | number | token | data

A record is in use from the one store of its header on, which is also how an extent is split. Which
of the two roots counts is for the owner to say: it commits them with its counters.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from . import memory
from .layout import PAGE

STORE_BYTES = 1 << 38
"""Room of one seat; only pages that were touched cost memory."""

UNIT = 64
ROOT_WORDS = LANDING_WORDS = 512
_LANDING = 2 * ROOT_WORDS
_HEAP = (_LANDING + LANDING_WORDS) * 8
_IN_USE = 1

GIVE_BACK_BYTES = 1 << 16
"""Freed records of this size on give their memory back at once."""


class Record(NamedTuple):
    """A record in use: where it lies, how many bytes it has, and what its owner said of it."""

    offset: int
    size: int
    kind: int
    number: int
    token: int


class Store:
    """The store of seat number `seat` in the file `fd`. One process uses it at a time."""

    def __init__(self, fd: int, seat: int) -> None:
        self._memory = memory.map_shared(fd, STORE_BYTES, seat * STORE_BYTES)
        self._words = memory.words(self._memory)
        self._raw = memoryview(self._memory)
        self._free: list[tuple[int, int]] = []  # offset and bytes of unused extents, in order
        self._end = _HEAP

    @property
    def landing(self) -> memoryview:
        """Words that survive the worker, for a read to put its data into."""
        return self._raw[_LANDING * 8 : _HEAP]

    def root(self, number: int) -> Sequence[int]:
        """Words of root 0 or 1, as last written."""
        start = number * ROOT_WORDS
        count = self._words[start]
        return list(self._words[start + 1 : start + 1 + count])

    def put_root(self, number: int, values: Sequence[int]) -> None:
        """Write the root that is not in force."""
        start = number * ROOT_WORDS
        self._words[start + 1 : start + 1 + len(values)] = memoryview(array("Q", values))
        self._words[start] = len(values)

    def add(
        self, parts: Sequence[bytes | memoryview], kind: int, number: int = 0, token: int = 0
    ) -> Record:
        """Keep the parts as one record."""
        size = sum(len(part) for part in parts)
        needed = -(-(UNIT + size) // UNIT) * UNIT
        offset, rest = self._find(needed)
        start = offset + UNIT
        for part in parts:
            self._raw[start : start + len(part)] = part
            start += len(part)
        head = offset // 8
        about = (size, kind, number, token)
        self._words[head + 1 : head + 5] = memoryview(array("Q", about))
        if rest or offset == self._end:
            self._words[(offset + needed) // 8] = rest  # the next header
        self._words[head] = needed | _IN_USE
        if rest:
            insort(self._free, (offset + needed, rest))
        elif offset == self._end:
            self._end += needed
        return Record(offset, *about)

    def _find(self, needed: int) -> tuple[int, int]:
        """Where to put so many bytes, and how many stay unused behind them."""
        for index, (offset, size) in enumerate(self._free):
            if size == needed or size >= needed + UNIT:
                del self._free[index]
                return offset, size - needed
        return self._end, 0

    def read(self, record: Record) -> memoryview:
        """A record's data, to be used before it is freed."""
        start = record.offset + UNIT
        return self._raw[start : start + record.size]

    def free(self, record: Record) -> None:
        """Forget a record."""
        offset = record.offset
        size = self._words[offset // 8] & ~_IN_USE
        self._words[offset // 8] = size
        if size >= GIVE_BACK_BYTES:
            self._give_back(offset + PAGE, offset + size)
        insort(self._free, (offset, size))
        self._merge(self._free.index((offset, size)))

    def _give_back(self, start: int, end: int) -> None:
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if end > start:
            self._memory.madvise(mmap.MADV_REMOVE, start, end - start)

    def _merge(self, index: int) -> None:
        """Join a free extent with its free neighbours; at the end of the heap, shorten that."""
        free = self._free
        if index + 1 < len(free) and sum(free[index]) == free[index + 1][0]:
            free[index] = (free[index][0], free[index][1] + free.pop(index + 1)[1])
        if index and sum(free[index - 1]) == free[index][0]:
            free[index - 1] = (free[index - 1][0], free[index - 1][1] + free.pop(index)[1])
            index -= 1
        offset, size = free[index]
        if offset + size == self._end:
            del free[index]
            if size >= GIVE_BACK_BYTES:
                self._give_back(offset + PAGE, offset + size)
            self._end, size = offset, 0
        self._words[offset // 8] = size

    def recover(self) -> list[Record]:
        """The records in use; to be called before anything else."""
        records: list[Record] = []
        while header := self._words[self._end // 8]:
            offset, size = self._end, header & ~_IN_USE
            self._end += size
            if header & _IN_USE:
                records.append(Record(offset, *self._words[offset // 8 + 1 : offset // 8 + 5]))
            else:
                self._free.append((offset, size))
        return records

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._raw.release()
        self._memory.close()
