"""What workers tell the coordinator, and it the caller: errors and log lines, one datagram each.

The coordinator passes an error on without unpickling it; only the caller does.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import time

from ..errors import StageError
from .kernel import picklable_cause

MAX_BYTES = 150_000
"""Largest message: a datagram must fit the socket's buffer."""

MAX_LOG = 2_000
"""Longest log line, in characters."""

_LOG_BURST = 10

_MAX_OUTCOME = 300
"""Longest description of a failed call, in characters."""


class Reporter:
    """The worker's end of the report socket, inherited as descriptor `fd`."""

    def __init__(self, fd: int, seat: int) -> None:
        self._socket = socket.socket(fileno=fd)
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


def pack_error(error: StageError) -> bytes:
    """Pickle an error with its cause, as far as both survive that, within `MAX_BYTES`."""
    cause = picklable_cause(error.__cause__)
    packed = pickle.dumps((error, cause))
    if len(packed) > MAX_BYTES:
        error.remote_traceback = error.remote_traceback[-MAX_BYTES // 4 :]
        message = str(error.args[0])[: MAX_BYTES // 4]
        error.args = (message, *error.args[1:5], error.remote_traceback)
        packed = pickle.dumps((error, None))
    return packed


def unpack_error(packed: bytes) -> BaseException:
    """The error, with its cause where it could be had."""
    error, cause = pickle.loads(packed)
    assert isinstance(error, BaseException)
    error.__cause__ = cause
    return error
