"""Processes and `multiprocessing.Queue`, as one writes it by hand."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from workloads import Stage

NAME = "multiprocessing.Queue by hand"
PACKAGE = None
TRIES = FUSES = False  # see queues_batched.py
LENGTH = 100


class End:
    """Tells the last reader of a queue from the others: all writers have ended."""

    def __init__(self, writers: int, readers: int) -> None:
        self._ended = multiprocessing.Value("i", 0)
        self._writers = writers
        self._readers = readers

    def items(self, queue: Any) -> Iterator[Any]:
        """What comes out of a queue, until each writer has put `None` behind its last item."""
        while True:
            message = queue.get()
            if message is not None:
                yield message
                continue
            with self._ended:
                self._ended.value += 1
                ended = self._ended.value
            if ended == self._writers:
                for _ in range(self._readers - 1):
                    queue.put(None)
            if ended >= self._writers:
                return


def work(stage: Stage, taken: Any, end: End, given: Any) -> None:
    for item in end.items(taken):
        for output in stage.fn(item) if stage.many else (stage.fn(item),):
            given.put(output)
    given.put(None)


def feed(source: Iterable[Any], given: Any) -> None:
    for item in source:
        given.put(item)
    given.put(None)


def run(
    make_queue: Callable[[], Any], stages: Sequence[Stage], source: Iterable[Any]
) -> Iterator[Any]:
    """A queue before each stage and one after the last; a thread feeds the first."""
    queues = [make_queue() for _ in range(len(stages) + 1)]
    sizes = [1, *(stage.workers for stage in stages), 1]
    ends = [End(*pair) for pair in pairwise(sizes)]
    processes = [
        multiprocessing.Process(target=work, args=(stage, queues[i], ends[i], queues[i + 1]))
        for i, stage in enumerate(stages)
        for _ in range(stage.workers)
    ]
    for process in processes:
        process.start()
    threading.Thread(target=feed, args=(source, queues[0]), daemon=True).start()
    yield from ends[-1].items(queues[-1])
    for process in processes:
        process.join()


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Iterator[Any]:
    return run(lambda: multiprocessing.Queue(LENGTH), stages, source)
