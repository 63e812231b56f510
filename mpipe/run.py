"""The handle of a running pipeline: checks what the caller asks, then asks the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Any

from .checks import is_seconds
from .engines.base import Batches, Engine
from .errors import GraphError, OptionError
from .graph import Graph, unknown_stage
from .stats import DeadLetter, Stats


class Run:
    """A started pipeline. Use it in a `with` block: leaving drains, leaving by exception cancels.

    All methods may be called from several threads.
    """

    def __init__(self, graph: Graph, engine: Engine, has_results: bool) -> None:
        self._graph = graph
        self._sources = graph.sources
        self._engine = engine
        self._has_results = has_results
        self._cancelled = False

    def push(self, *items: Any, stage: str | None = None, timeout: float | None = None) -> None:
        """Send items to every stage without a predecessor, or only to `stage`.

        Blocks while a buffer is full; with `timeout` (seconds) raises `Full`, whose `items` were
        not accepted. Returns when every item is in its stage's buffer. Raises `Closed`, with such
        `items` too, after `close` or `drain`, perhaps of another thread; `ItemError` for an item
        that cannot be pickled or is too large (where the stage says `on_error="raise"`); and the
        run's failure if it has failed.
        """
        _check_timeout("push", timeout)
        targets = self._sources
        if stage is not None:
            if stage not in targets:
                raise GraphError(self._not_a_source(stage))
            targets = (stage,)
        self._engine.push(items, targets, timeout)

    def _not_a_source(self, stage: str) -> str:
        names = [spec.name for spec in self._graph.stages]
        if stage not in names:
            return f"push: {unknown_stage(stage, names)}"
        sources = ", ".join(map(repr, self._sources))
        return f"push: stage {stage!r} is fed by other stages; push goes to: {sources}"

    def close(self) -> None:
        """Say that there is no more input; the stages finish what they have. May be repeated."""
        self._engine.close()

    def results(self) -> Iterator[Any]:
        """Iterate the terminal stages' outputs as they come; ends when the run does, after `close`.

        Needs `start(results=True)`. Results that nobody reads fill their buffer (as large as that
        of the terminal stage) and then hold the stages back, up to `push`, which says so in the
        log; `drain` raises rather than wait for them for ever.
        """
        if not self._has_results:
            raise OptionError("results: start the pipeline with start(results=True) to keep them")
        return self._engine.results()

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Iterate the dead letters that have arrived since the last call; also after the end.

        Some 10,000 wait for that; more hold the run up, and after a second fail it.
        """
        return self._engine.dead_letters()

    def stats(self) -> Stats:
        """Counters and latencies now, or at the end once the run has ended. Disturbs no worker."""
        return self._engine.stats()

    def drain(self, timeout: float | None = None) -> Stats:
        """Close, wait until all items are done, release everything, return the final `Stats`.

        Raises the run's failure, `Cancelled`, or `Timeout` after `timeout` seconds (the run then
        goes on, and may be drained again).
        """
        _check_timeout("drain", timeout)
        return self._engine.drain(timeout)

    def cancel(self) -> None:
        """Stop now: workers tear down, what was in flight stays counted in `stats()`."""
        self._cancelled = True
        self._engine.cancel()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._engine.mine:
            return
        if exc_type is not None:
            self._engine.cancel()
        elif not self._cancelled:
            try:
                self._engine.drain(None)
            except BaseException:  # Ctrl-C: nothing is to go on behind the caller's back
                self._engine.cancel()
                raise


def _check_timeout(call: str, timeout: float | None) -> None:
    if timeout is not None and not is_seconds(timeout):
        raise OptionError(f"{call}: timeout must be seconds, 0 or more, not {timeout!r}")


class Outputs(Iterator[Any]):
    """The outputs of `Pipeline.run` or `imap`, as they come. Closing it early cancels the run."""

    def __init__(self, engine: Engine, batches: Batches) -> None:
        self._engine = engine
        self._batches = batches
        self._outputs = chain.from_iterable(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._outputs

    def __next__(self) -> Any:
        return next(self._outputs)

    def stats(self) -> Stats:
        """Counters and latencies now, or at the end once all outputs were taken."""
        return self._engine.stats()

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Iterate the dead letters that have arrived since the last call; also after the end.

        Some 10,000 wait for that; more hold the run up, and after a second fail it.
        """
        return self._engine.dead_letters()

    def close(self) -> None:
        """Stop the run, if it still goes on, and release everything. Any thread may do so."""
        self._engine.cancel()
        with suppress(ValueError):  # another thread waits in there; the run's end is its end
            self._batches.close()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
