"""What a dead worker's seat says: what it had in hand, how far it was, and who killed it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from ..errors import MPipeError
from ..plan import Plan
from ..transport import counters, layout
from ..transport.channel import Channel
from ..transport.counters import Board
from ..transport.frame import read_header
from ..transport.token import END, SLOT_MASK, plain
from .blame import Death, describe_exit
from .limits import Kill, at_work_on
from .position import describe_frame, describe_position


class Autopsy:
    """Examines the seats of a run."""

    def __init__(self, plan: Plan, board: Board, channels: Sequence[Channel]) -> None:
        self._plan = plan
        self._board = board
        self._channels = channels

    def examine(self, seat: int, exitcode: int, kill: Kill | None) -> Death:
        """What is known of the death of the worker in seat number `seat`."""
        item = self._board.get(seat, counters.ITEM)
        how, excused = describe_exit(exitcode), False
        if kill is not None and exitcode == -signal.SIGKILL:
            how, excused = kill.how, not kill.just or kill.words != at_work_on(self._board, seat)
        return Death(
            frame=self._frame_in_hand(seat),
            item=item - 1 if item else None,
            in_setup=self._board.get(seat, counters.STATE) == counters.STARTING,
            exitcode=exitcode,
            how=how,
            settled=self._board.row(seat).settled,
            excused=excused,
        )

    def _frame_in_hand(self, seat: int) -> int:
        """The token of the frame the seat holds and has not counted yet, or 0."""
        stage = self._plan.stage_of(seat)
        channel = self._channels[stage]
        block = channel.layout.consumer(seat - self._plan.first_seat[stage])
        token = plain(channel.words[block + layout.IN_HAND])
        return 0 if token == plain(self._board.get(seat, counters.COMMITTED)) else token

    def position(self, seat: int, death: Death) -> str:
        """Where in the source comes from what the worker had in hand, as far as it can be told."""
        if death.frame in (0, END):
            return ""
        channel = self._channels[self._plan.stage_of(seat)]
        try:
            header, _ = read_header(channel.slot(death.frame & SLOT_MASK), death.frame)
        except MPipeError:  # the token was a double: the slot is another's
            return ""
        if death.item is None:
            return describe_frame(header)
        return describe_position(header, death.item)
