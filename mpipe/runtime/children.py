"""How the coordinator makes workers: forked from its clean process, or as fresh interpreters.

Either way a worker is killed by the kernel when the coordinator dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Iterable

from ..transport.descriptors import set_limit
from . import control
from .blame import Caution
from .functions import reseed
from .leaving import leave
from .leftovers import lead
from .preload import preload
from .spec import RunSpec
from .worker import run_worker

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_WORKERS_OOM_SCORE, _MOST_OOM_SCORE = 300, 1000
_libc = ctypes.CDLL(None)

_SPAWN = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from mpipe.runtime.children import spawned; spawned(sys.argv[1])"
)


def make_worker(
    spec: RunSpec, seat: int, caution: Caution, private: Iterable[int]
) -> tuple[int, int]:
    """Start a worker for a seat; returns its pid and pidfd. Raises `OSError`, and leaves nothing.

    The worker does not keep the descriptors in `private`.
    """
    if spec.start_method == "fork":
        pid = _fork_worker(spec, seat, caution, private)
    else:
        pid = _spawn_worker(spec, seat, caution)
    try:
        return pid, os.pidfd_open(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _fork_worker(spec: RunSpec, seat: int, caution: Caution, private: Iterable[int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _live_and_leave(spec, seat, caution, parent, private)
    return pid


def _spawn_worker(spec: RunSpec, seat: int, caution: Caution) -> int:
    import subprocess  # of those that are forked, none needs it

    from .interpreter import interpreter

    fd = control.put_in_file((spec, seat, caution, os.getpid()))
    try:
        command = interpreter(_SPAWN, str(fd))
        fds = (*spec.descriptors(), fd)
        process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
    finally:
        os.close(fd)
    process.returncode = 0  # reaped by pid, not by this object
    return process.pid


def spawned(fd: str) -> None:
    """What a spawned worker runs."""
    spec, seat, caution, parent = control.take_from_file(int(fd))
    for inherited in spec.descriptors():
        os.set_inheritable(inherited, False)
    preload(spec)
    _live_and_leave(spec, seat, caution, parent)


def _live_and_leave(
    spec: RunSpec, seat: int, caution: Caution, parent: int, private: Iterable[int] = ()
) -> None:
    """Whatever comes, this process ends here: a thread that user code left does not keep it."""
    status = 1
    try:
        for fd in private:
            with contextlib.suppress(OSError):
                os.close(fd)
        _live(spec, seat, caution, parent)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        leave(status)


def _live(spec: RunSpec, seat: int, caution: Caution, parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        leave(1)
    lead()
    set_limit(spec.max_descriptors)
    os.environ.update(spec.environment)
    _go_first_when_memory_runs_out()
    _keep_freed_memory()
    reseed()
    run_worker(spec, seat, caution)


def _go_first_when_memory_runs_out() -> None:
    """Let the kernel kill a worker, which is replaced, rather than the caller or coordinator."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+b", 0) as file:
        score = min(_MOST_OOM_SCORE, int(file.read()) + _WORKERS_OOM_SCORE)
        file.seek(0)
        file.write(b"%d" % score)


def _keep_freed_memory() -> None:
    """Let malloc keep what large arrays leave behind, for the arrays of the next item.

    Else each item's temporary arrays are pages of the kernel's again, at a fault each.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        _libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        _libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)
