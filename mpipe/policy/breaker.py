"""When a stage stops calling its function, and when it tries again; pure, time is passed in.

    closed --- too many of the last calls failed ---> open <------------------------+
      ^                                                | after a while,             |
      |                                                v doubled each time          |
      +------------- the probes came through ------ half-open --- they failed, or --+
                                                                  gave no verdict

Every change begins a new *generation*. A call belongs to the generation in which it was begun;
outcomes of an earlier generation are ignored, and while it is open no call is begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import chain, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..breaker import CircuitBreaker

PATIENCE = 10
"""Half-opens in which an item may fail for free, where it can be given up without the run."""

_JITTER = 0.1
"""Share by which a pause may be shorter, so that what failed together is not tried together."""


class State(Enum):
    """Whether calls are let through: all, none, or a few."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Window:
    """The outcomes of the last `size` calls."""

    def __init__(self, size: int) -> None:
        self._failed: deque[bool] = deque(maxlen=size)
        self.errors = 0

    @property
    def calls(self) -> int:
        return len(self._failed)

    def add(self, failed: bool) -> None:
        if len(self._failed) == self._failed.maxlen:
            self.errors -= self._failed[0]
        self._failed.append(failed)
        self.errors += failed


class Breaker:
    """The breaker of one stage. `random()` gives numbers from 0 to 1.

    All times are in seconds, from one clock. `reason` says why it is in its state.
    """

    def __init__(self, settings: CircuitBreaker, workers: int, random: Callable[[], float]) -> None:
        self.settings = settings
        self.state = State.CLOSED
        self.generation = 1
        self.reason = ""
        self.trips = 0
        """How often it opened, having been closed."""
        self.reopened = 0
        """How often it opened again, having been half-open."""
        self.open_s = 0.0
        """How long it was open, without the time since `open_since`."""
        self.open_since: float | None = None
        """Since when it is open; None while it is not."""
        self.probes_succeed = False
        """Whether a probe of this half-open has succeeded."""
        self.until = 0.0
        """When it changes by itself, open or half-open."""
        self.workers = workers
        """How many workers may still make calls."""
        self._random = random
        self._closed_at_s = 0.0  # `open_s` when it was last closed
        self._period = 0.0
        self._window = Window(settings.window)
        self._probed = Window(settings.probes)
        self._failing: set[int] = set()

    @property
    def is_near(self) -> bool:
        """Whether a success may trip it: enough calls have failed, but too few were made yet."""
        if self.state is not State.CLOSED or self._window.calls >= self.settings.min_calls:
            return False
        return self._window.errors / self.settings.min_calls > self.settings.threshold

    @property
    def due(self) -> float | None:
        """When `tick` has something to do; None if never."""
        if self.state is State.CLOSED:
            return None
        return min(self.until, self._gives_up_at)

    @property
    def _gives_up_at(self) -> float:
        """When the pauses since it was last closed add up to the limit."""
        limit = self.settings.give_up_after
        if limit is None or self.open_since is None:
            return float("inf")
        return self.open_since + limit - (self.open_s - self._closed_at_s)

    def has_given_up(self, now: float) -> bool:
        """Whether the stage has paused for longer than its settings allow."""
        return now >= self._gives_up_at

    def record(self, generation: int, worker: int, successes: int, errors: int, now: float) -> None:
        """Take in outcomes of calls that one worker began in `generation`, the successes first."""
        if generation != self.generation:
            return
        window = self._probed if self.state is State.HALF_OPEN else self._window
        judge = self._judge_probe if self.state is State.HALF_OPEN else self._judge_call
        most = max(self.settings.window, self.settings.probes)  # further ones change nothing
        for failed in chain(repeat(False, min(successes, most)), repeat(True, min(errors, most))):
            window.add(failed)
            judge(worker, failed, now)
            if generation != self.generation:
                return

    def tick(self, now: float, outstanding: bool) -> None:
        """Let time pass; `outstanding` says that a probe of this half-open is still under way."""
        if self.state is State.CLOSED or now < self.until:
            return
        if self.state is State.OPEN:
            self._half_open(now)
        elif outstanding:
            self._reopen(now, f"its probes gave no verdict within {self._period:.3g} s")
        elif not self._probed.calls:
            self.until = now + self._period  # there was nothing to probe with
        elif self._rate(self._probed, self._probed.calls) > self.settings.threshold:
            self._reopen(now, self._failed_probes)
        else:
            self._close(now)

    def _judge_call(self, worker: int, failed: bool, now: float) -> None:
        window, settings = self._window, self.settings
        if window.calls < settings.min_calls:
            return
        if self._rate(window, window.calls) > settings.threshold:
            self.trips += 1
            self._period = settings.open_for
            self._open(now, f"{window.errors} of the last {window.calls} calls failed")

    def _judge_probe(self, worker: int, failed: bool, now: float) -> None:
        probed, settings = self._probed, self.settings
        self.probes_succeed = self.probes_succeed or not failed
        if failed:
            self._failing.add(worker)
        else:
            self.until = now + self._period  # slow ones need not all come through in one period
        stuck = not self.probes_succeed and len(self._failing) >= self.workers
        if stuck or self._rate(probed, settings.probes) > settings.threshold:
            self._reopen(now, self._failed_probes)
        elif probed.calls >= settings.probes:
            self._close(now)

    @staticmethod
    def _rate(window: Window, calls: int) -> float:
        """A quotient, because that is exact where a product with the threshold is not."""
        return window.errors / calls

    @property
    def _failed_probes(self) -> str:
        return f"{self._probed.errors} of {self._probed.calls} probes failed"

    # The changes.

    def _begin(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.generation += 1
        self.probes_succeed = False

    def _open(self, now: float, reason: str) -> None:
        self._begin(State.OPEN, reason)
        self.open_since = now
        self.until = now + self._period * (1 - _JITTER * self._random())

    def _half_open(self, now: float) -> None:
        assert self.open_since is not None
        self._begin(State.HALF_OPEN, "")
        self.open_s += now - self.open_since
        self.open_since = None
        self.until = now + self._period
        self._probed = Window(self.settings.probes)
        self._failing.clear()

    def _reopen(self, now: float, reason: str) -> None:
        self.reopened += 1
        self._period = min(self.settings.max_open_for, self._period * 2)
        self._open(now, reason)

    def _close(self, now: float) -> None:
        calls = self._probed.calls
        self._begin(State.CLOSED, f"{calls - self._probed.errors} of {calls} probes came through")
        self._closed_at_s = self.open_s
        self._window = Window(self.settings.window)


class Forgiveness:
    """Which failures of one worker's probes cost their items nothing.

    Once in each half-open an item is forgiven and waits. If it fails again in the same one, others
    have succeeded meanwhile, and it is the item that is to blame. A stage that can give the item up
    does so in the end, because a bad item could else hold it for ever.
    """

    def __init__(self, can_give_up: bool) -> None:
        self._can_give_up = can_give_up
        self._generation = 0

    def forgives(self, generation: int, times: int) -> bool:
        """Whether to forgive a failure in this half-open; `times` before the item was forgiven."""
        if times and generation == self._generation:
            return False
        self._generation = generation
        return times < PATIENCE or not self._can_give_up
