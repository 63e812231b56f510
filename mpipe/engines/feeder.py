"""A thread of the caller that pulls an iterable and pushes its items, a frame at a time.

Pulling in a thread lets results flow while the iterable waits for its next item. A part-filled
frame goes as soon as the stage it is for has nothing to do.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from ..errors import Full, MPipeError
from ..policy.batching import LEAST_PAUSE_S

_LOOK_NS = 50_000
"""How often to look whether the stage is idle, in nanoseconds."""


class Sink(Protocol):
    """Where the feeder's items go."""

    def send(self, items: list[Any], timeout: float | None) -> None:
        """Push items; raises `Full` with those that were not accepted, or the run's failure."""

    def frame_items(self) -> int:
        """How many items the next frame should have."""

    def is_idle(self) -> bool:
        """Whether a part-filled frame should go at once."""

    def pause_s(self) -> float:
        """How long to rest before more is sent, in seconds; 0 to send it now."""

    def close(self) -> None:
        """There is no more input."""


class Feeder:
    """Feeds `source` to `sink`; `error` is what the iterable raised, if it did."""

    def __init__(self, source: Iterable[Any], sink: Sink) -> None:
        self.error: BaseException | None = None
        self.resting = False
        """Whether the stages have enough to do for a while."""
        self._source = source
        self._sink = sink
        self._pending: deque[Any] = deque()
        self._sending = threading.Lock()
        self._stopped = threading.Event()
        self._frame_items = 1
        self._thread = threading.Thread(target=self._feed, name="mpipe-feeder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pull no more. The thread ends when the iterable gives up its current item, if it does."""
        self._stopped.set()
        self._thread.join(0.2)

    def nudge(self) -> bool:
        """From the thread that reads the results: send what is pending, if that is possible now.

        Returns whether something is still pending.
        """
        if self._pending and self._sink.is_idle() and self._sending.acquire(blocking=False):
            try:
                self._send(timeout=0)
            except Full as full:
                self._pending.extendleft(reversed(full.items))
            finally:
                self._sending.release()
        return bool(self._pending)

    def _feed(self) -> None:
        try:
            self._pull()
            self._flush()
            self._sink.close()
        except MPipeError:  # the run has ended; who reads the results learns why
            return
        except BaseException as error:
            self.error = error

    def _pull(self) -> None:
        pending, look = self._pending, 0
        for item in self._source:
            pending.append(item)
            if len(pending) < self._frame_items:
                now = time.perf_counter_ns()
                if now < look:
                    continue
                look = now + _LOOK_NS
                if not self._sink.is_idle():
                    continue
            self._flush()
            if self._stopped.is_set():
                return

    def _flush(self) -> None:
        while (pause := self._sink.pause_s()) and not self._stopped.is_set():
            self.resting = pause >= LEAST_PAUSE_S
            self._stopped.wait(pause)
        self.resting = False
        with self._sending:
            self._send(timeout=None)

    def _send(self, timeout: float | None) -> None:
        items: list[Any] = []
        with contextlib.suppress(IndexError):
            while True:
                items.append(self._pending.popleft())
        if items and not self._stopped.is_set():
            self._sink.send(items, timeout)
            self._frame_items = self._sink.frame_items()
