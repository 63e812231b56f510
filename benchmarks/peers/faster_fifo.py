"""As queues.py, on the queues of faster-fifo."""

# mypy: disable-error-code="import-not-found, import-untyped"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, Full
from typing import Any

from faster_fifo import Queue
from workloads import Stage

from . import queues

NAME = "faster-fifo by hand"
PACKAGE = "faster-fifo"
BYTES = 16 << 20


class Fifo:
    """A queue that waits for as long as it takes: by itself it gives up now and then."""

    def __init__(self) -> None:
        self._queue = Queue(BYTES)

    def put(self, message: Any) -> None:
        while True:
            with suppress(Full):
                self._queue.put(message)
                return

    def get(self) -> Any:
        while True:
            with suppress(Empty):
                return self._queue.get()


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    return queues.run(Fifo, stages, source)
