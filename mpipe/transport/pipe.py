"""Tokens through a kernel pipe: first in, first out, each read by exactly one process.

A read puts the tokens straight into shared words: there is no moment at which a killed process has
taken a token and nobody can tell. Blocking, waking one reader and fairness are the kernel's work.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from dataclasses import astuple, dataclass

_INT = struct.Struct("i")


@dataclass(frozen=True)
class PipeFds:
    """Descriptors of one pipe. The same pipe is open twice for reading, because O_NONBLOCK belongs
    to the open and a reader needs both ways."""

    read: int
    read_now: int
    write: int

    def all(self) -> tuple[int, ...]:
        return astuple(self)


def create_pipe() -> PipeFds:
    """A pipe for tokens; all descriptors close on exec."""
    read, write = os.pipe()
    try:
        read_now = os.open(f"/proc/self/fd/{read}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BaseException:
        os.close(read)
        os.close(write)
        raise
    return PipeFds(read, read_now, write)


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
