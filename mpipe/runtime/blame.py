"""What to conclude from a worker's death; pure, one record per seat.

The first death on a frame blames nobody: the replacement handles the frame carefully, noting each
item before it is tried. A death while an item is noted is that item's; the unexplained first death
is put to its account too. An item with `max_crashes` deaths is not tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

MAX_SETUP_DEATHS = 10
MAX_UNEXPLAINED_DEATHS = 20
"""Deaths in a row on one frame outside of any item's function."""

_FREE_RESTARTS = 2
_FIRST_DELAY_S = 0.01
_MAX_DELAY_S = 1.0


class Verdict(Enum):
    """What to do after a death."""

    RESTART = auto()
    CONDEMN = auto()
    """Restart, and do not try the item again."""
    SETUP_FAILS = auto()
    FRAME_FAILS = auto()


@dataclass(frozen=True)
class Death:
    """What the seat's words say.

    `frame` is the token in hand (0 for none), `item` the index that was noted in it, or None;
    `in_setup` says that the worker was not ready yet.
    """

    frame: int
    item: int | None
    in_setup: bool


@dataclass
class Record:
    """The deaths of one seat since it last made progress."""

    max_crashes: int
    frame: int = 0
    setup_deaths: int = 0
    unexplained: int = 0
    crashes: dict[int, int] = field(default_factory=dict)

    def judge(self, death: Death) -> Verdict:
        """Take note of a death and decide."""
        if death.in_setup:
            self.setup_deaths += 1
            return Verdict.SETUP_FAILS if self.setup_deaths >= MAX_SETUP_DEATHS else Verdict.RESTART
        self.setup_deaths = 0
        if death.frame != self.frame:
            self.frame, self.unexplained, self.crashes = death.frame, 0, {}
        if not death.frame:
            return Verdict.RESTART
        if death.item is None:
            self.unexplained += 1
            failed = self.unexplained >= MAX_UNEXPLAINED_DEATHS
            return Verdict.FRAME_FAILS if failed else Verdict.RESTART
        if death.item not in self.crashes and self.unexplained:
            self.crashes[death.item] = 1
            self.unexplained = 0
        self.crashes[death.item] = self.crashes.get(death.item, 0) + 1
        if self.crashes[death.item] >= self.max_crashes:
            del self.crashes[death.item]
            return Verdict.CONDEMN
        return Verdict.RESTART

    @property
    def delay(self) -> float:
        """Seconds to wait before the restart; grows with deaths in a row."""
        in_a_row = self.setup_deaths + self.unexplained + sum(self.crashes.values())
        if in_a_row <= _FREE_RESTARTS:
            return 0.0
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * float(2 ** (in_a_row - _FREE_RESTARTS - 1)))
