"""Every exception mpipe raises on purpose; the type says whose action caused it.

Yours: `GraphError`, `OptionError`, `ItemError`, `Closed`, `Full`, `Timeout`, `Cancelled`.
A stage's: `StageError`.  The machine's: `WorkerDied`, `CoordinatorDied`.
"""

from __future__ import annotations

from typing import Any


class MPipeError(Exception):
    """Base of all errors raised by mpipe."""


class GraphError(MPipeError, ValueError):
    """The stages and connections do not form a graph that can run."""


class OptionError(MPipeError, ValueError):
    """An option is unknown or has a value it cannot take; the message lists what is valid."""


class ItemError(MPipeError, TypeError):
    """An item cannot travel between processes: it cannot be pickled, or is over the size limit."""


class Cancelled(MPipeError):
    """The run was stopped by `cancel()`, by its cancel event or by its deadline."""


class Timeout(MPipeError, TimeoutError):
    """`drain(timeout=...)` ran out of time; the run goes on and may be drained again."""


class _NotAccepted(MPipeError):
    """`items` is the tuple of items that were not accepted, in the order given."""

    def __init__(self, message: str, items: tuple[Any, ...] = ()) -> None:
        super().__init__(message, items)
        self.items = items

    def __str__(self) -> str:
        return str(self.args[0])


class Closed(_NotAccepted):
    """The run takes no more input: it was closed, drained or has ended.

    `items` is the tuple of items that were not accepted, in the order given.
    """


class Full(_NotAccepted):
    """`push(..., timeout=...)` ran out of time while the stage's buffer was full.

    `items` is the tuple of items that were not accepted, in the order given.
    """


class StageError(MPipeError):
    """A stage's function failed on an item and the stage says `on_error="raise"`.

    `stage` and `worker` (index in the pool) say where, `position` which item (its place in the
    source, as text), `attempts` how often it was tried, `remote_traceback` holds the worker's own
    traceback. The original exception is `__cause__` where it could be pickled.
    """

    def __init__(
        self,
        message: str,
        stage: str,
        worker: int,
        position: str = "",
        attempts: int = 1,
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message, stage, worker, position, attempts, remote_traceback)
        self.stage = stage
        self.worker = worker
        self.position = position
        self.attempts = attempts
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\n\n{self.remote_traceback}" if self.remote_traceback else text


class WorkerDied(MPipeError):
    """A worker died and could not be replaced without breaking a promise.

    `exitcode` is the process's exit status, or minus the number of the signal that killed it;
    `position` what it was working on (its place in the source, as text); `remote_traceback` where
    its threads were, if it could still say so: after a segfault or a timeout, not after SIGKILL.
    """

    def __init__(
        self,
        message: str,
        stage: str,
        worker: int,
        exitcode: int,
        position: str = "",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message, stage, worker, exitcode, position, remote_traceback)
        self.stage = stage
        self.worker = worker
        self.exitcode = exitcode
        self.position = position
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\n\n{self.remote_traceback}" if self.remote_traceback else text


class CoordinatorDied(MPipeError):
    """The coordinator process died; its workers died with it."""
