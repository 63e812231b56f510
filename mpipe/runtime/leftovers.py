"""What a worker has started and not ended: the rest of its process group, when it is gone itself.

Every worker leads a process group of its own, which everything inherits that it starts. When it has
ended, the others have a moment to end by themselves, or to leave the group, as daemons do; then
they get SIGTERM, and SIGKILL a second later, all at once.

A group's number cannot become another process's while the group has members (POSIX, "Process ID
Reuse"); after that not before Linux has given all other numbers out.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial

_ASK_S, _KILL_S, _GIVE_UP_S = 0.1, 1.1, 1.5
"""When to send SIGTERM, when SIGKILL, and when to let be what cannot be killed: seconds after the
worker's end."""

_LOOK_S = 0.02


def lead() -> None:
    """Make this process, a worker, the leader of a group."""
    os.setpgid(0, 0)


class Leftovers:
    """The groups of workers that have ended, as long as there is someone in them."""

    def __init__(self) -> None:
        self._ended: dict[int, float] = {}  # when each group's worker did
        self._asked: set[int] = set()

    def worker_ended(self, pid: int) -> None:
        """A worker is reaped: whatever else is in its group is to end."""
        if _signal(pid, 0):
            self._ended[pid] = time.monotonic()

    def wait_s(self) -> float | None:
        """Seconds until the next look, None if there is nobody left over."""
        return _LOOK_S if self._ended else None

    def look(self) -> None:
        """Do what is due."""
        for group, ended in [*self._ended.items()]:
            if not self._end(group, time.monotonic() - ended):
                del self._ended[group]
                self._asked.discard(group)

    def end_all(self) -> None:
        """Wait until nobody is left over, at most `_GIVE_UP_S` after the last worker's end."""
        while self._ended:
            time.sleep(_LOOK_S)
            self.look()

    def _end(self, group: int, waited_s: float) -> bool:
        """Returns whether somebody may still be in it."""
        number = 0
        if waited_s >= _KILL_S:
            number = signal.SIGKILL
        elif waited_s >= _ASK_S and group not in self._asked:
            self._asked.add(group)
            number = signal.SIGTERM
        return _signal(group, number) and waited_s < _GIVE_UP_S


def _signal(group: int, number: int) -> bool:
    """Send it to all of the group; returns whether there is anyone in it who has not ended."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # they have become other users'
        pass
    return any(map(partial(_is_alive, group), filter(str.isdigit, os.listdir("/proc"))))


def _is_alive(group: int, pid: str) -> bool:
    """Whether a process is of the group, and not a zombie: who adopts it may be slow to reap it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
    except OSError:  # gone, or not to be seen
        return False
    return int(its_group) == group and state not in b"ZX"
