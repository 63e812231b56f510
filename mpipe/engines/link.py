"""The caller's line to its coordinator: what has become of the run, and how to stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Sequence

from ..errors import Cancelled, CoordinatorDied, MPipeError
from ..runtime import control
from ..runtime.reports import unpack_error
from .standby import Child
from .turns import Turns

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT

_PUMP_S = 0.01
"""How often `check` looks at the socket, and how long to wait for who looks, in seconds."""

log = logging.getLogger("mpipe")


class Link:
    """Follows a run. `outcome` is None until it is "drained", "cancelled" or "failed"."""

    def __init__(self, coordinator: Child) -> None:
        self.outcome: str | None = None
        self.failure: BaseException | None = None
        self.ended_at: float | None = None
        """When the outcome was heard of, by `perf_counter`."""
        self.stays = False
        """Whether the coordinator can have another run, now that this one is drained."""
        self._socket = coordinator.line
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._coordinator = coordinator
        self.turns = Turns()
        self._open = True
        self._next_pump = 0.0

    @property
    def mine(self) -> bool:
        """Whether the run is this process's, not that of one that it was forked from."""
        return os.getpid() == self._coordinator.owner

    def check_owner(self) -> None:
        """Raise `MPipeError` unless it is."""
        if not self.mine:
            raise MPipeError(
                f"this run belongs to process {self._coordinator.owner}; one that was forked from "
                f"it can only look at its stats()"
            )

    @property
    def coordinator_pid(self) -> int:
        return self._coordinator.process.pid

    def check(self) -> None:
        """Raise the run's failure, if it is known; cheap enough for every push."""
        now = time.monotonic()
        if now >= self._next_pump:
            self._next_pump = now + _PUMP_S
            self.pump()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the run's failure, if it has failed: as it came, however often that was done."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def wait(self, fds: Sequence[int], seconds: float) -> None:
        """Wait until one of the descriptors is readable or the coordinator has said something.

        That is taken in unless one of them is; so call `check` beside this.
        """
        if fds or seconds >= 0.001:
            poll = select.poll()
            for fd in (*fds, self._socket.fileno() if self._open else -1):
                if fd >= 0:  # not closed by another thread
                    poll.register(fd, select.POLLIN)
            if any(fd in fds for fd, _ in poll.poll(seconds * 1000)):
                return  # what was waited for must not wait for more
        else:  # a poll would round it up to a millisecond
            time.sleep(seconds)
        self.pump()

    def pump(self) -> None:
        """Take in what the coordinator has said; never blocks.

        A message stays in the socket until it was heard: an exception from outside loses none.
        """
        lock = self.turns.lock
        if self.turns.mine():  # a signal handler in the middle of this
            return
        try:
            if lock.acquire(timeout=_PUMP_S):  # else another thread is at it
                with lock:
                    lock.release()  # see Turns
                    self._listen()
        finally:
            self.turns.leave()

    def _listen(self) -> None:
        if not self._readable.poll(0):
            self._look_for_death()
            return
        try:
            while self._open:
                self._hear(*control.receive(self._socket, _PEEK))
                control.receive(self._socket)
        except BlockingIOError:
            return
        except EOFError:
            self._open = False
            self._settle("failed", CoordinatorDied(_DIED))
        except OSError:
            self._open = False
            self._settle("failed", MPipeError(_CLOSED))

    def _look_for_death(self) -> None:
        """The line does not tell of it if a process that was forked meanwhile has its end too."""
        if self.outcome is None and self._coordinator.has_exited and not self._readable.poll(0):
            self._settle("failed", CoordinatorDied(_DIED))

    def _hear(self, message: str, value: object) -> None:
        if message == "log":
            log.warning("%s", value)
        elif message == "failed":
            assert isinstance(value, bytes)
            self._settle("failed", unpack_error(value))
        elif message == "cancelled":
            self._settle("cancelled", Cancelled(f"the run was cancelled: {value}"))
        elif self.outcome is None:
            self.stays = bool(value)
            self._settle(message, None)

    def _settle(self, outcome: str, failure: BaseException | None) -> None:
        if self.outcome is None:
            self.failure = failure
            self.ended_at = time.perf_counter()
            self.outcome = outcome

    def close_source(self) -> None:
        """Tell the coordinator that all input has been sent."""
        self._send("close", None)

    def stop(self, reason: str) -> None:
        """End the run now, unless it has ended."""
        self._end("cancelled", Cancelled(f"the run was cancelled: {reason}"), reason)

    def fail(self, failure: MPipeError) -> None:
        """End the run, also one that is drained: this process cannot go on with what came of it."""
        self._end("failed", failure, "its caller failed")
        with self.turns.lock:
            if self.failure is None:
                self.failure, self.outcome = failure, "failed"

    def _end(self, outcome: str, failure: MPipeError, reason: str) -> None:
        self.pump()
        with self.turns.lock:
            if self.outcome is None:
                self._settle(outcome, failure)
                self._send("cancelled", reason)

    def _send(self, message: str, value: object) -> None:
        with contextlib.suppress(OSError):
            if self._open:
                control.send(self._socket, (message, value))

    def leave(self) -> None:
        """Say and hear no more; wait for the coordinator to exit, unless it stays."""
        if not self.stays:
            self._coordinator.finish()
        with self.turns.lock:
            self._open = False


_DIED = (
    "the coordinator process died, killed from outside or out of memory; "
    "its workers died with it and what was in flight is lost"
)

_CLOSED = (
    "code of this process closed descriptors of the run, which it had not opened; "
    "let it close only its own, rather than a range of numbers"
)
