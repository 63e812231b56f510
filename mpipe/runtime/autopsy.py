"""What a dead worker's seat says: what it had in hand, how far it was, and who killed it."""

from __future__ import annotations

import signal

from ..transport import counters
from ..transport.counters import Board
from ..transport.frame import Tag
from ..transport.token import END, plain
from .blame import Death, describe_exit
from .lastwords import take
from .limits import Kill, at_work_on
from .wording import describe_frame, describe_position


class Autopsy:
    """Examines the seats of a run."""

    def __init__(self, board: Board, last_words: int) -> None:
        self._board = board
        self._last_words = last_words

    def examine(self, seat: int, exitcode: int, kill: Kill | None) -> Death:
        """What is known of the death of the worker in seat number `seat`."""
        state = self._board.get(seat, counters.STATE)
        noted, trace = self._board.get(seat, counters.ITEM), take(self._last_words, seat)
        item, how = noted - 1 if noted else None, describe_exit(exitcode)
        excused = state == counters.PAUSED
        if kill is not None and exitcode == -kill.signal:
            item, how = kill.item, kill.how
            excused = not kill.just or kill.words != at_work_on(self._board, seat)
        elif exitcode == -signal.SIGKILL:
            trace = ""  # what it said before that was about something else
        frame = self._frame_in_hand(seat)
        return Death(
            frame=frame,
            item=item,
            in_setup=state == counters.STARTING,
            exitcode=exitcode,
            how=how,
            settled=self._board.row(seat).settled,
            excused=excused,
            trace=trace,
            was_passed=item is not None and self._was_passed(seat, frame, item),
        )

    def _was_passed(self, seat: int, frame: int, item: int) -> bool:
        """Whether something is out that comes after the item."""
        return self._board.get(seat, counters.REACHED) > counters.reached(frame, item + 1)

    def _frame_in_hand(self, seat: int) -> int:
        """The frame the seat was handling, by its id, 0 if that is counted already."""
        frame = self._board.get(seat, counters.FRAME)
        return 0 if frame == plain(self._board.get(seat, counters.COMMITTED)) else frame

    def position(self, seat: int, death: Death) -> str:
        """Where in the source comes from what the worker had in hand."""
        if death.frame in (0, END):
            return ""
        origin, span, exact = (
            self._board.get(seat, word) for word in (counters.ORIGIN, counters.SPAN, counters.EXACT)
        )
        tag = Tag(0, 0, origin, span, exact)
        return describe_frame(tag) if death.item is None else describe_position(tag, death.item)
