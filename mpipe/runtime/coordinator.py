"""The coordinator: one single-threaded process that makes, watches, replaces and ends the workers.

It is never in the data path: while it is busy or stopped, items still flow.

Drain, in order: (1) the caller closes the source; (2) when all seats upstream of a stage are
finished, each of its seats gets an END behind the data in its queue; (3) the worker finishes, says
DONE, tears down and exits; (4) the next stages follow; (5) when all stages are finished, the
caller's queues get their END, all children reaped, what they left behind ended (`leftovers`); (6)
the caller is told (see `service`).

Cancel: SIGTERM, so that workers tear down; SIGKILL after a grace period. The same happens when a
stage fails, and when the caller is gone.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from ..errors import MPipeError, WorkerDied
from ..transport import counters
from ..transport.channel import Channel
from ..transport.counters import Board
from ..transport.token import END, plain
from . import control
from .autopsy import Autopsy
from .blame import Death, Record, Verdict, describe_crashes
from .breakers import Breakers
from .children import make_worker
from .leftovers import Leftovers
from .limits import Kill, Limits
from .preload import preload
from .reports import pack
from .scarcity import explain, is_temporary
from .spec import RunSpec
from .stopping import GRACE_S

_SCARCITY_S = 10.0
"""How long to try to start a worker while the machine has no room for it, in seconds."""

_RETRY_S = 0.1

_MOST_S = 3600.0
"""Longest single wait, in seconds; the system's own limit is under a month."""

_SIGNAL_S = 0.25
"""How often workers are told to end, in seconds."""


class Seat:
    """A place for one worker: who sits in it, and what happened to those who did."""

    def __init__(self, number: int, stage: int, record: Record) -> None:
        self.number = number
        self.stage = stage
        self.record = record
        self.pid = 0
        self.pidfd = -1
        self.restart_at: float | None = None
        self.give_up_at: float | None = None
        self.kill: Kill | None = None
        self.cpu_ns = 0
        self.finished = False


class Coordinator:
    """Runs one run; `caller` is the control socket, `caller_pid` who holds its other end.

    `cpu_ns` is the CPU time that this process had used before, for other runs.
    """

    def __init__(
        self, spec: RunSpec, caller: socket.socket, caller_pid: int, cpu_ns: int = 0
    ) -> None:
        self._spec = spec
        self._cpu_ns = cpu_ns
        self._plan = plan = spec.plan
        self._stages = plan.graph.stages
        self._caller = caller
        self._board = Board(spec.board, plan.leaders, len(self._stages))
        self._channels = {stage: Channel(fds) for stage, fds in spec.channels.items()}
        self._reports = socket.socket(fileno=os.dup(spec.reports_in))
        self._seats = {
            number: Seat(number, stage, Record(self._stages[stage].max_crashes))
            for stage in plan.pools
            for number in plan.seats_of(stage)
        }
        self._limits = Limits(plan, self._board)
        self._autopsy = Autopsy(self._board, spec.last_words)
        self._breakers = Breakers(spec, self._log)
        self._leftovers = Leftovers()
        self._closed = False
        self._ended = [False] * len(self._stages)
        self._outcome: tuple[str, Any] | None = None
        self._selector = selectors.DefaultSelector()
        self._watch(caller, self._on_caller)
        self._watch(self._reports, self._on_reports)
        self._caller_pidfd = os.pidfd_open(caller_pid)
        self._watch(self._caller_pidfd, self._on_caller_death)
        self._board.put_coordinator_cpu(-cpu_ns)

    def _watch(self, file: Any, handler: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, handler)

    def run(self) -> bool:
        """Start the workers, serve until all are finished or the run has failed, then end it.

        Returns whether it is drained. If not, the caller has been told why.
        """
        if self._spec.start_method == "fork":
            preload(self._spec)
        for seat in self._seats.values():
            if self._outcome is None:  # many take a while to start
                self._start(seat)
                self._serve(0.0)
        while self._outcome is None and not all(seat.finished for seat in self._seats.values()):
            self._advance()
            self._serve(self._wait_s())
            self._leftovers.look()
            self._enforce_limits()
            self._restart_due()
            if failure := self._breakers.tick():
                self._outcome = self._outcome or ("failed", pack(failure))
        self._on_reports()  # of the last workers
        if self._outcome is None:
            for fds in (self._spec.results, self._spec.dead_letters):
                if fds is not None:
                    with Channel(fds) as channel:
                        channel.put_ends()
            self._leftovers.end_all()
        else:
            told = self._tell(self._outcome, socket.MSG_DONTWAIT)
            self._stop_workers()
            self._leftovers.end_all()
            if not told:
                self._tell(self._outcome)
        self._board.put_coordinator_cpu(time.process_time_ns() - self._cpu_ns)
        return self._outcome is None

    def close(self) -> None:
        """Let go of all but the descriptors in the spec."""
        self._selector.close()
        self._reports.close()
        os.close(self._caller_pidfd)
        for channel in self._channels.values():
            channel.close()
        self._board.close()

    def _serve(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            key.data()

    def _wait_s(self) -> float:
        """How long there is nothing to do if nothing happens, in seconds; an hour at most."""
        waits = (
            self._next_restart(),
            self._limits.wait_s(),
            self._breakers.wait_s(),
            self._leftovers.wait_s(),
        )
        return min(wait for wait in (*waits, _MOST_S) if wait is not None)

    def _next_restart(self) -> float | None:
        """Seconds until then, None if no worker is to be restarted."""
        times = [seat.restart_at for seat in self._seats.values() if seat.restart_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _tell(self, message: tuple[str, Any], flags: int = 0) -> bool:
        """Tell the caller; False if that has to wait and `flags` say not to."""
        try:
            control.send(self._caller, message, flags)
        except BlockingIOError:
            return False
        except OSError:
            self._on_caller_death()
        return True

    def _log(self, message: str) -> None:
        self._tell(("log", message), socket.MSG_DONTWAIT)  # never wait for a busy caller

    # What happens.

    def _on_caller(self) -> None:
        try:
            message, value = control.receive(self._caller)
        except EOFError:
            self._on_caller_death()
            return
        if message == "close":
            self._closed = True
        else:
            self._outcome = self._outcome or (message, value)

    def _on_caller_death(self) -> None:
        self._outcome = self._outcome or ("cancelled", "the caller is gone")

    def _on_reports(self) -> None:
        while True:
            try:
                report = self._reports.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            kind, seat, value = pickle.loads(report)
            if kind == "error":
                self._outcome = self._outcome or ("failed", value)
            elif kind == "outcome":
                self._breakers.hear(seat, value)
            else:
                self._log(value)

    def _on_death(self, seat: Seat) -> None:
        """A worker has exited: reap it, then see whether it was done or is to be replaced."""
        self._selector.unregister(seat.pidfd)
        os.close(seat.pidfd)
        _, status, usage = os.wait4(seat.pid, 0)
        seat.cpu_ns += int((usage.ru_utime + usage.ru_stime) * 1e9)
        self._leftovers.worker_ended(seat.pid)
        seat.pid = 0
        self._put(seat, counters.CPU_NS, seat.cpu_ns)
        self._put(seat, counters.PID, 0)
        exitcode = os.waitstatus_to_exitcode(status)
        if self._get(seat, counters.DONE):
            seat.finished = True
            self._breakers.finish(seat.number)
        elif self._outcome is not None:
            return
        elif self._get(seat, counters.STATE) == counters.RECYCLING and not exitcode:
            seat.record.recycled()
            self._put(seat, counters.RECYCLED, self._get(seat, counters.RECYCLED) + 1)
            self._start(seat)
        else:
            self._replace(seat, exitcode)

    # Workers.

    def _start(self, seat: Seat) -> None:
        seat.restart_at = seat.kill = None
        self._limits.starts(seat.number)
        self._put(seat, counters.STATE, counters.STARTING)
        private = [
            self._caller.fileno(),
            self._reports.fileno(),
            self._spec.reports_in,
            self._selector.fileno(),
            self._caller_pidfd,
            *(other.pidfd for other in self._seats.values() if other.pid),
        ]
        try:
            worker = make_worker(self._spec, seat.number, seat.record.caution, private)
        except OSError as error:
            self._cannot_start(seat, error)
            return
        seat.pid, seat.pidfd = worker
        seat.give_up_at = None
        self._put(seat, counters.PID, seat.pid)
        self._watch(seat.pidfd, lambda: self._on_death(seat))

    def _cannot_start(self, seat: Seat, error: OSError) -> None:
        """Try again for a while, if that makes sense; then fail the run."""
        now, name = time.monotonic(), self._stages[seat.stage].name
        what = f"a worker of stage {name!r} (worker {self._index(seat)}) cannot be started"
        if seat.give_up_at is None:
            seat.give_up_at = now + _SCARCITY_S
            self._log(f"{what}: {explain(error)}")
        if is_temporary(error) and now < seat.give_up_at:
            seat.restart_at = now + _RETRY_S
        else:
            failure = MPipeError(f"{what}: {explain(error)}")
            self._outcome = self._outcome or ("failed", pack(failure))

    def _get(self, seat: Seat, word: int) -> int:
        return self._board.get(seat.number, word)

    def _put(self, seat: Seat, word: int, value: int) -> None:
        self._board.put(seat.number, word, value)

    def _enforce_limits(self) -> None:
        for kill in self._limits.look():
            seat = self._seats[kill.seat]
            if seat.pid:
                seat.kill = kill
                signal.pidfd_send_signal(seat.pidfd, kill.signal)

    def _restart_due(self) -> None:
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.restart_at is not None and seat.restart_at <= now:
                self._start(seat)

    def _replace(self, seat: Seat, exitcode: int) -> None:
        death = self._autopsy.examine(seat.number, exitcode, seat.kill)
        self._breakers.record_death(seat.number, death.how)
        verdict = seat.record.judge(death)
        condemned = verdict is Verdict.CONDEMN
        if self._loses_state(seat, death):
            self._fail(seat, death, _STATE_LOST)
        elif verdict in _FATAL or (condemned and self._stages[seat.stage].on_error == "raise"):
            self._fail(seat, death, _reason(verdict, seat.record))
        else:
            self._put(seat, counters.ITEM, 0)
            self._put(seat, counters.DUE_NS, 0)
            self._put(seat, counters.RESTARTS, self._get(seat, counters.RESTARTS) + 1)
            seat.restart_at = time.monotonic() + seat.record.delay
            self._restart_due()

    def _index(self, seat: Seat) -> int:
        """The seat's place in its pool."""
        return seat.number - self._plan.first_seat[seat.stage]

    def _loses_state(self, seat: Seat, death: Death) -> bool:
        unfinished = plain(self._get(seat, counters.COMMITTED)) != END
        return bool(self._get(seat, counters.STATEFUL)) and not death.in_setup and unfinished

    def _fail(self, seat: Seat, death: Death, reason: str) -> None:
        at = self._plan.chain(seat.stage)[self._get(seat, counters.AT_STAGE)]
        name, worker = self._stages[at].name, self._index(seat)
        message = f"a worker of stage {name!r} (worker {worker}) died, {death.how}: {reason}"
        if position := self._autopsy.position(seat.number, death):
            message += f"; it was working on {position}"
        error = WorkerDied(message, name, worker, death.exitcode, position, death.trace)
        self._outcome = ("failed", pack(error))

    # Ends.

    def _advance(self) -> None:
        """Send the END to every stage whose upstream is finished."""
        leaders = self._plan.leaders
        for stage in self._plan.pools:
            feeding = self._plan.producers_of(stage)
            done = all(self._seats[leaders[number]].finished for number in feeding)
            if not self._ended[stage] and done and (feeding or self._closed):
                self._ended[stage] = True
                self._channels[stage].put_ends()

    def _stop_workers(self) -> None:
        """SIGTERM, a grace period, SIGKILL; every child is reaped.

        SIGTERM again and again, because one that comes just before a call of the system that waits
        is not heard until that call returns. A worker that has heard one ignores the others.
        """
        for seat in self._seats.values():
            seat.restart_at = None
        deadline = time.monotonic() + GRACE_S
        while any(seat.pid for seat in self._seats.values()) and time.monotonic() < deadline:
            self._signal(signal.SIGTERM)
            again = min(deadline, time.monotonic() + _SIGNAL_S)
            while any(seat.pid for seat in self._seats.values()) and time.monotonic() < again:
                self._serve_deaths(again)
        self._signal(signal.SIGKILL)
        while any(seat.pid for seat in self._seats.values()):
            self._serve_deaths(time.monotonic() + 1.0)

    def _signal(self, number: int) -> None:
        for seat in self._seats.values():
            if seat.pid:
                signal.pidfd_send_signal(seat.pidfd, number)

    def _serve_deaths(self, deadline: float) -> None:
        by_fd = {seat.pidfd: seat for seat in self._seats.values() if seat.pid}
        poll = selectors.DefaultSelector()
        for fd in by_fd:
            poll.register(fd, selectors.EVENT_READ)
        for key, _ in poll.select(max(0.0, deadline - time.monotonic())):
            self._on_death(by_fd[key.fd])
        poll.close()


_STATE_LOST = (
    "what its stage remembered is lost with it, so the results would be wrong "
    "(the stage overrides finish() or is stateful); "
    "define snapshot() and restore(state) to survive it"
)


_FATAL = (Verdict.SETUP_FAILS, Verdict.FRAME_FAILS)


def _reason(verdict: Verdict, record: Record) -> str:
    if verdict is Verdict.CONDEMN:
        return f"an item is to blame, {describe_crashes(record.max_crashes)}"
    if verdict is Verdict.SETUP_FAILS:
        return "workers of this stage die again and again while they are set up"
    if record.frame == END:
        return "workers die again and again in finish()"
    return (
        "workers die again and again on the same items, outside of the stage's function "
        "(while they are unpickled, or what came of them is sent on)"
    )
