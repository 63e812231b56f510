"""A stage's function or object in its process: made, set up, saved, restored and torn down."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

from ..errors import StageError, WorkerDied
from ..stage import Stage, StageSpec, has_snapshot, needs_memory
from .wording import one_line


class Host:
    """Stage `spec` in worker number `worker`; `fn` is what handles an item."""

    def __init__(self, spec: StageSpec, worker: int) -> None:
        self.spec = spec
        self.fn: Callable[[Any], Any]  # once it is open
        self.stage: Stage | None = None
        self._worker = worker

    def open(self, fn: Callable[..., Any]) -> None:
        """Make the stage of `fn`, this process's copy of the function, and set it up.

        Raises `StageError` when that fails.
        """
        self.fn = fn
        try:
            stage = fn() if self.spec.is_factory else fn
            if isinstance(stage, Stage):
                self.stage = stage
                self.fn = stage.process
                stage.setup()
            elif self.spec.is_factory:
                raise TypeError(
                    f"the factory returned a {type(stage).__name__}, not an mpipe.Stage; "
                    f"a function that handles items must take one argument"
                )
        except (Exception, SystemExit) as error:
            raise self.failure("could not be set up", error) from error

    @property
    def stateful(self) -> bool:
        """Whether outputs depend on what this worker remembers, and dies with it."""
        return self.stage is not None and needs_memory(self.stage)

    @property
    def has_snapshot(self) -> bool:
        """Whether the stage can say what it remembers."""
        return self.stage is not None and has_snapshot(type(self.stage))

    def snapshot(self) -> bytes:
        """What the stage remembers, pickled; raises `StageError`."""
        from ..transport.byvalue import dumps  # which few stages need

        assert self.stage is not None
        try:
            return dumps(self.stage.snapshot())
        except (Exception, SystemExit) as error:
            raise self.failure("failed in snapshot()", error) from error

    def restore(self, state: bytes) -> None:
        """Give the stage what `snapshot` returned in another process; raises `StageError`."""
        assert self.stage is not None
        try:
            self.stage.restore(pickle.loads(state))
        except (Exception, SystemExit) as error:
            raise self.failure("failed in restore()", error) from error

    def close(self) -> None:
        """Tear the stage down, once; raises `StageError` when that fails."""
        stage, self.stage = self.stage, None
        if stage is not None:
            try:
                stage.teardown()
            except (Exception, SystemExit) as error:
                raise self.failure("could not be torn down", error) from error

    def failure(
        self, what: str, error: BaseException, position: str = "", attempts: int = 1
    ) -> StageError:
        """The error that says what happened to the stage, and in which worker."""
        name, worker = self.spec.name, self._worker
        message = f"stage {name!r} (worker {worker}) {what}: {one_line(error)}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        if isinstance(error, WorkerDied):
            trace = error.remote_traceback
        return StageError(message, name, worker, position, attempts, trace)
