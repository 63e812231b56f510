"""The last words of a worker: where its threads were when it crashed, or before it was killed.

The standard library's fault handler writes them, in a signal handler that needs no interpreter
lock. They go into one file of the run, where each seat has a place of its own; the coordinator
reads them when the worker is dead.
"""

from __future__ import annotations

import faulthandler
import os
import signal

ASK = signal.SIGRTMAX - 5
"""Asks a worker for its last words; it goes on after them."""

_PLACE_BYTES = 1 << 20
"""Room for the words of a seat in the file, which is sparse."""

_MOST_BYTES = 1 << 16


def listen(fd: int, seat: int) -> None:
    """In a worker: write last words to its place in the file `fd`, from now on."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    os.lseek(own, seat * _PLACE_BYTES, os.SEEK_SET)
    faulthandler.enable(own)
    faulthandler.register(ASK, own, chain=False)


def take(fd: int, seat: int) -> str:
    """In the coordinator: the last words of the dead worker in a seat, which are gone then."""
    raw = os.pread(fd, _MOST_BYTES, seat * _PLACE_BYTES).partition(b"\0")[0]
    if raw:
        os.pwrite(fd, bytes(len(raw)), seat * _PLACE_BYTES)
    return raw.decode(errors="replace")
