"""What to conclude from a worker's death; pure, one record per seat.

The first death on a frame blames nobody, unless the worker had noted its item: the replacement
handles the frame carefully, item by item, noting each before it is tried. A death while an item is
noted is that item's; the unexplained first death is put to its account too. An item with
`max_crashes` deaths is condemned: it is failed without being tried again. But not one that a worker
before had got past: what comes after it is out, so it is tried until it passes again.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

MAX_SETUP_DEATHS = 10
MAX_UNEXPLAINED_DEATHS = 20
"""Deaths in a row on one frame that no item is to blame for."""

_FREE_RESTARTS = 2
_FIRST_DELAY_S = 0.01
_MAX_DELAY_S = 0.5


class Verdict(Enum):
    """What to do after a death."""

    RESTART = auto()
    CONDEMN = auto()
    """Restart, and do not try the item again."""
    SETUP_FAILS = auto()
    FRAME_FAILS = auto()


class Death(NamedTuple):
    """What is known of a death.

    `frame` is the token in hand (0 for none, `END` while finishing), `item` the index that was
    noted in it, or None, `settled` how many of its items were done with; `in_setup` says that the
    worker was not ready yet. `how` puts `exitcode` into words.
    """

    frame: int
    item: int | None
    in_setup: bool
    exitcode: int = 0
    how: str = ""
    settled: int = 0
    excused: bool = False
    """What it had in hand has nothing to do with it: it was paused, or it was killed over a limit
    but too late, because it had got on meanwhile."""
    trace: str = ""
    """Where its threads were, as far as it could say."""
    was_passed: bool = False
    """A worker before it had got on past the item, and outputs of later ones are out."""


class Caution(NamedTuple):
    """What a replacement is told: to handle frame `frame` carefully.

    `condemned` has the last death on each item that is not to be tried, by index in the frame.
    """

    frame: int
    condemned: Mapping[int, Death]


class Record:
    """The deaths of one seat since it last made progress."""

    def __init__(self, max_crashes: int) -> None:
        self.max_crashes = max_crashes
        self.frame = 0
        self.setup_deaths = 0
        self.unexplained = 0
        """Deaths in a row outside of any item, without an item settled in between."""
        self.open_account = False
        """Whether there was such a death that no item has been blamed for."""
        self.settled = 0
        self.crashes: dict[int, int] = {}
        self.condemned: dict[int, Death] = {}

    def judge(self, death: Death) -> Verdict:
        """Take note of a death and decide."""
        if death.in_setup:
            self.setup_deaths += 1
            return Verdict.SETUP_FAILS if self.setup_deaths >= MAX_SETUP_DEATHS else Verdict.RESTART
        self.setup_deaths = 0
        if death.frame != self.frame:
            self.frame, self.unexplained, self.open_account = death.frame, 0, False
            self.crashes, self.condemned = {}, {}
        elif death.settled > self.settled:
            self.unexplained = 0
        self.settled = death.settled
        if not death.frame or death.excused:
            return Verdict.RESTART
        if death.item is None or death.was_passed:
            self.unexplained += 1
            self.open_account = self.open_account or death.item is None
            failed = self.unexplained >= MAX_UNEXPLAINED_DEATHS
            return Verdict.FRAME_FAILS if failed else Verdict.RESTART
        return self._blame(death.item, death)

    def recycled(self) -> None:
        """A worker has handled something and made way for a new one."""
        self.setup_deaths = 0

    def _blame(self, item: int, death: Death) -> Verdict:
        if item not in self.crashes and self.open_account:
            self.crashes[item] = 1
            self.open_account = False
        self.unexplained = 0
        self.crashes[item] = self.crashes.get(item, 0) + 1
        if self.crashes[item] < self.max_crashes:
            return Verdict.RESTART
        del self.crashes[item]
        self.condemned[item] = death
        return Verdict.CONDEMN

    @property
    def caution(self) -> Caution:
        """For the replacement."""
        return Caution(self.frame, dict(self.condemned))

    @property
    def delay(self) -> float:
        """Seconds to wait before the restart; grows with deaths in a row."""
        in_a_row = self.setup_deaths + self.unexplained + sum(self.crashes.values())
        if in_a_row <= _FREE_RESTARTS:
            return 0.0
        doublings = min(in_a_row - _FREE_RESTARTS - 1, 16)
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * float(2**doublings))


def describe_crashes(max_crashes: int) -> str:
    """What a condemned item did, in words."""
    return f"it killed its worker {'once' if max_crashes == 1 else f'{max_crashes} times'}"


def describe_exit(exitcode: int) -> str:
    """A process's end in words: its exit code, or the signal that killed it."""
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hint = " (from outside, or because memory ran out)" if -exitcode == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
