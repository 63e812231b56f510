"""The caller's end of a run: frames of results, and dead letters.

Threads take turns. A signal handler runs in the middle of what its own thread does, and must not
read when that was reading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..errors import MPipeError
from ..runtime.spec import RunSpec
from ..stats import DeadLetter
from .base import Deadline
from .inbox import Frame, Inbox
from .turns import Turns, check_not_busy

_MAX_LETTERS = 10_000
"""Dead letters kept for a caller that does not read them; then the stages that make them wait."""

_LETTERS = "dead letters; iterate dead_letters() while the run goes on, in a thread if need be"
_RESULTS = "results; iterate run.results() to its end before drain(), or in a thread"

UNREAD_S = 1.0
"""How long a run may wait for somebody to read before that is an error, in seconds."""


def check_read(unread: str, deadline: Deadline) -> Deadline:
    """Raise if the run still waits for room at the deadline, because of what is `unread`.

    Returns the deadline for the next look.
    """
    if unread and deadline.passed:
        raise MPipeError(f"the run waits for room, because nobody reads its {unread}")
    return deadline if unread else Deadline(UNREAD_S)


class Reader:
    """Reads until `close`; what it has read by then can still be taken.

    `check` raises what ended the run, if it ended without all results. A signal handler must not
    wait for results while its thread is in the middle of this, or of one of the `others_turns`.
    """

    def __init__(
        self, spec: RunSpec, check: Callable[[], None], others_turns: Sequence[Turns]
    ) -> None:
        self.turns = Turns()
        self._all_turns = *others_turns, self.turns
        self._check = check
        graph = spec.plan.graph
        letting = [stage.name for stage in graph.stages if stage.on_error == "dead_letter"]
        self._results = self._letters = None
        if spec.results:
            self._results = Inbox(spec.results, "results", graph.terminals)
        if spec.dead_letters:
            self._letters = Inbox(spec.dead_letters, "dead letters", letting)
        self._letters_read: deque[DeadLetter] = deque()
        self._thread: int | None = None
        self._closed = False

    def frames(self, wait: Callable[[Inbox], None]) -> Iterator[Frame | None]:
        """Frames of results until the run ends; `wait` is called while there is none, then None.

        A frame whose items were not all taken comes again.
        """
        inbox = self._results
        assert inbox is not None
        self._thread, unread = threading.get_ident(), Deadline(UNREAD_S)
        try:
            while True:
                check_not_busy(self._all_turns, "results")
                with self.turns.lock:
                    if not self._closed:
                        inbox.load()
                if inbox.frames:
                    frame = inbox.frames[0]
                    yield frame
                    self._finish(inbox, frame)
                    continue
                if inbox.ended:
                    return
                self._check()
                wait(inbox)
                self.collect_letters()
                if self._letters is not None:
                    unread = check_read(self._unread_letters(), unread)
                yield None
        finally:
            self._thread = None

    def _finish(self, inbox: Inbox, frame: Frame) -> None:
        with self.turns.lock:
            if inbox.frames and inbox.frames[0] is frame:  # no other thread was quicker
                inbox.frames.popleft()

    def collect_letters(self) -> None:
        """Read the dead letters that have come, as far as there is room for them."""
        inbox = self._letters
        if inbox is None or self.turns.mine():
            return
        with self.turns.lock:
            while not self._closed and len(self._letters_read) < _MAX_LETTERS and inbox.load():
                self._keep(inbox)

    def _keep(self, inbox: Inbox) -> None:
        while inbox.frames:
            self._letters_read.extend(inbox.frames[0].items)
            inbox.frames.popleft()

    def add_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters of the caller's own."""
        self._letters_read.extend(letters)

    def letters(self) -> Iterator[DeadLetter]:
        """The dead letters that have come and were not given before."""
        while True:
            self.collect_letters()
            try:
                letter = self._letters_read.popleft()
            except IndexError:
                return
            yield letter

    def unread(self) -> str:
        """What holds the run up because nobody reads it, and what to do; "" if nothing does."""
        if letters := self._unread_letters():
            return letters
        if self._results is None or self._thread not in (None, threading.get_ident()):
            return ""
        with self.turns.lock:
            return _RESULTS if not self._closed and self._results.full else ""

    def _unread_letters(self) -> str:
        """As `unread`: whether as many are here as are kept, and there is no room on the way."""
        inbox = self._letters
        if inbox is None or len(self._letters_read) < _MAX_LETTERS:
            return ""
        with self.turns.lock:
            return _LETTERS if not self._closed and inbox.full else ""

    def read_rest(self) -> None:
        """Read all that has come, so that it can be taken after the end."""
        if self._results is not None:
            while self._results.load(more=True):
                pass
        if self._letters is not None:
            while self._letters.load():
                self._keep(self._letters)

    def close(self) -> None:
        """Let go of the shared memory; may be repeated."""
        self._closed = True
        for inbox in (self._results, self._letters):
            if inbox is not None:
                inbox.close()
