"""Processes that a stage's function has started, and that outlive their worker.

The coordinator takes them for its children (`PR_SET_CHILD_SUBREAPER`, prctl(2)), else they would be
init's and nobody would know them. When a worker ends, they are asked to end (SIGTERM), and killed
after a grace period: those that clean up behind a dead process have time for it. A process in a
session of its own, as daemons are, was meant to stay and is let be; so is what has a living parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Container

_PR_SET_CHILD_SUBREAPER = 36
_CHILDREN = "/proc/self/task/{}/children"

_GRACE_S = 1.0
"""How long an orphan may take to end after SIGTERM, in seconds."""

_PATIENCE_S = 1.5
"""How long to see to an orphan at all, in seconds after SIGTERM: some cannot be killed."""

_REAP_S, _LOOK_S = 1.0, 0.02
"""How often to look for orphans that have ended, and for those that are to end, in seconds."""


def adopt() -> None:
    """From now on, orphans among the descendants become children of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Orphans:
    """The children of this process, a single-threaded one, that are not its workers."""

    def __init__(self) -> None:
        self._session = os.getsid(0)
        self._asked: dict[int, float] = {}  # when each was sent SIGTERM
        self._ending = False
        self._look_at = 0.0

    def worker_ended(self) -> None:
        """What it has started is to end too."""
        self._ending = True
        self._look_at = 0.0

    def wait_s(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._look_at - time.monotonic())

    def look(self, workers: Container[int]) -> None:
        """If it is time, reap who has ended; if a worker has, make the others end."""
        if self.wait_s():
            return
        pids = [pid for pid in _children() if pid not in workers and not _reaped(pid)]
        if self._ending:
            may_end = [self._end(pid) for pid in pids]
            self._ending = any(may_end)
        self._asked = {pid: at for pid, at in self._asked.items() if pid in pids}
        self._look_at = time.monotonic() + (_LOOK_S if self._ending else _REAP_S)

    def end_all(self) -> None:
        """No worker is left: wait until no orphan is, or none that can be ended."""
        self.worker_ended()
        while self._ending:
            time.sleep(self.wait_s())
            self.look(())

    def _end(self, pid: int) -> bool:
        """Ask it or kill it; returns whether it may still end."""
        if os.getsid(pid) != self._session:
            return False
        now = time.monotonic()
        waited_s = now - self._asked.setdefault(pid, now)
        with contextlib.suppress(PermissionError):  # it has become another user's
            if waited_s == 0:
                os.kill(pid, signal.SIGTERM)
            elif waited_s >= _GRACE_S:
                os.kill(pid, signal.SIGKILL)
        return waited_s < _PATIENCE_S


def _children() -> list[int]:
    try:
        with open(_CHILDREN.format(os.getpid())) as file:
            return [*map(int, file.read().split())]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN: they stay
        return []


def _reaped(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] != 0
