"""The caller's end of a run: frames of results, and dead letters.

Threads take turns. A signal handler runs in the middle of what its own thread does, and must not
read when that was reading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint

from ..errors import MPipeError
from ..runtime.spec import RunSpec
from ..stats import DeadLetter
from .base import Deadline
from .inbox import Frame, Inbox, Unreadable
from .link import Link
from .turns import Turns, check_not_busy

_MAX_LETTERS = 10_000
"""Dead letters kept for a caller that does not read them; then the stages that make them wait."""

_LETTERS = "dead letters; iterate dead_letters() while the run goes on, in a thread if need be"
_RESULTS = "results; iterate run.results() to its end before drain(), or in a thread"

UNREAD_S = 1.0
"""How long a run may wait for somebody to read before that is an error, in seconds."""


class Patience:
    """Looks now and then at what `unread` says that nobody reads, and for how long already."""

    def __init__(self, reader: Reader, unread: Callable[[], str]) -> None:
        self._reader = reader
        self._unread = unread
        self._seen: tuple[int, int] | None = None
        self._deadline = Deadline(None)

    def lost(self) -> str:
        """What nobody has read for `UNREAD_S`, though the run waits for that; "" if nothing."""
        unread = self._unread()
        seen = self._reader.taken if unread else None
        if seen != self._seen:
            self._seen, self._deadline = seen, Deadline(UNREAD_S)
        return unread if self._deadline.passed else ""

    def enforce(self) -> None:
        """Fail the run if there is something."""
        if lost := self.lost():
            self._reader.fail(f"the run waits for room, because nobody reads its {lost}")


class Reader:
    """Reads until `close`; what it has read by then can still be taken.

    What it cannot read fails the run, by the `link`. A signal handler must not wait for results
    while its thread is in the middle of this, or of one of the `others_turns`.
    """

    def __init__(self, spec: RunSpec, link: Link, others_turns: Sequence[Turns]) -> None:
        self.turns = Turns()
        self._all_turns = *others_turns, self.turns
        self._link = link
        graph = spec.plan.graph
        letting = [stage.name for stage in graph.stages if stage.on_error == "dead_letter"]
        self._results = self._letters = None
        if spec.results:
            self._results = Inbox(spec.results, "results", graph.terminals)
        if spec.dead_letters:
            self._letters = Inbox(spec.dead_letters, "dead letters", letting)
        self._letters_read: deque[DeadLetter] = deque()
        self._threads: dict[object, int] = {}  # of each iterator of results, where it went on last
        self._taken = 0
        self._closed = False

    def frames(self, wait: Callable[[Inbox], None]) -> Iterator[Frame | None]:
        """Frames of results until the run ends; `wait` is called while there is none, then None.

        A frame whose items were not all taken comes again.
        """
        inbox = self._results
        assert inbox is not None
        me, patience = object(), Patience(self, self.unread_letters)
        try:
            while True:
                self._link.check_owner()
                check_not_busy(self._all_turns, "results")
                self._threads[me] = threading.get_ident()
                self._load(inbox)
                if inbox.frames:
                    frame = inbox.frames[0]
                    yield frame
                    self._finish(inbox, frame)
                    continue
                if inbox.ended:
                    return
                self._link.check()
                self.collect_letters()
                patience.enforce()
                wait(inbox)
                yield None
        finally:
            self._threads.pop(me, None)

    def fail(self, why: str) -> None:
        """End the run, which cannot go on like this."""
        self._link.fail(MPipeError(why))

    def _load(self, inbox: Inbox) -> bool:
        """Read a frame, unless there is one; what cannot be read ends the run."""
        try:
            with self.turns.lock:
                return not self._closed and inbox.load()
        except Unreadable as error:
            self._link.fail(error)
            raise

    def _finish(self, inbox: Inbox, frame: Frame) -> None:
        with self.turns.lock:
            self._taken += 1
            if inbox.frames and inbox.frames[0] is frame:  # no other thread was quicker
                inbox.frames.popleft()

    @property
    def taken(self) -> tuple[int, int]:
        """Changes whenever somebody takes a result, or a dead letter."""
        with self.turns.lock:
            frames = self._results.frames if self._results is not None else ()
            return self._taken, length_hint(frames[0].items) if frames else 0

    def collect_letters(self) -> None:
        """Read the dead letters that have come, as far as there is room for them."""
        inbox = self._letters
        if inbox is None or self.turns.mine():
            return
        self._keep(inbox)  # what was read when an exception came from outside
        while len(self._letters_read) < _MAX_LETTERS and self._load(inbox):
            self._keep(inbox)

    def _keep(self, inbox: Inbox) -> None:
        with self.turns.lock:
            while inbox.frames:
                self._letters_read.extend(inbox.frames[0].items)
                inbox.frames.popleft()

    def add_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters of the caller's own."""
        self._letters_read.extend(letters)

    def letters(self) -> Iterator[DeadLetter]:
        """The dead letters that have come and were not given before."""
        while True:
            self._link.check_owner()
            self.collect_letters()
            try:
                letter = self._letters_read.popleft()
            except IndexError:
                return
            self._taken += 1
            yield letter

    def unread(self) -> str:
        """What holds the run up because nobody reads it, and what to do; "" if nothing does."""
        if letters := self.unread_letters():
            return letters
        here = threading.get_ident()
        if self._results is None or any(at != here for at in [*self._threads.values()]):
            return ""
        with self.turns.lock:
            return _RESULTS if not self._closed and self._results.full else ""

    def unread_letters(self) -> str:
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
            self._keep(self._letters)
            while self._letters.load():
                self._keep(self._letters)

    def close(self) -> None:
        """Let go of the shared memory; may be repeated."""
        self._closed = True
        for inbox in (self._results, self._letters):
            if inbox is not None:
                inbox.close()
