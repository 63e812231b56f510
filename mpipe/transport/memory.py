"""Anonymous shared memory: files without a name, so that nothing can be left behind."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource

from .descriptors import lift

_SHARE_OF_ADDRESS_SPACE = 16
"""An area that takes a larger part than one of so many is not mapped as a whole."""

_MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE from Python 3.11 on


def create_file(size: int) -> int:
    """A sparse file of `size` bytes that no path leads to; returns its descriptor."""
    fd = lift(os.memfd_create("mpipe", os.MFD_CLOEXEC))
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        what = f"{error.strerror}: shared memory of {size:,} bytes (see ulimit -f)"
        raise OSError(error.errno, what) from error
    return fd


def map_shared(fd: int, size: int, offset: int = 0) -> mmap.mmap:
    """Map part of the file; all processes see what one stores."""
    return _map(fd, size, offset, mmap.MAP_SHARED)


def map_private(fd: int, size: int, offset: int) -> mmap.mmap:
    """Map part of the file; what this process stores it alone sees."""
    return _map(fd, size, offset, mmap.MAP_PRIVATE | _MAP_NORESERVE)


def _map(fd: int, size: int, offset: int, flags: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
    except OSError as error:
        what = f"{error.strerror}: mapping {size:,} bytes shared between processes"
        raise OSError(error.errno, what) from error


def _address_space() -> int:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def words(memory: mmap.mmap) -> memoryview:
    """The memory as 64-bit words, each stored and loaded whole."""
    return memoryview(memory).cast("Q")


def unmap(mapping: mmap.mmap, *views: memoryview) -> None:
    """Let go of memory; when an interrupted call still holds it, as soon as nobody does."""
    with contextlib.suppress(BufferError):
        for view in views:
            view.release()
        mapping.close()


class Area:
    """Equal parts of a shared file, one behind the other from `offset` on.

    They are mapped all at once when the first is used; or each by itself, for as long as it is
    used, where that is much of the address space that the process may have (RLIMIT_AS).
    """

    def __init__(self, fd: int, offset: int, part_bytes: int, parts: int) -> None:
        self._fd = fd
        self._offset = offset
        self._part_bytes = part_bytes
        self._size = part_bytes * parts
        self._whole: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._too_large = self._size > _address_space() // _SHARE_OF_ADDRESS_SPACE

    def part(self, index: int, size: int) -> memoryview:
        """The first `size` bytes of a part."""
        view = self._view or self._map_whole()
        if view is None:
            return memoryview(map_shared(self._fd, size, self._offset + index * self._part_bytes))
        start = index * self._part_bytes
        return view[start : start + size]

    def private(self, index: int, size: int) -> mmap.mmap:
        """A private view of the first `size` bytes of a part: stores stay in this process."""
        return map_private(self._fd, size, self._offset + index * self._part_bytes)

    def discard(self, index: int, size: int) -> None:
        """Give back the pages of the first `size` bytes (whole pages) of a part."""
        offset = index * self._part_bytes
        if self._map_whole() is None or self._whole is None:
            map_shared(self._fd, size, self._offset + offset).madvise(mmap.MADV_REMOVE)
        else:
            self._whole.madvise(mmap.MADV_REMOVE, offset, size)

    def _map_whole(self) -> memoryview | None:
        if self._view is None and not self._too_large:
            try:
                self._whole = map_shared(self._fd, self._size, self._offset)
            except OSError:
                self._too_large = True
                return None
            self._view = memoryview(self._whole)
        return self._view

    def close(self) -> None:
        """Unmap."""
        if self._view is not None and self._whole is not None:
            unmap(self._whole, self._view)
