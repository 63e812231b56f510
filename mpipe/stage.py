"""What a stage is: the contract for functions and classes, and what the graph holds of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from .breaker import CircuitBreaker

Kind = Literal["flat", "map", "filter"]
"""How a function's return value becomes outputs: the items in it, itself, or the input if true."""


class Stage:
    """Base class of a stage with state; pass an instance or a zero-argument factory to `add_stage`.

    One object lives in each worker: `setup()` runs once before the first item, `process(item)`
    for each item, `finish()` at the end of input, `teardown()` always, also on cancel.

    A worker's memory dies with it: when a worker of a stage that overrides `finish`, or sets
    `stateful = True`, dies, the run fails by a clear error rather than with a wrong result - unless
    the stage defines `snapshot` and `restore`. Then its replacement starts from the state as of the
    last frame that was counted and handles again what came after; the results are the same.
    """

    stateful: bool = False

    def setup(self) -> None:
        """Open what the worker needs; runs in the worker."""

    def process(self, item: Any) -> Iterable[Any] | None:
        """Turn one item into a list, tuple, generator or iterator of items; `None` for nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define process(self, item)")

    def finish(self) -> Iterable[Any] | None:
        """Emit what is left at the end of input, such as partial aggregates."""
        return None

    def snapshot(self) -> Any:
        """What `process` and `finish` depend on, as a value that can be pickled.

        Called after each frame or, if it takes long, after several ones.
        """
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """Carry on from what `snapshot` returned in a worker that died; runs after `setup`."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close what `setup` opened; runs also when the run is cancelled."""


def needs_memory(stage: Stage | type[Stage]) -> bool:
    """Whether the outputs of `stage` depend on what its worker remembers, and dies with it.

    Raises `TypeError` if it defines only one of `snapshot` and `restore`.
    """
    kind = stage if isinstance(stage, type) else type(stage)
    keeps = has_snapshot(kind)
    return not keeps and (stage.stateful or kind.finish is not Stage.finish)


def has_snapshot(kind: type[Stage]) -> bool:
    """Whether stages of this kind can say what they remember; raises as `needs_memory`."""
    saves, restores = kind.snapshot is not Stage.snapshot, kind.restore is not Stage.restore
    if saves != restores:
        missing = "restore(state)" if saves else "snapshot()"
        raise TypeError(f"{kind.__name__} must define {missing} too: they go together")
    return saves


def loses_memory(option: str) -> str:
    """Why a stage that needs its memory cannot have an option that replaces its workers."""
    return (
        f"{option} replaces workers, and what this stage remembers would be lost with them "
        f"(it overrides finish() or is stateful); define snapshot() and restore(state) to keep it"
    )


class StageSpec(NamedTuple):
    """A stage as the graph holds it: name, function, kind and checked options (see `schema`).

    `is_factory` says that `fn()` makes the `Stage` object, in the worker.
    """

    name: str
    fn: Any
    kind: Kind = "flat"
    is_factory: bool = False
    workers: int | None = None
    buffer_size: int = 1 << 15
    buffer_bytes: int = 1 << 23
    drop_on_full: bool = False
    ordered: bool = False
    on_error: str = "raise"
    retries: int = 0
    retry_delay: float = 0.0
    max_crashes: int = 3
    timeout: float | None = None
    max_items: int | None = None
    max_memory: int | None = None
    breaker: CircuitBreaker | None = None
