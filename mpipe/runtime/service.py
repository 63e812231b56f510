"""The process of a coordinator: it serves a run, and stays a moment for the next one of its caller.

It stays only after a clean drain, and if it holds nothing of the run any more. On the line:

    caller                                      this process
    ("here", descriptors), within FIRST_S       puts them where the caller has them
                                                ("ready", None)
    ("run", (the run's file, the caller's pid)) serves it
                                                ("drained", whether it stays)
    ("here", those of the next), within STAY_S  ...

Up to "ready" nothing of the run was touched: whatever goes wrong before that, this process ends and
the caller starts another. If the first run has so many descriptors that they do not go through the
line, this process has inherited them, and is told of the run at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

from ..errors import MPipeError
from ..transport.descriptors import set_limit
from . import control
from .coordinator import Coordinator
from .leaving import leave
from .reports import pack
from .scarcity import explain

FIRST_S, STAY_S = 10.0, 2.0
"""How long to wait for the first run, and for another one, in seconds."""

_STANDARD = 0, 1, 2


def main(fd: int) -> None:
    """What the coordinator's fresh interpreter runs; `fd` is its end of the control socket."""
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    line = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(_STANDARD)))
    os.close(fd)  # the descriptor of some later run may have its number
    with contextlib.suppress(EOFError, OSError):  # the caller is gone
        run, used_ns = _next_run(line, os.getppid(), FIRST_S), 0
        while run and _serve(*run, line, used_ns):
            run, used_ns = _next_run(line, run[1], STAY_S), time.process_time_ns()
    leave(0)


def _serve(file: int, caller_pid: int, line: socket.socket, used_ns: int) -> bool:
    """Run the run in the file, after so much CPU time; returns whether to stay.

    Raises `OSError` if the caller is gone.
    """
    try:
        spec = control.take_from_file(file)
        fds = (*spec.descriptors(), spec.reports_in)
        for inherited in fds:
            os.set_inheritable(inherited, False)
        set_limit()
        coordinator = Coordinator(spec, line, caller_pid, used_ns)
        if not coordinator.run():
            return False
        coordinator.close()
    except ProcessLookupError:  # the caller died before we could watch it
        return False
    except Exception as error:  # out of memory or descriptors; the kernel ends the workers
        traceback.print_exc()
        failure = MPipeError(f"the coordinator of the run failed: {explain(error)}")
        control.send(line, ("failed", pack(failure)))
        return False
    for fd in fds:
        os.close(fd)
    stays = _holds_nothing(line)
    control.send(line, ("drained", stays))
    return stays


def _holds_nothing(line: socket.socket) -> bool:
    """Whether this process has only what it had before its run, so that the next finds it clean."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return False
    listed = {int(fd) for fd in os.listdir("/proc/self/fd")}
    known = {*_STANDARD, line.fileno()}
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    return (
        len(listed - known) == 1  # what listed them
        and len(os.listdir("/proc/self/task")) == 1
        and "/memfd:" not in mapped
    )


def _next_run(line: socket.socket, caller_pid: int, seconds: float) -> tuple[int, int] | None:
    """Wait for a run; returns its file, and the caller's pid. Its descriptors are in their places.

    None if none comes in time or its descriptors do not fit. Raises `EOFError` or `OSError` if the
    caller is gone.
    """
    gc.collect()
    deadline = time.monotonic() + seconds
    with open(os.pidfd_open(caller_pid), "rb", 0) as pidfd:
        poll = select.poll()
        poll.register(line, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            if line.fileno() not in dict(poll.poll(left_s * 1000)):
                return None
            fds, (message, value) = control.receive_descriptors(line)
            if message == "run":
                file, caller_pid = value
                return file, caller_pid
            if message == "here":  # else it was said, a second time, to the run before
                if not _place(fds, value, {line.fileno(), pidfd.fileno()}):
                    return None
                control.send(line, ("ready", None))
                deadline = time.monotonic() + FIRST_S


def _place(fds: list[int], numbers: Sequence[int], taken: set[int]) -> bool:
    """Put descriptors where the caller has them; False if some are missing or in the way."""
    if len(fds) != len(numbers) or {*taken, *fds} & {*numbers}:
        return False
    for fd, number in zip(fds, numbers, strict=True):
        os.dup2(fd, number, inheritable=number in _STANDARD)
        os.close(fd)
    sys.path_importer_cache.clear()  # modules may have been written since
    return True
