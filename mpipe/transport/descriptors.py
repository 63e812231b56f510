"""File descriptors of a run, kept out of the way of the program that they live in.

They get high numbers: when user code closes descriptors that it does not own and then opens files,
those get low numbers, and a run fails because its descriptors are gone instead of writing into
what the user opened. Nor do they ever stand in for a closed standard input, output or error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket

_FLOOR = 512
_LAST_STANDARD = 2


def lift(fd: int) -> int:
    """Move a new descriptor to a high number, if one is free; returns it."""
    lifted = _dup_from(min(_FLOOR, limit() // 2), fd)
    if lifted is None and fd <= _LAST_STANDARD:
        lifted = _dup_from(_LAST_STANDARD + 1, fd)
    if lifted is None:
        return fd
    os.close(fd)
    return lifted


def _dup_from(floor: int, fd: int) -> int | None:
    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
    return None


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a private connection that keeps messages apart."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = (socket.socket(fileno=lift(end.detach())) for end in ends)
    for end in (one, other):
        end.setblocking(True)  # whatever socket.setdefaulttimeout() says
    return one, other


def fill_standard() -> None:
    """Let /dev/null stand in for standard descriptors that are closed.

    Else a mapping's own descriptor may get such a number, and whatever prints writes into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)


def limit() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def require_spare(count: int) -> None:
    """Raise `OSError` unless this process may have so many descriptors more."""
    taken: list[int] = []
    try:
        taken.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    finally:
        for fd in taken:
            os.close(fd)


def set_limit(most: int | None = None) -> None:
    """Allow this process so many descriptors; as many as it may have, if `most` is None."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if most is None else most, hard))
