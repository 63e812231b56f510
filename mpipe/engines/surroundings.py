"""What a process inherits from the one that starts it, besides its command and its environment."""

from __future__ import annotations

import os
import signal

_STATUS = (
    *(b"Umask:", b"Uid:", b"Gid:", b"Groups:", b"Cap", b"NoNewPrivs:", b"Seccomp"),
    *(b"Cpus_allowed:", b"Mems_allowed:"),
)
_FILES = "limits", "cgroup", "oom_score_adj"


def surroundings() -> object:
    """Equal for two moments if what this thread starts then inherits the same (Linux).

    What standard output and error are is not looked at, but for whether they are terminals.
    """
    try:
        return _look()
    except (OSError, ValueError):  # there is no telling
        return object()


def _look() -> tuple[object, ...]:
    here, namespaces = "/proc/thread-self/", "/proc/thread-self/ns/"
    status = _read(here + "status").splitlines()
    return (
        [line for line in status if line.startswith(_STATUS)],
        [_read(here + name) for name in _FILES],
        [os.readlink(namespaces + name) for name in os.listdir(namespaces)],
        [(at.st_dev, at.st_ino) for at in map(os.stat, ("/", "/proc/self/cwd"))],
        [os.isatty(fd) for fd in (1, 2)],
        (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)),
        os.sched_getparam(0).sched_priority,
        _ignored_signals(status),
    )


def _read(path: str) -> bytes:
    """As bytes: a thread's name, for one, need not be text."""
    with open(path, "rb") as file:
        return file.read()


def _ignored_signals(status: list[bytes]) -> list[int]:
    """Without those between 31 and SIGRTMIN, which are the C library's: it changes them itself."""
    (mask,) = (int(line.split()[1], 16) for line in status if line.startswith(b"SigIgn:"))
    return [number for number in sorted(signal.valid_signals()) if mask >> (number - 1) & 1]
