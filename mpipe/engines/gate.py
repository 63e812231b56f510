"""The gate of a stage with a circuit breaker in an inline run: the calling thread itself waits."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from ..breaker import CircuitBreaker
from ..policy.breaker import Breaker, Forgiveness, State
from ..runtime.breakers import describe, gives_up
from ..runtime.gate import Waits
from ..runtime.wording import one_line
from ..stage import StageSpec
from ..stats import BreakerStats
from .base import Halt

_LOOK_S = 0.01
"""How often a run that is paused looks at its deadline and its cancel event, in seconds."""

logger = logging.getLogger("mpipe")


class InlineGate:
    """Satisfies `runtime.gate.Gate` for a stage's one worker, with its breaker.

    `check` raises `Halt` if the run is to stop. Time spent waiting here counts among that of the
    `outlet`, too. No permits are needed, because each outcome is known before the next call.
    """

    def __init__(
        self, spec: StageSpec, settings: CircuitBreaker, check: Callable[[], None], outlet: Waits
    ) -> None:
        self.is_pausing = False
        self._name = spec.name
        self._breaker = Breaker(settings, 1, random.random)
        self._forgiveness = Forgiveness(spec.on_error != "raise")
        self._check = check
        self._outlet = outlet
        self._begun_in = 0  # the generation in which the last call was begun
        self._is_probe = False
        self._last_error = ""

    def enter(self) -> bool:
        breaker = self._breaker
        if breaker.state is not State.CLOSED:
            self._tick()
        self._begun_in = breaker.generation
        self._is_probe = breaker.state is State.HALF_OPEN
        return breaker.state is not State.OPEN

    def wait(self) -> None:
        began = time.perf_counter_ns()
        self.is_pausing = True
        try:
            while not self.enter():
                self._check()
                time.sleep(_LOOK_S)
        finally:
            self.is_pausing = False
            self._outlet.waited_ns += time.perf_counter_ns() - began

    def _tick(self) -> None:
        breaker, now = self._breaker, time.perf_counter()
        if breaker.has_given_up(now):
            raise Halt(gives_up(self._name, breaker, self._last_error, 0))
        generation = breaker.generation
        breaker.tick(now, outstanding=False)
        self._log_change_from(generation)

    def leave(self, error: BaseException | None) -> None:
        failed, now = error is not None, time.perf_counter()
        if error is not None:
            self._last_error = one_line(error)
        self._breaker.record(self._begun_in, 0, not failed, failed, now)
        self._log_change_from(self._begun_in)

    def forgives(self, times: int) -> bool:
        return self._is_probe and self._forgiveness.forgives(self._begun_in, times)

    def _log_change_from(self, generation: int) -> None:
        if self._breaker.generation != generation:
            now = time.perf_counter()
            logger.warning("%s", describe(self._name, self._breaker, self._last_error, now))

    def stats(self) -> BreakerStats:
        """What there is to tell about the breaker now; from any thread."""
        breaker, since = self._breaker, self._breaker.open_since
        pausing = 0.0 if since is None else time.perf_counter() - since
        return BreakerStats(
            state=breaker.state.value,
            trips=breaker.trips,
            reopened=breaker.reopened,
            seconds_open=breaker.open_s + pausing,
        )
