"""Kills workers at any line of the protocol's files, without a hook in them.

A *point* is a line of a function of `FILES`. The coordinator of a test's run imports this module
too; its workers are then traced, and kill themselves by SIGKILL just before a line when the `Mode`
says so. A table in shared memory, which outlives them, says where that was done already:

- `LINES`: at every line once, wherever a worker comes by, however often its seat has just died;
- `STEPS`: right after every *step* (a line that stores, or uses a pipe), when the seat has not been
  disturbed since it recovered; and for some of them the replacement too, in turn right after every
  step until it has recovered. What others see changes only at steps: so these are all single
  deaths and all pairs, and `LINES` is all of them in a row.

Two more do without points. They kill after a time drawn by lot, again and again; some lives are
long enough for any recovery:

- `INSTRUCTIONS`: before any bytecode instruction of these files, and equally likely before each;
- `MICROSECONDS`: after so much CPU time, in the middle of C code or of a system call, too.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mpipe
from mpipe.engines import standby
from mpipe.runtime import blame, children
from mpipe.runtime.spec import RunSpec
from mpipe.transport import consumer, memory

FILES = (
    *("runtime/account.py", "runtime/apply.py", "runtime/backlog.py", "runtime/chain.py"),
    *(
        "runtime/emitter.py",
        "runtime/gate.py",
        "runtime/host.py",
        "runtime/intake.py",
        "runtime/kernel.py",
    ),
    *("runtime/noting.py", "runtime/ordering.py", "runtime/outbox.py", "runtime/wear.py"),
    *("runtime/wording.py", "runtime/worker.py"),
    *("transport/byvalue.py", "transport/channel.py", "transport/consumer.py"),
    *("transport/counters.py", "transport/frame.py", "transport/gaps.py", "transport/gate.py"),
    *("transport/memory.py", "transport/pipe.py", "transport/producer.py", "transport/store.py"),
    "transport/token.py",
)
_STEP = re.compile(r"\] [-+]?= |\b(put|take|readv|write|madvise)\(")
"""Lines that others could notice; some match that do not, which costs only time."""

_ROOT = Path(mpipe.__file__).parent


class Mode(IntEnum):
    """When workers are killed; see the module."""

    LINES, STEPS, INSTRUCTIONS, MICROSECONDS = range(4)


class Points:
    """All points, numbered: their names, whether they are steps, and numbers by file and line."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_step: list[bool] = []
        self.of_file: dict[str, dict[int, int]] = {}
        for file in FILES:
            path = str(_ROOT / file)
            source = Path(path).read_text().splitlines()
            lines = self.of_file[path] = {}
            for line, function in sorted(_lines(path).items()):
                text = source[line - 1].strip()
                lines[line] = len(self.names)
                self.names.append(f"{file}:{function}: {text}")
                self.is_step.append(_STEP.search(text) is not None)

    def first_of(self, function: Any) -> int:
        """The first point of a function."""
        code = function.__code__
        return min(self.of_file[code.co_filename][line] for line in _own_lines(code))


@cache
def points() -> Points:
    return Points()


def _lines(path: str) -> dict[int, str]:
    """The lines of a file's functions, each with the qualified name of the innermost one."""
    found: dict[int, str] = {}

    def visit(code: CodeType, outer: str) -> None:
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                name = outer if inner.co_name.startswith("<") else f"{outer}.{inner.co_name}"
                visit(inner, name)
                if inner.co_flags & 1:  # a function: the body of a class is not optimised
                    for line in _own_lines(inner):
                        found.setdefault(line, name.lstrip("."))

    visit(compile(Path(path).read_text(), path, "exec"), "")
    return found


def _own_lines(code: CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line}
    return lines - {code.co_firstlineno} or lines


# The table.

_SEATS = 256
_FIRST, _PHASE, _KILLS, _SEAT_WORDS = range(4)
"""Words of a seat: the step it was killed after, how far that story is, deaths in all (with lives
drawn by lot: lives)."""

_UNDISTURBED, _KILLED, _LEFT_ALONE = range(3)


class Table:
    """Where workers were killed; shared by all processes. `path` is that of another one's."""

    def __init__(self, path: str | None = None) -> None:
        self.names = points().names
        count = len(self.names)
        start = 8 * _SEATS * _SEAT_WORDS
        size = start + 3 * count + count * count
        self.fd = memory.create_file(size) if path is None else os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self.fd, size)
        view = memoryview(self._map)
        self.words = view[:start].cast("Q")
        self.killed, self.single, self.exhausted = (
            view[start + i * count : start + (i + 1) * count] for i in range(3)
        )
        self.pairs = view[start + 3 * count :]

    def begin(self) -> None:
        """A new run begins: all its seats are undisturbed."""
        self.words[_PHASE::_SEAT_WORDS] = memoryview(bytes(8 * _SEATS)).cast("Q")

    @property
    def kills(self) -> int:
        """How many workers were killed."""
        return sum(self.words[_KILLS::_SEAT_WORDS].tolist())

    @property
    def killed_at(self) -> set[str]:
        """Names of the points at which workers were killed."""
        return {name for name, killed in zip(self.names, self.killed, strict=True) if killed}

    def close(self) -> None:
        for view in (self.words, self.killed, self.single, self.exhausted, self.pairs):
            view.release()
        self._map.close()
        os.close(self.fd)


class Killer:
    """Decides in the worker of one seat whether to die before a point."""

    def __init__(self, table: Table, mode: Mode, seat: int) -> None:
        self._table = table
        self._start = seat * _SEAT_WORDS
        self._is_step = points().is_step
        self._progress = points().first_of(consumer.Consumer.take)
        self._last: int | None = None
        self._decide = (self._each_line, self._each_step)[mode]

    def pass_by(self, point: int) -> None:
        """To be called before each point; may not return."""
        if self._decide(point):
            table = self._table
            table.killed[point] = 1
            table.words[self._start + _KILLS] += 1
            os.kill(os.getpid(), signal.SIGKILL)

    def _each_line(self, point: int) -> bool:
        return not self._table.killed[point]

    def _each_step(self, point: int) -> bool:
        step, self._last = self._last, point
        if point == self._progress:
            self._recovered()
        return step is not None and self._is_step[step] and self._after(step)

    def _recovered(self) -> None:
        words, phase = self._table.words, self._start + _PHASE
        if words[phase] == _KILLED:  # and no step of the recovery was left to be killed after
            self._table.exhausted[words[self._start + _FIRST]] = 1
        words[phase] = _UNDISTURBED

    def _after(self, step: int) -> bool:
        table, words, phase = self._table, self._table.words, self._start + _PHASE
        if words[phase] == _UNDISTURBED and not table.exhausted[step]:
            words[self._start + _FIRST] = step
            words[phase] = _LEFT_ALONE if table.single[step] else _KILLED
            table.exhausted[step] = table.single[step]
            return True
        pair = words[self._start + _FIRST] * len(table.names) + step
        if words[phase] == _KILLED and not table.pairs[pair]:
            table.pairs[pair] = 1
            words[phase] = _LEFT_ALONE
            return True
        return False


def _trace(killer: Killer) -> None:
    """From now on let `killer` see every point that this thread comes by."""
    tracers = {path: _tracer(lines, killer.pass_by) for path, lines in points().of_file.items()}

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return tracers.get(frame.f_code.co_filename)

    sys.settrace(on_call)


def _tracer(lines: dict[int, int], pass_by: Callable[[int], None]) -> Any:
    def on_event(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and (point := lines.get(frame.f_lineno or 0)) is not None:
            pass_by(point)
        return on_event

    return on_event


# Lives drawn by lot.

_LIFE_SPREAD = 1000.0
_MANY_LIVES = 200


def _draw_life(table: Table, seat: int, shortest: int, seed: int) -> float:
    """How long the next worker in a seat lives.

    Its mean is of any order of magnitude from the shortest on, lower ones more likely: many lives
    end before the seat gets on, and some are long enough for that, whatever a recovery takes. All
    get longer with their number, so every run comes to its end.
    """
    word = seat * _SEAT_WORDS + _KILLS
    table.words[word] += 1
    lives = table.words[word]
    chance = random.Random(f"{seed}/{seat}/{lives}")
    mean = shortest * _LIFE_SPREAD ** (chance.random() ** 3) * (1 + lives / _MANY_LIVES)
    return chance.expovariate(1 / mean)


def _die_after_instructions(left: float) -> None:
    files = points().of_file

    def on_event(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_event

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return on_event

    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks only now whether anybody wants them
    sys.settrace(on_call)


def _die_after_microseconds(left: float) -> None:
    """The kernel's timer ends the process as SIGKILL does: no handler, no clean-up."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, max(left, 1.0) / 1e6)


# In the coordinator.


def install(path: str, mode: int, shortest: int, seed: int) -> None:
    """Let the workers that this process makes be killed; never give up on a seat, nor wait.

    Memory of large items is given back early, so that they need not be larger to see that.
    """
    import functions  # noqa: F401  once, rather than in each worker

    table, run_worker = Table(path), children.run_worker

    def run_traced(spec: RunSpec, seat: int, *rest: Any) -> None:
        if mode in (Mode.LINES, Mode.STEPS):
            _trace(Killer(table, Mode(mode), seat))
        elif mode == Mode.INSTRUCTIONS:
            _die_after_instructions(_draw_life(table, seat, shortest, seed))
        else:
            _die_after_microseconds(_draw_life(table, seat, shortest, seed))
        run_worker(spec, seat, *rest)

    children.run_worker = run_traced
    children._SPAWN = _installing(children._SPAWN, path, mode, shortest, seed)
    blame.MAX_SETUP_DEATHS = blame.MAX_UNEXPLAINED_DEATHS = blame._FREE_RESTARTS = 1 << 62
    consumer.RETAINED_BYTES = 8 << 20


def _installing(code: str, *arguments: Any) -> str:
    """The code of a fresh interpreter, with `install` behind what makes its module path."""
    path, rest = re.fullmatch(r"(.*?sys\.path.*?; )(.*)", code).groups()
    return f"{path}import crashpoints; crashpoints.install{arguments!r}; {rest}"


@contextmanager
def crashing(mode: Mode, shortest: int = 0, seed: int = 0) -> Iterator[Table]:
    """Let the workers of runs that are started in here be killed.

    `shortest` is the mean of their shortest lives, where these are drawn by lot, from `seed`.
    """
    table, code = Table(), standby._COORDINATOR
    path = f"/proc/{os.getpid()}/fd/{table.fd}"
    standby._COORDINATOR = _installing(code, path, int(mode), shortest, seed)
    try:
        yield table
    finally:
        standby._COORDINATOR = code
        table.close()
