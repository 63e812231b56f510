"""Tokens through a kernel pipe: first in, first out, each read by exactly one process.

A read puts the tokens straight into shared words: there is no moment at which a killed process has
taken a token and nobody can tell. Blocking, waking one reader and fairness are the kernel's work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
from typing import NamedTuple

from .descriptors import lift
from .layout import PAGE

_INT = struct.Struct("i")

_ENOUGH_BYTES = 1 << 16
_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032  # in fcntl from Python 3.10 on, if libc has them


class PipeFds(NamedTuple):
    """Descriptors of one pipe. The same pipe is open twice for reading, because O_NONBLOCK belongs
    to the open and a reader needs both ways."""

    read: int
    read_now: int
    write: int

    def all(self) -> tuple[int, ...]:
        return tuple(self)


def create_pipe(least_bytes: int, most_bytes: int = 0) -> PipeFds:
    """A pipe with room for `least_bytes`, for `most_bytes` if the system allows that.

    A user of many pipes gets smaller ones, and writers that count on room would block for ever. All
    descriptors close on exec. Raises `OSError`.
    """
    opened = [*map(lift, os.pipe())]
    read, write = opened
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        opened.append(read_now := lift(os.open(f"/proc/self/fd/{read}", flags)))
        _make_room(write, least_bytes, most_bytes)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return PipeFds(read, read_now, write)


def _make_room(pipe: int, least_bytes: int, most_bytes: int) -> None:
    if most_bytes:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, _F_SETPIPE_SZ, most_bytes)
            return
    if fcntl.fcntl(pipe, _F_GETPIPE_SZ) < least_bytes:
        try:
            fcntl.fcntl(pipe, _F_SETPIPE_SZ, least_bytes)
        except OSError as error:
            limit = "/proc/sys/fs/pipe-user-pages-soft"
            what = f"{error.strerror}: a pipe of {least_bytes:,} bytes (see {limit})"
            raise OSError(error.errno, what) from error


def room_for(tokens: int) -> int:
    """Bytes of a pipe in which so many tokens fit, however they are written and read.

    A write begins a new page rather than cross into it, so every other page may be nearly empty.
    """
    return min(_ENOUGH_BYTES, 2 * PAGE * -(-8 * tokens // PAGE))


class TokenPipe:
    """One pipe, as used by a process that has the channel's words mapped as bytes in `memory`."""

    def __init__(self, fds: PipeFds, memory: memoryview) -> None:
        self.fds = fds
        self._memory = memory

    def take(self, index: int, count: int = 1) -> int:
        """Move up to `count` tokens into the words at `index`; returns how many, 0 when empty."""
        try:
            return os.readv(self.fds.read_now, [self._memory[index * 8 : (index + count) * 8]]) // 8
        except BlockingIOError:
            return 0

    def wait_take(self, index: int, count: int = 1) -> int:
        """As `take`, but waits until there is at least one; ends early only by a signal handler."""
        return os.readv(self.fds.read, [self._memory[index * 8 : (index + count) * 8]]) // 8

    def wait(self, seconds: float) -> None:
        """Wait until there is a token, at most so long."""
        poll = select.poll()
        poll.register(self.fds.read_now, select.POLLIN)
        poll.poll(seconds * 1000)

    def put(self, tokens: bytes | memoryview) -> None:
        """Write tokens, at most PIPE_BUF bytes of them, all at once."""
        os.write(self.fds.write, tokens)

    def waiting(self) -> int:
        """Number of tokens in the pipe."""
        return int(_INT.unpack(fcntl.ioctl(self.fds.read, termios.FIONREAD, b"\0\0\0\0"))[0]) // 8
