"""The coordinator that is ready for the next run; at most one per process.

It is what the last run left behind, or was started while this process gets ready. It goes away by
itself, and holds nothing of a run. It is a child of this process that exits at a time of its own:
it is reaped when the next run starts, or at the interpreter's exit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime import control
from ..runtime.interpreter import interpreter
from ..runtime.leaving import at_leave
from ..runtime.stopping import GRACE_S
from ..transport.descriptors import fill_standard, socket_pair
from .surroundings import surroundings

if TYPE_CHECKING:
    from ..runtime.spec import RunSpec

_COORDINATOR = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[2:]; "
    "from mpipe.runtime.service import main; main(int(sys.argv[1]))"
)

_KILLING_S = 2.5
"""How long a coordinator may take to end workers, and what they left behind, after their grace, in
seconds."""

_READY_S, _STARTED_S = 1.0, 10.0
"""How long a coordinator may take to answer that has nothing to do, or starts; in seconds."""

_STANDARD_OUTPUTS = 1, 2

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Child:
    """A coordinator, as its caller sees it: a process, the line to it, and the run it serves.

    `origin` is all that made it what it is. A run that it does not serve any more lets it be.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], line: socket.socket, origin: object
    ) -> None:
        self.process = process
        self.line = line
        self._inode = os.fstat(line.fileno()).st_ino
        self.origin = origin
        self.run: RunSpec | None = None
        self.owner = os.getpid()

    def begin(self, file: int) -> None:
        """Let it begin the run in the file; raises `OSError` when it is gone."""
        control.send(self.line, ("run", (file, self.owner)))

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
        with contextlib.suppress(OSError):  # the other side is gone
            if self._has_line():
                self.line.shutdown(how)

    def _close_line(self) -> None:
        if self._has_line():
            self.line.close()
        else:
            self.line.detach()

    def _has_line(self) -> bool:
        """False if user code closed it: its number may be that of something else by now."""
        with contextlib.suppress(OSError):
            return os.fstat(self.line.fileno()).st_ino == self._inode
        return False

    def join(self) -> None:
        """Wait until it exits, its children reaped; kill it if it does not."""
        self._wait_for_exit(GRACE_S + _KILLING_S)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def has_exited(self) -> bool:
        """Whether it is no more; does not reap it.

        `Popen.poll` would hold a lock for ever if an exception from a signal came amid of it.
        """
        try:
            return os.waitid(os.P_PID, self.process.pid, _LOOK) is not None
        except ChildProcessError:  # user code has reaped it
            return True

    def _wait_for_exit(self, seconds: float) -> None:
        try:
            with open(os.pidfd_open(self.process.pid), "rb", 0) as pidfd:
                _wait(pidfd.fileno(), seconds)
        except ProcessLookupError:  # user code has reaped it
            return
        except OSError:  # there is no descriptor to be had: look now and then
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)

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
        """Give it a run; False if it does not take it, and then has touched nothing of it."""
        fds = (file, *run.descriptors(), run.reports_in, *_STANDARD_OUTPUTS)
        if len(fds) > control.MOST_DESCRIPTORS or not self._has_line():
            return False
        try:
            control.send_descriptors(self.line, fds)
            _wait(self.line.fileno(), _STARTED_S if self.run is None else _READY_S)
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


def start(inherited: Sequence[int] = ()) -> Child:
    """A new coordinator, which inherits these descriptors of its first run; raises `OSError`.

    All workers hash alike, spawned ones too: a replacement must see sets in the same order.
    """
    origin = _, environment, _ = _origin()
    ours, theirs = socket_pair()
    seed = str(int.from_bytes(os.urandom(4), "little"))
    with theirs:
        try:
            process = subprocess.Popen(
                interpreter(_COORDINATOR, str(theirs.fileno())),
                pass_fds=(theirs.fileno(), *inherited),
                stdin=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": seed, **environment},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return Child(process, ours, origin)


def _origin() -> tuple[list[str], dict[str, str], object]:
    """All that a coordinator gets from this process: its command, environment and surroundings."""
    return interpreter(_COORDINATOR), dict(os.environ), surroundings()


_kept: list[Child] = []  # changed only by one append or one pop, whichever thread is at it


def prepare() -> None:
    """Let a coordinator start for the run to come, unless one is kept, while this process does
    something else. Where that cannot be, the run will say so."""
    if not _kept:
        with contextlib.suppress(OSError):
            fill_standard()
            keep(start())


def keep(child: Child) -> None:
    """Keep a coordinator that stays, instead of one from before; may be repeated."""
    if child not in _kept:
        _kept.append(child)
    while len(_kept) > 1:
        _end_first()


def take(run: RunSpec, file: int) -> Child | None:
    """The coordinator that is kept, now serving `run`; None if there is none that will do.

    It will if nothing has changed of what a new one would get from this process.
    """
    child = _pop()
    if child is None:
        return None
    try:
        if child.origin == _origin() and child.serve(run, file):
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
