"""The contract of an engine: what `Run` asks of whatever runs the plan."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeAlias
from weakref import WeakMethod

from ..errors import MPipeError
from ..options import Event
from ..plan import RunOptions
from ..stats import DeadLetter, Stats

Batches: TypeAlias = Generator[Iterable[Any], None, None]
"""Results, some at a time: whoever wants single ones pays for a step of C instead of one of Python.
Closing it ends the run."""


class Engine(Protocol):
    """Runs one plan once. Methods may be called from several threads of the caller."""

    def push(self, items: Sequence[Any], targets: Sequence[str], timeout: float | None) -> None:
        """Send each item to each of the stages `targets`; return when all are in their buffers.

        Raises `Full` with the items that no target accepted, `ItemError`, or the run's failure.
        """

    def stream(self, source: Iterable[Any], ordered: bool) -> Batches:
        """Pull `source` as fast as the stages allow; yield results, `ordered` as the source is."""

    def close(self) -> None:
        """No more input: let each stage end when its buffer is empty."""

    def results(self) -> Iterator[Any]:
        """Yield outputs of the terminal stages until the run ends; raise its failure."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters that have arrived and were not yielded before."""

    def stats(self) -> Stats:
        """A snapshot, the last one once the run has ended."""

    def drain(self, timeout: float | None) -> Stats:
        """Close, wait for the end, release everything; raise the run's failure or `Timeout`."""

    def cancel(self) -> None:
        """Stop now and release everything; does nothing after the end."""

    @property
    def mine(self) -> bool:
        """Whether the run is this process's, not that of one that it was forked from."""


NO_MORE = "this run takes no more items: it was closed or drained"
"""What `Closed` says."""


class Halt(BaseException):
    """Unwinds an inline run's kernels, out of reach of their handlers, with what ends the run."""

    def __init__(self, error: MPipeError) -> None:
        super().__init__(error)
        self.error = error


class Deadline:
    """A point in time to wait for, or never (`seconds` is None)."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self, at_most: float) -> float:
        """Seconds left, between 0 and `at_most`."""
        if self._end is None:
            return at_most
        return max(0.0, min(at_most, self._end - time.monotonic()))

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end


def watch(options: RunOptions, stop: Callable[[str], None]) -> Callable[[], None]:
    """Call `stop(reason)`, a method, when the deadline passes or the cancel event is set.

    Returns what ends the watch. Starts a thread if there is something to watch; it does not keep
    the method's object alive, so a run that nobody holds any more is ended as others are.
    """
    if options.deadline is None and options.cancel is None:
        return lambda: None
    from queue import Empty, SimpleQueue  # a millisecond that few runs need

    deadline, cancel = Deadline(options.deadline), options.cancel
    ended: SimpleQueue[None] = SimpleQueue()  # which a finaliser may put into at any moment
    held = WeakMethod(stop)

    def wait() -> None:
        slice_s = 1.0 if cancel is None else 0.02
        while held() is not None:
            with suppress(Empty):
                ended.get(timeout=deadline.remaining(slice_s))
                return
            reason = why_cancelled(cancel)
            if not reason and deadline.passed:
                reason = f"its deadline of {options.deadline:g} s passed"
            if reason and (stop := held()):
                stop(reason)
                return

    threading.Thread(target=wait, name="mpipe-watch", daemon=True).start()
    return partial(ended.put, None)


def why_cancelled(cancel: Event | None) -> str:
    """Why the run is to end for its cancel event; "" if it is not."""
    try:
        return "its cancel event was set" if cancel is not None and cancel.is_set() else ""
    except Exception as error:  # such as that of a manager that is gone
        return f"its cancel event failed: {type(error).__name__}: {error}"


def require_linux() -> None:
    """Raise a clear error where the mechanism of this engine does not exist."""
    if not sys.platform.startswith("linux"):
        raise MPipeError(f'the "processes" engine needs Linux, not {sys.platform}')
