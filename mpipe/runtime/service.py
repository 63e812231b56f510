"""The process of a coordinator: it serves a run, and stays a moment for the next one of its caller.

It stays only after a clean drain, and if it holds nothing of the run any more. On the line:

    caller                                      this process
    ("the run", its file, the caller's pid)     serves it
                                                ("drained", whether it stays)
    descriptors of the next run, within STAY_S  puts them where the caller has them
                                                ("ready")
    ("the run", ...)                            serves it

Up to "ready" nothing of the next run was touched: whatever goes wrong before that, this process
ends and the caller starts another.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback

from ..errors import MPipeError
from ..transport.descriptors import set_limit
from . import control
from .coordinator import Coordinator
from .scarcity import explain
from .worker import leave

STAY_S = 2.0
"""How long to wait for another run, in seconds."""

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
        stays, cpu_ns = True, 0
        while stays:
            file, caller_pid = control.receive(line)
            stays = _serve(file, line, caller_pid, cpu_ns) and _is_ready(line, caller_pid)
            cpu_ns = time.process_time_ns()
    leave(0)


def _serve(file: int, line: socket.socket, caller_pid: int, cpu_ns: int) -> bool:
    """Run the run in the file; returns whether to stay. Raises `OSError` if the caller is gone."""
    try:
        spec = control.take_from_file(file)
        fds = (*spec.descriptors(), spec.reports_in)
        for inherited in fds:
            os.set_inheritable(inherited, False)
        set_limit()
        coordinator = Coordinator(spec, line, caller_pid, cpu_ns)
        if not coordinator.run():
            return False
        coordinator.close()
    except ProcessLookupError:  # the caller died before we could watch it
        return False
    except Exception as error:  # out of memory or descriptors; the kernel ends the workers
        traceback.print_exc()
        failure = MPipeError(f"the coordinator of the run failed: {explain(error)}")
        control.send(line, ("failed", pickle.dumps((failure, None))))
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


def _is_ready(line: socket.socket, caller_pid: int) -> bool:
    """Wait for the descriptors of the caller's next run, and put them in their places.

    False if none come in time or they do not fit. Raises `EOFError` or `OSError` if the caller is
    gone.
    """
    gc.collect()
    deadline = time.monotonic() + STAY_S
    fds: list[int] = []
    with open(os.pidfd_open(caller_pid), "rb", 0) as pidfd:
        poll = select.poll()
        poll.register(line, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while not fds:  # what was said twice to the run before may come first
            left_s = max(0.0, deadline - time.monotonic())
            if line.fileno() not in dict(poll.poll(left_s * 1000)):
                return False
            fds, numbers = control.receive_descriptors(line)
    if len(fds) != len(numbers) or {line.fileno(), *fds} & {*numbers}:
        return False
    for fd, number in zip(fds, numbers, strict=True):
        os.dup2(fd, number, inheritable=number in _STANDARD)
        os.close(fd)
    sys.path_importer_cache.clear()  # modules may have been written since
    control.send(line, ("ready", None))
    return True
