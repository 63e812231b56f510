"""Messages between the caller and its coordinator: one pickle each over a private socket pair.

The socket keeps messages apart, so none is ever sent or read in part, whatever interrupts. What may
be large, the run itself, goes through a file in shared memory.
"""

from __future__ import annotations

import os
import pickle
import socket
from array import array
from collections.abc import Sequence
from typing import Any

from ..transport import memory

MOST_DESCRIPTORS = 253
"""So many go with one message (Linux: SCM_MAX_FD)."""

_MOST_BYTES = 1 << 20
_GONE = "the other side of the control socket is gone"


def send(sock: socket.socket, message: Any, flags: int = 0) -> None:
    """Send one message; raises `OSError` when the other side is gone.

    `flags` may say not to wait for room: then raises `BlockingIOError`.
    """
    sock.send(pickle.dumps(message), socket.MSG_NOSIGNAL | flags)


def receive(sock: socket.socket, flags: int = 0) -> Any:
    """Wait for one message; raises `EOFError` when the other side is gone.

    `flags` may say to leave the message there, or not to wait: then raises `BlockingIOError`.
    """
    try:
        data = sock.recv(_MOST_BYTES, flags)
    except ConnectionResetError:  # it left without reading all; said once, before what it sent
        data = sock.recv(_MOST_BYTES, flags)
    if not data:
        raise EOFError(_GONE)
    return pickle.loads(data)


def send_descriptors(sock: socket.socket, fds: Sequence[int]) -> None:
    """Give the other side copies of some descriptors, with their numbers ("here"); never waits.

    Raises `OSError` when that cannot be, or when the other side is gone.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    sock.sendmsg([pickle.dumps(("here", fds))], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive_descriptors(sock: socket.socket) -> tuple[list[int], Any]:
    """Wait for one message; returns the descriptors that came with it, and what it says.

    Raises `EOFError` when the other side is gone.
    """
    flags = socket.MSG_CMSG_CLOEXEC
    data, fds, _, _ = socket.recv_fds(sock, _MOST_BYTES, MOST_DESCRIPTORS, flags)
    if not data:
        raise EOFError(_GONE)
    return fds, pickle.loads(data)


def put_in_file(message: Any) -> int:
    """Write a message into a file without a name; returns its descriptor."""
    data = pickle.dumps(message)
    fd = memory.create_file(0)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd


def take_from_file(fd: int) -> Any:
    """The message in the file, which is closed."""
    with open(fd, "rb") as file:
        file.seek(0)
        return pickle.load(file)
