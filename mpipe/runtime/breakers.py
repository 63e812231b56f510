"""The coordinator's side of the circuit breakers: it hears outcomes, decides, and sets the gates.

Workers count outcomes in shared words and wake the coordinator for those that may matter. It is in
nobody's way: while it is busy or stopped, a closed gate lets calls through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..errors import StageError
from ..policy.breaker import Breaker, State
from ..transport import gate
from ..transport.gate import ERRORS, SUCCESSES, GateFds, SharedGate
from .spec import RunSpec


def _random() -> float:
    """A number from 0 to 1; the module `random` would add a millisecond to every start."""
    return int.from_bytes(os.urandom(2), "little") / (1 << 16)


class Breakers:
    """Those of all stages of a run; `tell` logs a change. Seats are counted through the plan."""

    def __init__(self, spec: RunSpec, tell: Callable[[str], None]) -> None:
        self._by_seat: dict[int, tuple[Keeper, int]] = {}
        for stage, fds in enumerate(spec.gates):
            options = spec.plan.graph.stages[stage]
            if fds is not None and options.breaker is not None:
                breaker = Breaker(options.breaker, fds.seats, _random)
                keeper = Keeper(options.name, breaker, fds, tell)
                for index, seat in enumerate(spec.plan.seats_of(stage)):
                    self._by_seat[seat] = keeper, index

    def hear(self, seat: int, error: str) -> None:
        """The worker in a seat has rung; `error` describes its call, if that failed."""
        if seat in self._by_seat:
            keeper, index = self._by_seat[seat]
            keeper.hear(index, error)

    def record_death(self, seat: int, how: str) -> None:
        """A worker died: that counts as an error, whatever it died of."""
        if seat in self._by_seat:
            keeper, index = self._by_seat[seat]
            keeper.record_death(index, f"a worker died, {how}")

    @property
    def _keepers(self) -> set[Keeper]:
        return {keeper for keeper, _ in self._by_seat.values()}

    def finish(self, seat: int) -> None:
        """A worker is done with all its input; a stage that is needs its breaker no more."""
        if seat in self._by_seat:
            keeper, _ = self._by_seat.pop(seat)
            keeper.breaker.workers -= 1

    def wait_s(self) -> float | None:
        """Seconds until `tick` has something to do; None if never."""
        times = [due for keeper in self._keepers if (due := keeper.breaker.due) is not None]
        return max(0.0, min(times) - time.perf_counter()) if times else None

    def tick(self) -> StageError | None:
        """See to what is due; returns the run's failure when a stage has paused for too long."""
        for keeper in self._keepers:
            if failure := keeper.tick(time.perf_counter()):
                return failure
        return None


class Keeper:
    """Keeps one stage's gate as its breaker says."""

    def __init__(
        self, name: str, breaker: Breaker, fds: GateFds, tell: Callable[[str], None]
    ) -> None:
        self.breaker = breaker
        self._name = name
        self._gate = SharedGate(fds)
        self._tell = tell
        self._seats = range(fds.seats)
        self._known = [(0, 0)] * fds.seats  # successes and errors of this generation, per seat
        self._last_error = ""
        self._last_worker = 0

    def hear(self, index: int, error: str) -> None:
        if error:
            self._last_error, self._last_worker = error, index
        self._look()

    def record_death(self, index: int, how: str) -> None:
        """Count it where it belongs: half-open, only the death of a probe is an outcome."""
        self._last_error, self._last_worker = how, index
        self._look()
        breaker = self.breaker
        if breaker.state is State.CLOSED or self._gate.holds_permit(index, breaker.generation):
            self._record(index, 0, 1)
        self._publish()

    def tick(self, now: float) -> StageError | None:
        breaker = self.breaker
        if breaker.due is None or now < breaker.due:
            return None
        self._look()
        if breaker.has_given_up(now):
            return gives_up(self._name, breaker, self._last_error, self._last_worker)
        generation = breaker.generation
        breaker.tick(now, any(self._gate.holds_permit(seat, generation) for seat in self._seats))
        self._changed_from(generation)
        self._publish()
        return None

    def _look(self) -> None:
        """Take in what the workers have counted, then say so to those that rang before."""
        rung = [self._gate.rung(seat) for seat in self._seats]
        for seat in self._seats:
            generation, (successes, errors) = self.breaker.generation, self._known[seat]
            now = [self._gate.counted(seat, which, generation) for which in (SUCCESSES, ERRORS)]
            self._known[seat] = now[0], now[1]
            self._record(seat, now[0] - successes, now[1] - errors)
        self._publish()
        for seat in self._seats:
            self._gate.hear(seat, rung[seat])

    def _record(self, seat: int, successes: int, errors: int) -> None:
        generation = self.breaker.generation
        self.breaker.record(generation, seat, successes, errors, time.perf_counter())
        self._changed_from(generation)

    def _changed_from(self, generation: int) -> None:
        if self.breaker.generation != generation:
            self._known = [(0, 0)] * len(self._seats)
            self._publish_pauses()
            self._publish()
            self._permit()
            now = time.perf_counter()
            self._tell(describe(self._name, self.breaker, self._last_error, now))

    def _publish(self) -> None:
        """Make the breaker's state that of the gate."""
        breaker, flags = self.breaker, 0
        if breaker.state is State.OPEN:
            flags = gate.OPEN
        elif breaker.state is State.HALF_OPEN:
            flags = gate.HALF_OPEN | (gate.PROBES_SUCCEED if breaker.probes_succeed else 0)
        elif breaker.is_near:
            flags = gate.RING_ALWAYS
        self._gate.put_state(breaker.generation, flags)

    def _publish_pauses(self) -> None:
        breaker = self.breaker
        since = breaker.open_since
        self._gate.put_pauses(
            breaker.trips,
            breaker.reopened,
            int(breaker.open_s * 1e9),
            0 if since is None else int(since * 1e9),
        )

    def _permit(self) -> None:
        """Permits are put only once the state says so, and are void when it says so no more."""
        self._gate.withdraw_permits()
        if self.breaker.state is State.HALF_OPEN:
            self._gate.put_permits(self.breaker.generation, self.breaker.settings.probes)


def describe(name: str, breaker: Breaker, last_error: str, now: float) -> str:
    """Say what the breaker of stage `name` has just begun to do, for the log."""
    text = f"stage {name!r}: its circuit breaker "
    if breaker.state is State.CLOSED:
        return text + f"closes: {breaker.reason}; the stage works on"
    if breaker.state is State.HALF_OPEN:
        return text + f"is half-open: up to {breaker.settings.probes} calls are tried"
    text += f"opens: {breaker.reason}; the stage pauses for {breaker.until - now:.3g} s"
    return text + (f"; last error: {last_error}" if last_error else "")


def gives_up(name: str, breaker: Breaker, last_error: str, worker: int) -> StageError:
    """What fails the run when the stage has paused for too long; `worker` saw the last error."""
    message = (
        f"stage {name!r} gives up: its circuit breaker was open for "
        f"{breaker.settings.give_up_after:g} s without closing in between (give_up_after): "
        f"{breaker.reason}; last error: {last_error}. See to what its function depends on, or give "
        f"that more time to recover; give_up_after=None waits for ever"
    )
    return StageError(message, name, worker)
