"""What workers tell the coordinator, and it the caller: errors and log lines, one datagram each.

The coordinator passes an error on without unpickling it; only the caller does.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import time

from ..errors import MPipeError, StageError

MAX_BYTES = 150_000
"""Largest message: a datagram must fit the socket's buffer."""

MAX_LOG = 2_000
"""Longest log line, in characters."""

_UTF8 = "utf-8"

_LOG_BURST = 10

_MAX_OUTCOME = 300
"""Longest description of a failed call, in characters."""


class Reporter:
    """The worker's end of the report socket, inherited as descriptor `fd`."""

    def __init__(self, fd: int, seat: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)  # whatever socket.setdefaulttimeout() says
        self._seat = seat
        self._logged = 0
        self._last_log = 0.0

    def error(self, error: StageError) -> None:
        """Tell of an error that ends the run; waits for room in the socket."""
        self._socket.sendall(pickle.dumps(("error", self._seat, pack_error(error))))

    def outcome(self, error: str) -> None:
        """Wake the coordinator for what a circuit breaker should hear; never waits."""
        with contextlib.suppress(OSError):
            text = pickle.dumps(("outcome", self._seat, error[:_MAX_OUTCOME]))
            self._socket.send(text, socket.MSG_DONTWAIT)

    def log(self, message: str) -> None:
        """Tell of a skipped item: the first ones, then at most one a second, and never waits."""
        now = time.monotonic()
        self._logged += 1
        if self._logged > _LOG_BURST and now - self._last_log < 1.0:
            return
        self._last_log = now
        if self._logged > _LOG_BURST:
            message += f" ({self._logged:,} items skipped by this worker so far)"
        with contextlib.suppress(OSError):
            text = pickle.dumps(("log", self._seat, message[:MAX_LOG]))
            self._socket.send(text, socket.MSG_DONTWAIT)


def pack(error: MPipeError, cause: bytes = b"") -> bytes:
    """An error as a message, with its pickled cause."""
    return pickle.dumps((error, cause))


def pack_error(error: StageError) -> bytes:
    """A worker's error with its cause, as far as both survive that, within `MAX_BYTES`."""
    packed = pack(error, _pack_cause(error.__cause__))
    if len(packed) > MAX_BYTES:
        most = MAX_BYTES // 4
        error.remote_traceback = _cut(error.remote_traceback.encode(_UTF8, "replace")[-most:])
        message = _cut(str(error.args[0]).encode(_UTF8, "replace")[:most])
        error.args = (message, *error.args[1:5], error.remote_traceback)
        packed = pack(error)
    return packed


def _cut(text: bytes) -> str:
    return text.decode(_UTF8, "ignore")


def _pack_cause(error: BaseException | None) -> bytes:
    """The error pickled, if it survives that; else nothing."""
    with contextlib.suppress(Exception):
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    return b""


def unpack_error(packed: bytes) -> BaseException:
    """The error, with its cause where it can be had."""
    error, cause = pickle.loads(packed)
    assert isinstance(error, BaseException)
    with contextlib.suppress(Exception):  # its class may be made of something that is not here
        error.__cause__ = pickle.loads(cause) if cause else None
    return error
