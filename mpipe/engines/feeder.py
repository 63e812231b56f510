"""A thread of the caller that pulls an iterable and pushes its items, a frame at a time.

Pulling in a thread lets results flow while the iterable waits for its next item. A part-filled
frame goes as soon as the stage it is for has nothing to do; while all stages have enough to do for
a while, the thread rests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from ..errors import Full
from ..policy.batching import LEAST_PAUSE_S
from .source import BEHIND_S, Source
from .turns import Turns

_LOOK_NS = 50_000
"""How often to look whether the stage is idle, in nanoseconds."""

_QUICK_NS = 100_000
"""While pulling some items takes less than this, more are pulled at a time; in nanoseconds."""

Push = Callable[[Sequence[Any], Sequence[str], "float | None"], None]


class Feeder:
    """Feeds `items` to the stages `targets` through `push`, then calls `close`.

    `error` is what the iterable raised, or `push`: for the reader of the results.
    """

    def __init__(
        self,
        items: Iterable[Any],
        source: Source,
        targets: Sequence[str],
        push: Push,
        close: Callable[[], None],
    ) -> None:
        self.error: BaseException | None = None
        self.resting = False
        """Whether the stages have enough to do for a while."""
        self._items = items
        self._source = source
        self._targets = targets
        self._push = push
        self._close = close
        self._pending: list[Any] = []
        self._sending = Turns()
        self._stopped = False  # no Event: a finaliser may set it amid a wait of its own thread
        self._frame_items = 1
        self._thread = threading.Thread(target=self._feed, name="mpipe-feeder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pull no more. The thread ends when the iterable gives up its current item, if it does."""
        self._stopped = True
        if self._thread is not threading.current_thread():  # as when its garbage is collected there
            self._thread.join(0.2)

    def nudge(self) -> bool:
        """From the thread that reads the results: send what is pending, if that is possible now.

        Returns whether something is still pending.
        """
        lock = self._sending.lock
        try:
            idle = self._pending and self._source.is_idle(self._targets)
            if idle and lock.acquire(blocking=False):
                with lock:
                    lock.release()  # see Turns
                    try:
                        self._send(timeout=0)
                    except Full as full:  # back they go, before the feeder sends what is behind
                        self._pending[:0] = full.items
        finally:
            self._sending.leave()
        return bool(self._pending)

    def _feed(self) -> None:
        try:
            self._pull()
            self._flush()
            if not self._stopped:
                self._close()
        except BaseException as error:
            self.error = error

    def _pull(self) -> None:
        pending, items, clock = self._pending, iter(self._items), time.perf_counter_ns
        look, size, began = 0, 1, clock()
        for item in items:
            pending.append(item)
            lacking = max(0, self._frame_items - len(pending))
            pending.extend(islice(items, min(size - 1, lacking)))  # seen by `nudge` as they come
            now = clock()
            size = min(2 * size, self._frame_items) if now - began < _QUICK_NS else 1
            is_idle = False
            if len(pending) < self._frame_items:
                if now < look:
                    began = now
                    continue
                look = now + _LOOK_NS
                is_idle = self._source.is_idle(self._targets)
                if not is_idle:
                    began = clock()
                    continue
            self._flush(is_idle)
            if self._stopped:
                return
            began = clock()

    def _flush(self, is_idle: bool = False) -> None:
        while not (is_idle or self._stopped) and (pause := self._pause_s()):
            self.resting = pause >= LEAST_PAUSE_S
            time.sleep(pause)
        self.resting = False
        with self._sending.lock:
            self._send(timeout=None)

    def _pause_s(self) -> float:
        return BEHIND_S if self._source.is_ahead else self._source.pause_s(self._targets)

    def _send(self, timeout: float | None) -> None:
        items = tuple(self._pending)  # of which the whole is no copy
        del self._pending[: len(items)]
        if items and not self._stopped:
            self._push(items, self._targets, timeout)
            self._frame_items = self._source.frame_items(self._targets)
