"""Anonymous shared memory: files without a name, so that nothing can be left behind."""

from __future__ import annotations

import mmap
import os

_MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE from Python 3.11 on


def create_file(size: int) -> int:
    """A sparse file of `size` bytes that no path leads to; returns its descriptor."""
    fd = os.memfd_create("mpipe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_shared(fd: int, size: int, offset: int = 0) -> mmap.mmap:
    """Map part of the file; all processes see what one stores."""
    return mmap.mmap(fd, size, offset=offset)


def map_private(fd: int, size: int, offset: int) -> mmap.mmap:
    """Map part of the file; what this process stores it alone sees."""
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    return mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)


def words(memory: mmap.mmap) -> memoryview:
    """The memory as 64-bit words, each stored and loaded whole."""
    return memoryview(memory).cast("Q")
