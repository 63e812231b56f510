"""Messages between the caller and its coordinator: length and pickle over a private socket pair."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("=Q")


def send(sock: socket.socket, message: Any) -> None:
    """Send one message; raises `OSError` when the other side is gone."""
    data = pickle.dumps(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Any:
    """Wait for one message; raises `EOFError` when the other side is gone."""
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    return pickle.loads(_read(sock, length))


def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            part = sock.recv(min(1 << 20, size - len(data)))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError("the other side of the control socket is gone")
        data += part
    return bytes(data)
