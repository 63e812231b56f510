"""A cell: one small program in a process of its own, watched from outside, with nothing left of it.

Its processes carry a mark in their environment, the name of the cell's scratch folder, which they
keep when they are orphaned. Temporary files go to that folder, too, and what they leave in shared
memory is removed where its name tells whose it is.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import filterfalse
from pathlib import Path
from types import TracebackType

import processes
import psutil

HERE = Path(__file__).parent
MARK = "SCRATCH"
SHARED = Path("/dev/shm")
FLOOR = 1 << 30
"""Free memory, in bytes, that a cell leaves to the rest of the machine, or it is ended."""
_LOOK_S = 0.02
_SURVEY_S = 0.25
_TIDY_S = 2.0
"""How long a process that tidies up after the others may take."""


def end_politely() -> None:
    """Let SIGTERM, too, end this program by an exception, so that no cell is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


class Cell:
    """A running program of this folder; leaving the `with` block ends all that it started.

    Looking at its processes takes them, and the machine, milliseconds. So one that is to be timed
    is left `alone` until its end, but for a look at the machine's free memory.
    """

    def __init__(self, *program: str, alone: bool = False) -> None:
        self._alone = alone
        self.scratch = Path(tempfile.mkdtemp(prefix="cell"))
        self.pss: list[tuple[float, int]] = []
        """The memory of all its processes together: seconds since the start, bytes."""
        self.starved = False
        """It took so much memory that it was ended."""
        self._seen: set[psutil.Process] = set()
        self._surveyed = 0.0
        self._start = time.monotonic()
        own = {name: str(self.scratch) for name in (MARK, "TMPDIR")} | {"PYTHONPATH": str(HERE)}
        with (self.scratch / "said").open("w") as out, (self.scratch / "errors").open("w") as err:
            self._program = subprocess.Popen(
                [sys.executable, *program],
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **own},
                start_new_session=True,
            )
        self._pids = {str(self.pid)}

    @property
    def pid(self) -> int:
        """Of the program, and of its process group."""
        return self._program.pid

    @property
    def peak_pss(self) -> int:
        """The most memory of all its processes together that was seen, in bytes."""
        return max((size for _, size in self.pss), default=0)

    @property
    def said(self) -> str:
        return (self.scratch / "said").read_text()

    @property
    def errors(self) -> str:
        return (self.scratch / "errors").read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._program.poll() is not None

    def wait(self, seconds: float, until: Callable[[], object] | None = None) -> bool:
        """Wait for `until()` to be true, by default for the program's end; tell whether it is."""
        until = until or (lambda: self.has_ended)
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                return False
            if time.monotonic() > self._surveyed + _SURVEY_S:
                self._surveyed = time.monotonic()
                if not self._alone or _is_full():
                    self.survey()
            time.sleep(_LOOK_S)
        return True

    def survey(self) -> set[psutil.Process]:
        """All its processes that are there now. Looks at their memory as well."""
        found = processes.marked(MARK, str(self.scratch))
        self._seen = processes.alive(self._seen | found)
        self._pids.update(str(process.pid) for process in found)
        self.pss.append((time.monotonic() - self._start, processes.pss(p.pid for p in self._seen)))
        if _is_full():
            self.starved = True
            processes.end_all(self._seen)
        return self._seen

    def shared_names(self) -> list[Path]:
        """What it has in shared memory by a name; known by the numbers of processes in names."""
        listed = SHARED.iterdir() if SHARED.is_dir() else ()
        return [path for path in listed if self._pids.intersection(re.split("[-_.]", path.name))]

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + _TIDY_S
        while left := self.survey():  # what is killed may just have started another
            late = time.monotonic() > deadline
            processes.end_all(left if late else filterfalse(processes.tidies, left))
            self._program.poll()
            time.sleep(_LOOK_S)
        self._program.wait()
        for path in self.shared_names():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _is_full() -> bool:
    return bool(psutil.virtual_memory().available < FLOOR)
