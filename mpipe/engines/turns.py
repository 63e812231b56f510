"""A lock for the caller's threads that knows whether it is this thread's turn already.

A signal handler runs between any two steps of its thread, also in the middle of a locked part, and
so does what a finaliser or a pickled item calls. It may ask `mine` instead of waiting for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, cast

from ..errors import MPipeError


class Turns:
    """Take one by `with turns.lock`: no exception from a signal can come between lock and block.

    Where that would wait too long: `lock.acquire(timeout=...)`; then, in a `with lock` block that
    lets go whatever happens, `lock.release()` the first of the two; and `leave` at last, for an
    exception that came before the block.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.mine: Callable[[], bool] = cast(Any, self.lock)._is_owned
        """Whether this thread is inside of the lock."""

    def leave(self) -> None:
        """Let go of the lock if this thread has it."""
        if self.mine():
            self.lock.release()


def is_busy(turns: Iterable[Turns]) -> bool:
    """Whether a signal handler, or a finaliser, asks in the middle of a call of its thread."""
    return any(turn.mine() for turn in turns)


def check_not_busy(turns: Iterable[Turns], call: str) -> None:
    """Refuse to wait there: others may wait for what this thread is in the middle of."""
    for turn in turns:
        if turn.mine():
            raise MPipeError(f"{call}() was called in the middle of another call of its thread")
