"""The coordinator that the last run left behind, ready for the next one; at most one per process.

It goes away by itself, and holds nothing of a run. It is a child of this process that exits at a
time of its own: it is reaped when the next run starts, or at the interpreter's exit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import socket
import subprocess

from ..runtime import control
from ..runtime.coordinator import GRACE_S
from ..runtime.spec import RunSpec
from ..runtime.worker import at_leave

_KILLING_S = 2.5
"""How long a coordinator may take to end workers, and what they left behind, after their grace, in
seconds."""

_READY_S = 1.0
"""How long a coordinator that has nothing to do may take to answer, in seconds."""

_STANDARD_OUTPUTS = 1, 2


class Child:
    """A coordinator, as its caller sees it: a process, the line to it, and the run it serves.

    `origin` is all that made it what it is. A run that it does not serve any more lets it be.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], line: socket.socket, origin: object, run: RunSpec
    ) -> None:
        self.process = process
        self.line = line
        self.origin = origin
        self.run = run
        self.owner = os.getpid()

    def begin(self, file: int) -> None:
        """Let it begin the run in the file; raises `OSError` when it is gone."""
        control.send(self.line, (file, self.owner))

    def hang_up(self) -> None:
        """Close the line, which ends the run; may be repeated.

        A process that was forked meanwhile has the line too, so closing it would tell nobody.
        """
        self._shut(socket.SHUT_RDWR)
        self._close_line()

    def finish(self) -> None:
        """Let it end what it does, and wait for that."""
        self._shut(socket.SHUT_WR)
        self.join()

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # user code closed it
            self.line.shutdown(how)

    def _close_line(self) -> None:
        with contextlib.suppress(OSError):
            self.line.close()

    def join(self) -> None:
        """Wait until it exits, its children reaped; kill it if it does not."""
        self._wait_for_exit(GRACE_S + _KILLING_S)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _wait_for_exit(self, seconds: float) -> None:
        with contextlib.suppress(OSError), open(os.pidfd_open(self.process.pid), "rb", 0) as pidfd:
            _wait(pidfd.fileno(), seconds)  # not if user code has reaped it

    def end(self) -> None:
        """Kill and reap it; may be repeated."""
        self.process.kill()
        self.process.wait()
        self._close_line()

    def forget(self) -> None:
        """In a process that was forked from the owner: let it be."""
        self.process.returncode = 0
        self._close_line()

    def serve(self, run: RunSpec, file: int) -> bool:
        """Give it another run; False if it does not take it, and then has touched nothing of it."""
        fds = (file, *run.descriptors(), run.reports_in, *_STANDARD_OUTPUTS)
        if len(fds) > control.MOST_DESCRIPTORS:
            return False
        try:
            control.send_descriptors(self.line, fds)
            _wait(self.line.fileno(), _READY_S)
            if control.receive(self.line, socket.MSG_DONTWAIT)[0] != "ready":
                return False
            self.run = run
            self.begin(file)
        except (OSError, EOFError):
            return False
        return True


def _wait(fd: int, seconds: float) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(seconds * 1000)


_kept: list[Child] = []  # changed only by one append or one pop, whichever thread is at it


def keep(child: Child) -> None:
    """Keep a coordinator that stays, instead of one from before; may be repeated."""
    if child not in _kept:
        _kept.append(child)
    while len(_kept) > 1:
        _end_first()


def take(origin: object, run: RunSpec, file: int) -> Child | None:
    """The coordinator that is kept, now serving `run`; None if there is none that will do."""
    child = _pop()
    if child is None:
        return None
    try:
        if child.origin == origin and child.serve(run, file):
            return child
    except BaseException:
        child.end()
        raise
    child.end()
    return None


def end() -> None:
    """End the coordinator that is kept, if there is one."""
    while _kept:
        _end_first()


atexit.register(end)
at_leave.append(end)  # where this is a worker that runs pipelines of its own


def _end_first() -> None:
    if child := _pop():
        child.end()


def _pop() -> Child | None:
    with contextlib.suppress(IndexError):
        child = _kept.pop(0)
        if child.owner == os.getpid():
            return child
        child.forget()
    return None
